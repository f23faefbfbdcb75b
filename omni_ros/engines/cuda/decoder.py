"""The Thinker or the Talker on an NVIDIA GPU: recorded CUDA graphs over one KV cache, one for a row, others for many.

Memory is allocated once. Copies in and out of the one-row graph are part of it; those of a prompt are as long as the prompt.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from omni_ros.engines.config import EngineConfig, ThinkerConfig
from omni_ros.engines.cuda.arguments import float_bytes, half_bytes
from omni_ros.engines.cuda.compiler import DECODE, PREFILL
from omni_ros.engines.cuda.decode import DecodeLayers
from omni_ros.engines.cuda.kernels import Kernels
from omni_ros.engines.cuda.prefill import PrefillLayers
from omni_ros.engines.cuda.rope import RopeTable
from omni_ros.engines.cuda.sizes import cache_form, decoder_sizes
from omni_ros.engines.cuda.weights import DeviceWeights
from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.engines.engine import OneState, Running, State, check_rows, was_closed
from omni_ros.errors import InputError

# Rows of a prompt at a time, at most (each run reads every weight once), and what shorter ones have a graph of their own for.
MAX_ROWS, FEWER_ROWS = 1024, (64, 256)


class CudaDecoder:
    """See engine.Engine; one state at a time."""

    verified: bool | str | None = None

    def __init__(self, directory: Path, config: EngineConfig):
        self.directory, self.config = directory, config
        self.running, self.one_state = Running(config.engine), OneState(config.engine)
        self.closing: list[Callable[[], None]] = []  # what belongs to this engine and goes with it
        self.decoder = decoder_sizes(directory, config)
        self.device = CudaDevice(config.engine)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        c, device = self.decoder, self.device
        self.hidden, self.vocab = c.hidden_size, c.vocab_size
        self.levels = self.config.model.num_deepstack if isinstance(self.config.model, ThinkerConfig) else 0
        self.accept = c.accept_hidden_layer or None  # of the Thinker: its output is what the Talker sees
        self.head = "thinker.lm_head" if self.config.engine == "thinker" else "talker.codec_head"
        self.max_rows = min(self.config.limits.max_input_len, MAX_ROWS)
        self.inputs = {i.name for i in self.config.fed}
        self.rope, capacity = RopeTable(c), self.config.limits.capacity
        fp8, scales = cache_form(self.directory, self.config, c.num_layers)
        kernels = Kernels(device, self.directory, c, DECODE, PREFILL, fp8_cache=fp8)
        weights = DeviceWeights(device, self.directory)
        cache = half_bytes(c.num_kv_heads, capacity, c.head_dim) // (1 + fp8)
        keys, values = ([device.memory(cache) for _ in range(c.num_layers)] for _ in "kv")
        self.decode = DecodeLayers(device, kernels, weights, c, "", keys, values, capacity, scales)
        self.prefill = PrefillLayers(device, kernels, weights, c, keys, values, capacity, self.max_rows, self.levels, scales)
        self._allocate()
        self._record()

    def _allocate(self) -> None:
        pinned, memory, head_dim = self.device.pinned, self.device.memory, self.decoder.head_dim
        self.roped = self.hidden + head_dim
        self.pinned_in = pinned(float_bytes(self.roped + 1))  # row, cosines and sines, past as int32
        self.pinned_out = pinned(float_bytes(self.vocab + self.hidden))  # logits, hidden
        self.input, self.output = memory(self.pinned_in.nbytes), memory(self.pinned_out.nbytes)
        self.accepted = memory(float_bytes(self.max_rows, self.hidden))
        self.pinned_counts = pinned(4 * 3)
        self.pinned_rows = pinned(float_bytes(self.max_rows, self.hidden))
        self.pinned_cos_sin = pinned(float_bytes(self.max_rows, head_dim))
        self.pinned_accepted = pinned(float_bytes(self.max_rows, self.hidden))
        self.pinned_features = [pinned(float_bytes(self.max_rows, self.hidden)) for _ in range(self.levels)]

    # ---- what is recorded -------------------------------------------------------------------------------------------
    def _record(self) -> None:
        for given in (self.pinned_in, self.pinned_rows, self.pinned_cos_sin):
            given[:] = 0
        # Once as they are, on one row of zeros: loads the kernels, which a capture may not.
        self._step()
        self._send(np.zeros((1, self.hidden), np.float32), np.zeros((3, 1), np.float32), None, 0)
        self._prompt()
        self.device.wait()
        self.one_row = self.device.capture(self._step)
        self.many_rows = {}
        for rows in sorted({*(n for n in FEWER_ROWS if n < self.max_rows), self.max_rows}):
            self.prefill.grid = rows
            self.many_rows[rows] = self.device.capture(self._prompt)

    def _step(self) -> None:
        x, cos_sin, past = (self.input + float_bytes(n) for n in (0, self.hidden, self.roped))
        self.device.upload(self.input, self.pinned_in)
        for layer in range(self.decoder.num_layers):
            self.decode.forward(layer, x, past, cos_sin)
            if layer + 1 == self.accept:
                self.device.copy(self.output + float_bytes(self.vocab), x, float_bytes(self.hidden))
        self._logits(x)

    def _prompt(self) -> None:
        layers = self.decoder.num_layers
        for layer in range(layers + 1):
            self.prefill.norm(layer, self.accepted if layer == self.accept else None)
            if layer < layers:
                self.prefill.forward(layer)
        self.prefill.last_row(self.input)
        self._logits(self.input)

    def _logits(self, x: int) -> None:
        last_hidden = None if self.accept else self.output + float_bytes(self.vocab)
        self.decode.gemv({self.head: self.vocab}, self.hidden, x, self.output, norm="norm.weight", normed=last_hidden)
        self.device.download(self.pinned_out, self.output)

    # ---- running ----------------------------------------------------------------------------------------------------
    def new_state(self) -> State:
        with self.running:
            self._check_open()
            state = State(self.config.engine)  # rows of the cache beyond its length are never read
            self.one_state.take(state)
            return state

    def run(self, inputs: dict[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        """inputs_embeds [S, hidden], position_ids [3, S], of the Thinker also deepstack [levels, S, hidden] ->
        logits float32 [1, V], and accept_hidden [S, hidden] or last_hidden [1, hidden], float32."""
        rows = len(inputs.get("inputs_embeds", ()))
        wanted = {"inputs_embeds": (rows, self.hidden), "position_ids": (3, rows), "deepstack": (self.levels, rows, self.hidden)}
        wanted = {name: wanted[name] for name in self.inputs}
        if {name: a.shape for name, a in inputs.items()} != wanted or not rows:
            raise InputError(f"{self.config.engine} takes {wanted}, got { {name: a.shape for name, a in inputs.items()} }")
        x, positions, features = inputs["inputs_embeds"], inputs["position_ids"], inputs.get("deepstack")
        if features is not None and not features.any():
            features = None
        with self.running:
            self._check_open()
            check_rows(self.config, inputs, state)
            assert state is not None  # it has seen to that
            if rows == 1 and features is None:
                hidden = self._one(x, positions, state.length)
            else:
                hidden = self._many(x, positions, features, state.length)
            state.length += rows
            out = self.pinned_out.view(np.float32)
            logits = out[: self.vocab].copy()[None]
            if self.accept:
                return {"logits": logits, "accept_hidden": hidden}
            return {"logits": logits, "last_hidden": out[self.vocab :].copy()[None]}

    def _one(self, row: np.ndarray, position: np.ndarray, past: int) -> np.ndarray:
        floats = self.pinned_in.view(np.float32)
        floats[: self.hidden] = row[0]
        floats[self.hidden : self.roped] = self.rope(position)[0]
        floats[-1:].view(np.int32)[0] = past
        self.device.launch(self.one_row)
        self.device.wait()
        return self.pinned_out.view(np.float32)[self.vocab :].copy()[None]

    def _many(self, x: np.ndarray, positions: np.ndarray, features: np.ndarray | None, past: int) -> np.ndarray:
        hidden = np.empty_like(x, np.float32)
        for i in range(0, len(x), self.max_rows):
            part = slice(i, i + self.max_rows)
            self._send(x[part], positions[:, part], None if features is None else features[:, part], past + i)
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
        """Put the copies of up to `max_rows` rows on the stream."""
        self.pinned_counts.view(np.int32)[:] = len(x), past, features is not None
        parts = [(self.prefill.x, self.pinned_rows, x), (self.prefill.cos_sin, self.pinned_cos_sin, self.rope(positions))]
        if features is not None:
            size = float_bytes(self.max_rows, self.hidden)
            parts += [(self.prefill.features + i * size, p, f) for i, (p, f) in enumerate(zip(self.pinned_features, features))]
        self.device.upload(self.prefill.counts, self.pinned_counts)
        for address, pinned, array in parts:
            floats = pinned.view(np.float32)[: array.size]
            floats.reshape(array.shape)[:] = array
            self.device.upload(address, floats)

    def _check_open(self) -> None:
        if self.device.closed:
            raise was_closed(self.config, self.directory)

    def close(self) -> None:
        with self.running:
            self.device.close()
        for close in self.closing:
            close()
