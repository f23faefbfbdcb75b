"""The CodePredictor on an NVIDIA GPU: the 15 residual codes of a frame as one CUDA graph.

Sixteen rows go through the layers, one after the other: the Talker's hidden state, the embedding of code 0, then of each
code as it is drawn. Same inputs and outputs as the exported graph (offline/graphs/code_predictor.py).
"""

from pathlib import Path

import numpy as np

from omni_ros.engines.config import EngineConfig
from omni_ros.engines.cuda.arguments import Float, Int, Pointer, float_bytes, half_bytes
from omni_ros.engines.cuda.compiler import DECODE
from omni_ros.engines.cuda.decode import DecodeLayers
from omni_ros.engines.cuda.kernels import Kernels
from omni_ros.engines.cuda.rope import RopeTable
from omni_ros.engines.cuda.sizes import decoder_sizes
from omni_ros.engines.cuda.weights import DeviceWeights
from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.engines.engine import Running, State, was_closed
from omni_ros.errors import InputError

SAMPLE = 1024  # threads


class CudaCodePredictor:
    """See engine.Engine. Every frame begins anew: its states are empty, and there may be any number of them."""

    max_rows = 1
    verified: bool | str | None = None

    def __init__(self, directory: Path, config: EngineConfig):
        self.directory, self.config, self.running = directory, config, Running(config.engine)
        self.decoder = decoder_sizes(directory, config)
        self.device = CudaDevice(config.engine)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        c, device = self.decoder, self.device
        self.rows, self.hidden, self.noise_width = c.num_code_groups, c.hidden_size, self.config.model.noise_width
        kernels = Kernels(device, self.directory, c, DECODE)
        self.weights = DeviceWeights(device, self.directory)
        cache = half_bytes(c.num_kv_heads, self.rows, c.head_dim)
        keys, values = ([device.memory(cache) for _ in range(c.num_layers)] for _ in "kv")
        self.decode = DecodeLayers(device, kernels, self.weights, c, "model.", keys, values, self.rows)
        steps = np.arange(self.rows)
        self.past = device.constant(steps.astype(np.int32))
        self.cos_sin = device.constant(RopeTable(c)(np.repeat(steps[None], 3, axis=0).astype(np.float32)))
        self.logits = device.memory(float_bytes(c.vocab_size))
        self.x = device.memory(float_bytes(self.hidden))
        # last_hidden, code0_embed, noise; the codes as int64, embed_sum
        self.pinned_in = device.pinned(float_bytes(2 * self.hidden + (self.rows - 1) * self.noise_width))
        self.pinned_out = device.pinned(8 * self.rows + float_bytes(self.hidden))
        self.input, self.output = device.memory(self.pinned_in.nbytes), device.memory(self.pinned_out.nbytes)
        self.pinned_in[:] = 0
        self._frame()  # once as it is: loads the kernels, which a capture may not
        device.wait()
        self.graph = device.capture(self._frame)

    def _frame(self) -> None:
        c = self.decoder
        code0_embed, noise = (self.input + float_bytes(n) for n in (self.hidden, 2 * self.hidden))
        embed_sum = self.output + 8 * self.rows
        self.device.upload(self.input, self.pinned_in)
        self.device.copy(embed_sum, code0_embed, float_bytes(self.hidden))
        self._row(0, self.input)
        self._row(1, code0_embed)
        for group in range(self.rows - 1):
            x = self.x if group else code0_embed
            head = {f"lm_head.{group}.weight": c.vocab_size}
            self.decode.gemv(head, self.hidden, x, self.logits, norm="model.norm.weight")
            self.decode.kernels.launch(
                "sample",
                (1, 1),
                SAMPLE,
                0,
                Pointer(self.logits),
                Int(c.vocab_size),
                Pointer(noise + float_bytes(group, self.noise_width)),
                Int(self.noise_width),
                Float(c.top_p),
                Pointer(self.weights.address(f"model.codec_embedding.{group}.weight", c.vocab_size, self.hidden)),
                Int(self.hidden),
                Pointer(self.output + 8 * group),
                Pointer(self.x),
                Pointer(embed_sum),
            )
            if group < self.rows - 2:
                self._row(group + 2, self.x)
        self.device.download(self.pinned_out, self.output)

    def _row(self, row: int, x: int) -> None:
        cos_sin = self.cos_sin + row * float_bytes(self.decoder.head_dim)
        for layer in range(self.decoder.num_layers):
            self.decode.forward(layer, x, self.past + 4 * row, cos_sin)

    def new_state(self) -> State:
        return State(self.config.engine)

    def run(self, inputs: dict[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        """last_hidden, code0_embed float32 [1, hidden], noise [groups - 1, noise_width] -> codes int64 [groups - 1],
        embed_sum float32 [1, hidden]."""
        wanted = {"last_hidden": (1, self.hidden), "code0_embed": (1, self.hidden), "noise": (self.rows - 1, self.noise_width)}
        if {name: a.shape for name, a in inputs.items()} != wanted:
            raise InputError(f"{self.config.engine} takes {wanted}, got { {name: a.shape for name, a in inputs.items()} }")
        with self.running:
            if self.device.closed:
                raise was_closed(self.config, self.directory)
            self.pinned_in.view(np.float32)[:] = np.concatenate([inputs[n].ravel() for n in wanted])
            self.device.launch(self.graph)
            self.device.wait()
            codes = self.pinned_out[: 8 * (self.rows - 1)].view(np.int64).copy()
            return {"codes": codes, "embed_sum": self.pinned_out[8 * self.rows :].view(np.float32).copy()[None]}

    def close(self) -> None:
        with self.running:
            self.device.close()
