"""The CodePredictor on an NVIDIA GPU: the 15 residual codes of a frame as one CUDA graph.

Sixteen rows go through the layers, one after the other: the Talker's hidden state, the embedding of code 0, then of each
code as it is drawn. Same inputs and outputs as the exported graph (offline/graphs/code_predictor.py).
"""

import ctypes
from pathlib import Path

import numpy as np

from omni_ros.engines.cuda.compiler import DECODE, DeviceWeights, Kernels, float_bytes
from omni_ros.engines.cuda.layers import Layers, Rotation
from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.errors import EngineError, InputError

SAMPLE = 1024  # threads


class CudaCodePredictor:
    """See engine.Engine; it has no state between frames."""

    device: CudaDevice | None = None
    length = 0

    def __init__(self, directory: Path, config: dict):
        self.directory, self.config = directory, config
        shape = config["decoder"]
        self.rows, self.hidden, self.noise_width = shape["num_code_groups"], shape["hidden_size"], config["model"]["noise_width"]
        self.device = CudaDevice("code_predictor")
        try:
            kernels = Kernels(self.device, shape["head_dim"], shape["num_heads"] // shape["num_kv_heads"], DECODE)
            self.weights = DeviceWeights(self.device, directory)
            cache = float_bytes(shape["num_kv_heads"], self.rows, shape["head_dim"]) // 2
            keys, values = ([self.device.memory(cache) for _ in range(shape["num_layers"])] for _ in "kv")
            self.layers = Layers(self.device, kernels, self.weights, shape, "model.", keys, values, self.rows)
            steps = np.arange(self.rows)
            self.past = self.device.constant(steps.astype(np.int32))
            turns = Rotation(shape)(np.repeat(steps[None], 3, axis=0).astype(np.float32))
            self.turn, self.turn_bytes = self.device.constant(turns), float_bytes(shape["head_dim"])
            self.logits, self.x = (self.device.memory(float_bytes(n)) for n in (shape["vocab_size"], self.hidden))
            # last_hidden, code0_embed, noise; the codes as int64, embed_sum
            self.pinned_in = self.device.pinned(float_bytes(2 * self.hidden + (self.rows - 1) * self.noise_width))
            self.pinned_out = self.device.pinned(8 * self.rows + float_bytes(self.hidden))
            self.input, self.output = self.device.memory(self.pinned_in.nbytes), self.device.memory(self.pinned_out.nbytes)
            self.pinned_in[:] = 0
            self._frame()  # once as it is: loads the kernels, which a capture may not
            self.device.wait()
            self.graph = self.device.capture(self._frame)
        except BaseException:
            self.device.close()
            raise

    def _frame(self) -> None:
        code0_embed, noise = (self.input + float_bytes(n) for n in (self.hidden, 2 * self.hidden))
        embed_sum, shape = self.output + 8 * self.rows, self.layers.shape
        self.device.upload(self.input, self.pinned_in)
        self.device.copy(embed_sum, code0_embed, float_bytes(self.hidden))
        self._row(0, self.input)
        self._row(1, code0_embed)
        for group in range(self.rows - 1):
            x = self.x if group else code0_embed
            self.layers.project([f"lm_head.{group}.weight"], x, self.logits, norm="model.norm.weight")
            self.layers.kernels.launch(
                "sample",
                (1, 1),
                SAMPLE,
                0,
                ctypes.c_void_p(self.logits),
                ctypes.c_int(shape["vocab_size"]),
                ctypes.c_void_p(noise + float_bytes(group, self.noise_width)),
                ctypes.c_int(self.noise_width),
                ctypes.c_float(shape["top_p"]),
                self.weights.address(f"model.codec_embedding.{group}.weight"),
                ctypes.c_int(self.hidden),
                ctypes.c_void_p(self.output + 8 * group),
                ctypes.c_void_p(self.x),
                ctypes.c_void_p(embed_sum),
            )
            if group < self.rows - 2:
                self._row(group + 2, self.x)
        self.device.download(self.pinned_out, self.output)

    def _row(self, row: int, x: int) -> None:
        for layer in range(self.layers.shape["num_layers"]):
            self.layers.forward(layer, x, self.past + 4 * row, self.turn + self.turn_bytes * row)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wanted = {"last_hidden": (1, self.hidden), "code0_embed": (1, self.hidden), "noise": (self.rows - 1, self.noise_width)}
        if {k: v.shape for k, v in inputs.items()} != wanted:
            raise InputError(f"code_predictor takes {wanted}, got { {k: v.shape for k, v in inputs.items()} }")
        self.pinned_in.view(np.float32)[:] = np.concatenate([inputs[n].ravel() for n in wanted])
        self.device.launch(self.graph)
        self.device.wait()
        codes = self.pinned_out[: 8 * (self.rows - 1)].view(np.int64).copy()
        return {"codes": codes, "embed_sum": self.pinned_out[8 * self.rows :].view(np.float32).copy()[None]}

    def reset(self) -> None:
        """Every frame begins anew."""

    def truncate(self, length: int) -> None:
        raise EngineError("code_predictor: this engine has no state to truncate")

    def __del__(self):
        if self.device:
            self.device.close()
