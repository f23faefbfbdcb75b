"""The Thinker or the Talker on an NVIDIA GPU: recorded CUDA graphs over one KV cache, one for a row, others for many.

Memory is allocated once. Copies in and out of the one-row graph are part of it; those of a prompt are as long as the prompt.
"""

from pathlib import Path

import numpy as np

from omni_ros.engines.cuda.compiler import DECODE, PREFILL, DeviceWeights, Kernels, float_bytes
from omni_ros.engines.cuda.layers import Layers, Rotation
from omni_ros.engines.cuda.prefill import Prefill
from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.engines.engine import check_rows
from omni_ros.errors import InputError

# Rows of a prompt at a time, at most (each run reads every weight once), and what shorter ones have a graph of their own for.
MOST_ROWS, FEWER_ROWS = 1024, (64, 256)


class CudaDecoder:
    """See engine.Engine. Not thread-safe: one engine belongs to one stage."""

    device: CudaDevice | None = None
    counts, axis, length = "inputs_embeds", 0, 0

    def __init__(self, directory: Path, config: dict):
        self.directory, self.config = directory, config
        shape, self.capacity = config["decoder"], config["limits"]["capacity"]
        self.inputs = {i["name"] for i in config["inputs"]} - {config["position"]["input"]}
        self.levels = config["model"].get("num_deepstack", 0)
        self.device = CudaDevice(config["engine"])
        try:
            kernels = Kernels(self.device, shape["head_dim"], shape["num_heads"] // shape["num_kv_heads"], DECODE, PREFILL)
            weights = DeviceWeights(self.device, directory)
            cache = float_bytes(shape["num_kv_heads"], self.capacity, shape["head_dim"]) // 2
            keys, values = ([self.device.memory(cache) for _ in range(shape["num_layers"])] for _ in "kv")
            self.layers = Layers(self.device, kernels, weights, shape, "", keys, values, self.capacity)
            self.most = min(config["limits"]["max_input_len"], MOST_ROWS)
            self.prefill = Prefill(self.device, kernels, weights, shape, keys, values, self.capacity, self.most, self.levels)
            self.rotation, self.hidden, self.vocab = Rotation(shape), shape["hidden_size"], shape["vocab_size"]
            self.turned = self.hidden + shape["head_dim"]
            self.head = "thinker.lm_head" if config["engine"] == "thinker" else "talker.codec_head"
            self.accept = shape.get("accept_hidden_layer")  # of the Thinker: its output is what the Talker sees
            pinned, memory = self.device.pinned, self.device.memory
            self.pinned_in = pinned(float_bytes(self.turned + 1))  # row, rotation, past as int32
            self.pinned_out = pinned(float_bytes(self.vocab + self.hidden))  # logits, hidden
            self.input, self.output = memory(self.pinned_in.nbytes), memory(self.pinned_out.nbytes)
            self.accepted = memory(float_bytes(self.most, self.hidden))
            self.pinned_counts = pinned(4 * 3)
            self.pinned_rows, self.pinned_turns, self.pinned_accepted = (
                pinned(float_bytes(self.most, n)) for n in (self.hidden, shape["head_dim"], self.hidden)
            )
            self.pinned_features = [pinned(float_bytes(self.most, self.hidden)) for _ in range(self.levels)]
            for given in (self.pinned_in, self.pinned_rows, self.pinned_turns):
                given[:] = 0
            # Once as they are, on one row of zeros: loads the kernels, which a capture may not.
            self._step()
            self._send(np.zeros((1, self.hidden), np.float32), np.zeros((3, 1), np.float32), None, 0)
            self._prompt()
            self.device.wait()
            self.one_row, self.many_rows = self.device.capture(self._step), {}
            for rows in sorted({*(n for n in FEWER_ROWS if n < self.most), self.most}):
                self.prefill.grid = rows
                self.many_rows[rows] = self.device.capture(self._prompt)
        except BaseException:
            self.device.close()
            raise

    # ---- what is recorded -------------------------------------------------------------------------------------------
    def _step(self) -> None:
        x, turn, past = (self.input + float_bytes(n) for n in (0, self.hidden, self.turned))
        self.device.upload(self.input, self.pinned_in)
        for layer in range(self.layers.shape["num_layers"]):
            self.layers.forward(layer, x, past, turn)
            if layer + 1 == self.accept:
                self.device.copy(self.output + float_bytes(self.vocab), x, float_bytes(self.hidden))
        self._logits(x)

    def _prompt(self) -> None:
        layers = self.layers.shape["num_layers"]
        for layer in range(layers + 1):
            self.prefill.norm(layer, self.accepted if layer == self.accept else None)
            if layer < layers:
                self.prefill.forward(layer)
        self.prefill.last_row(self.input)
        self._logits(self.input)

    def _logits(self, x: int) -> None:
        hidden = self.output + float_bytes(self.vocab)
        self.layers.project([self.head], x, self.output, norm="norm.weight", normed=0 if self.accept else hidden)
        self.device.download(self.pinned_out, self.output)

    # ---- running ----------------------------------------------------------------------------------------------------
    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """inputs_embeds [S, hidden], position_ids [3, S], of the Thinker also deepstack [levels, S, hidden] ->
        logits float32 [1, V], and accept_hidden [S, hidden] or last_hidden [1, hidden], float32."""
        rows = len(inputs.get("inputs_embeds", ()))
        wanted = {"inputs_embeds": (rows, self.hidden), "position_ids": (3, rows), "deepstack": (self.levels, rows, self.hidden)}
        wanted = {name: wanted[name] for name in self.inputs}
        if {name: a.shape for name, a in inputs.items()} != wanted or not rows:
            raise InputError(f"{self.device.name} takes {wanted}, got { {name: a.shape for name, a in inputs.items()} }")
        check_rows(self, inputs)
        x, positions, features = (inputs.get(name) for name in ("inputs_embeds", "position_ids", "deepstack"))
        if features is not None and not features.any():
            features = None
        if rows == 1 and features is None:
            hidden = self._one(x, positions)
        else:
            hidden = self._many(x, positions, features)
        self.length += rows
        out = self.pinned_out.view(np.float32)
        logits = out[: self.vocab].copy()[None]
        if self.accept:
            return {"logits": logits, "accept_hidden": hidden}
        return {"logits": logits, "last_hidden": out[self.vocab :].copy()[None]}

    def _one(self, row: np.ndarray, position: np.ndarray) -> np.ndarray:
        floats = self.pinned_in.view(np.float32)
        floats[: self.hidden], floats[self.hidden : self.turned] = row[0], self.rotation(position)[0]
        floats[-1:].view(np.int32)[0] = self.length
        self.device.launch(self.one_row)
        self.device.wait()
        return self.pinned_out.view(np.float32)[self.vocab :].copy()[None]

    def _many(self, x: np.ndarray, positions: np.ndarray, features: np.ndarray | None) -> np.ndarray:
        hidden = np.empty_like(x, np.float32)
        for i in range(0, len(x), self.most):
            part = slice(i, i + self.most)
            self._send(x[part], positions[:, part], None if features is None else features[:, part], self.length + i)
            self.device.launch(next(graph for rows, graph in self.many_rows.items() if len(x[part]) <= rows))
            if not self.accept:
                self.device.wait()
                continue
            accepted = self.pinned_accepted[: hidden[part].nbytes]
            self.device.download(accepted, self.accepted)
            self.device.wait()
            hidden[part] = accepted.view(np.float32).reshape(hidden[part].shape)
        return hidden

    def _send(self, x: np.ndarray, positions: np.ndarray, features: np.ndarray | None, past: int) -> None:
        """Put the copies of up to `most` rows on the stream."""
        self.pinned_counts.view(np.int32)[:] = len(x), past, features is not None
        parts = [(self.prefill.x, self.pinned_rows, x), (self.prefill.turns, self.pinned_turns, self.rotation(positions))]
        if features is not None:
            size = float_bytes(self.most, self.hidden)
            parts += [(self.prefill.features + i * size, p, f) for i, (p, f) in enumerate(zip(self.pinned_features, features))]
        self.device.upload(self.prefill.counts, self.pinned_counts)
        for address, pinned, array in parts:
            floats = pinned.view(np.float32)[: array.size]
            floats.reshape(array.shape)[:] = array
            self.device.upload(address, floats)

    def reset(self) -> None:
        self.length = 0  # rows of the caches beyond it are never read

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"truncate({length}) of {self.length} rows")
        self.length = length

    def __del__(self):
        if self.device:
            self.device.close()
