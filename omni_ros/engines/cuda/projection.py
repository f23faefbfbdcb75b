"""A Talker's text_projection or hidden_projection on an NVIDIA GPU, with the kernels of prefill/.

On a CPU these two products, a few rows of them, take longer than the engines between which they stand.
"""

import ctypes
import threading
from pathlib import Path

import numpy as np

from omni_ros.engines.cuda.compiler import DECODE, PREFILL, Kernels, Matrix, Product, Stacked, float_bytes
from omni_ros.engines.cuda.prefill import multiply
from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.engines.sidecar import open_sidecar

MOST = 256  # rows at a time
STEPS = ("linear_fc1", "linear_fc2")


class CudaProjection:
    """See sidecar.Projection. Weights and what goes into a product are float16, sums float32. Safe from any thread."""

    device: CudaDevice | None = None

    def __init__(self, path: Path, shape: dict):
        """`shape` is the Talker's config.json's "decoder": one set of kernels serves both."""
        tensors, self.lock = open_sidecar(path), threading.Lock()
        self.sizes = [tensors["linear_fc1.weight"].shape[1], *(len(tensors[f"{s}.weight"]) for s in STEPS)]
        self.device = CudaDevice(path.stem)
        try:
            self.kernels = Kernels(self.device, shape["head_dim"], shape["num_heads"] // shape["num_kv_heads"], DECODE, PREFILL)
            constant = lambda name: self.device.constant(np.asarray(tensors[name], np.float16))  # noqa: E731
            self.weights = [(constant(f"{s}.weight"), constant(f"{s}.bias")) for s in STEPS]
            self.rows = self.device.memory(4)
            self.values = [self.device.memory(float_bytes(MOST, size)) for size in self.sizes]  # x, fc1's, the result
            self.halves = self.device.memory(float_bytes(MOST, max(self.sizes)) // 2)
            self.pinned_rows = self.device.pinned(4).view(np.int32)
            self.pinned_in, self.pinned_out = (self.device.pinned(float_bytes(MOST, n)) for n in (self.sizes[0], self.sizes[-1]))
        except BaseException:
            self.device.close()
            raise

    def __call__(self, x: np.ndarray) -> np.ndarray:
        with self.lock:
            parts = [self._run(x[i : i + MOST]) for i in range(0, len(x), MOST)]
        return np.concatenate(parts) if parts else np.empty((0, self.sizes[-1]), np.float32)

    def _run(self, x: np.ndarray) -> np.ndarray:
        count = len(x)
        given = self.pinned_in[: float_bytes(count, self.sizes[0])]
        given.view(np.float32).reshape(x.shape)[:] = x
        self.pinned_rows[0] = count
        self.device.upload(self.rows, self.pinned_rows)
        self.device.upload(self.values[0], given)
        rows, halves = ctypes.c_void_p(self.rows), ctypes.c_void_p(self.halves)
        for i, (weight, bias) in enumerate(self.weights):
            width, outputs = self.sizes[i : i + 2]
            self.kernels.launch(
                "to_halves",
                (count, 1),
                256,
                0,
                ctypes.c_void_p(self.values[i]),
                ctypes.c_int(width),
                ctypes.c_int(i),
                halves,
                rows,
            )  # SiLU before the second
            matrices = Stacked((Matrix * 3)(Matrix(weight)), (ctypes.c_int * 3)(outputs))
            multiply(self.kernels, matrices, outputs, count, Product(self.halves, width, bias, self.values[i + 1], 0, self.rows))
        made = self.pinned_out[: float_bytes(count, self.sizes[-1])]
        self.device.download(made, self.values[-1])
        self.device.wait()
        return made.view(np.float32).reshape(count, -1).copy()

    def __del__(self):
        if self.device:
            self.device.close()
