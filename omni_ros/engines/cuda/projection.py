"""A Talker's text_projection or hidden_projection on an NVIDIA GPU, with the kernels of kernels/prefill/.

On a CPU these two products, a few rows of them, take longer than the engines between which they stand.
"""

from pathlib import Path

import numpy as np

from omni_ros.engines.config import DecoderConfig
from omni_ros.engines.cuda.arguments import GemmArgs, Int, Matrix, Pointer, Stacked, float_bytes, half_bytes
from omni_ros.engines.cuda.compiler import DECODE, PREFILL
from omni_ros.engines.cuda.kernels import Kernels
from omni_ros.engines.cuda.prefill import gemm
from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.engines.engine import Running
from omni_ros.engines.sidecar import open_projection_weights
from omni_ros.errors import EngineError

MAX_ROWS = 256  # at a time


class CudaProjection:
    """See sidecar.Projection. Weights and what goes into a product are float16, sums float32. Safe from any thread."""

    def __init__(self, path: Path, config: DecoderConfig):
        """`config` is the Talker's: one set of kernels serves both."""
        self.path, self.running = path, Running(path.name)
        layers = open_projection_weights(path)
        self.sizes = [layers[0][0].shape[1], *(len(weight) for weight, _ in layers)]
        self.device = CudaDevice(path.stem)
        try:
            self.kernels = Kernels(self.device, path.parent, config, DECODE, PREFILL)
            self.weights = [tuple(self.device.constant(a.astype(np.float16)) for a in layer) for layer in layers]
            self.rows = self.device.memory(4)
            self.values = [self.device.memory(float_bytes(MAX_ROWS, size)) for size in self.sizes]  # x, fc1's, the result
            self.halves = self.device.memory(half_bytes(MAX_ROWS, max(self.sizes)))
            self.pinned_rows = self.device.pinned(4).view(np.int32)
            self.pinned_in = self.device.pinned(float_bytes(MAX_ROWS, self.sizes[0]))
            self.pinned_out = self.device.pinned(float_bytes(MAX_ROWS, self.sizes[-1]))
        except BaseException:
            self.close()
            raise

    def __call__(self, x: np.ndarray) -> np.ndarray:
        with self.running:
            if self.device.closed:
                raise EngineError(f"{self.path}: was closed with its Talker; open that again")
            parts = [self._run(x[i : i + MAX_ROWS]) for i in range(0, len(x), MAX_ROWS)]
        return np.concatenate(parts) if parts else np.empty((0, self.sizes[-1]), np.float32)

    def _run(self, x: np.ndarray) -> np.ndarray:
        count = len(x)
        given = self.pinned_in[: float_bytes(count, self.sizes[0])]
        given.view(np.float32).reshape(x.shape)[:] = x
        self.pinned_rows[0] = count
        self.device.upload(self.rows, self.pinned_rows)
        self.device.upload(self.values[0], given)
        for i, (weight, bias) in enumerate(self.weights):
            width, outputs = self.sizes[i : i + 2]
            silu = Int(i)  # before the second
            x_in, halves, rows = Pointer(self.values[i]), Pointer(self.halves), Pointer(self.rows)
            self.kernels.launch("to_halves", (count, 1), 256, 0, x_in, Int(width), silu, halves, rows)
            matrices = Stacked.of((Matrix(weight), outputs))
            gemm(self.kernels, matrices, outputs, count, GemmArgs(self.halves, width, bias, self.values[i + 1], 0, self.rows))
        made = self.pinned_out[: float_bytes(count, self.sizes[-1])]
        self.device.download(made, self.values[-1])
        self.device.wait()
        return made.view(np.float32).reshape(count, -1).copy()

    def close(self) -> None:
        with self.running:
            self.device.close()
