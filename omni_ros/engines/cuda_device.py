"""One engine's share of the GPU: a stream, memory and recorded graphs, through NVIDIA's cuda-python.

The stream is non-blocking: engines of different stages run side by side. Whatever is made here is freed by `close`, in
reverse order. A call that fails raises EngineError with CUDA's words.
"""

import ctypes
import importlib
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from omni_ros.errors import EngineError

MEMINFO = Path("/proc/meminfo")


def import_cuda() -> ModuleType:
    """`cuda.bindings.runtime`. Raises EngineError that says how to install it."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as e:
        raise EngineError(
            f"cuda-python is not installed ({e}): pip install cuda-bindings, of the CUDA version (12 or 13) that nvidia-smi shows"
        ) from e


def gpu_target() -> str | None:
    """Compute capability of the first GPU as "sm110", or None without a GPU; asks the driver, not a package."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    if cuda.cuInit(0):
        return None
    values = [ctypes.c_int(), ctypes.c_int()]
    for value, attribute in zip(values, (75, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0):
            return None
    return f"sm{values[0].value}{values[1].value}"


class CudaDevice:
    """One thread at a time, which its engine sees to; calls return before the GPU has done the work, except `wait`."""

    stream: Any = None

    def __init__(self, name: str):
        """`name` is the engine's, for messages."""
        self.cuda, self.name, self.undo = import_cuda(), name, ExitStack()
        self.stream = self.call(self.cuda.cudaStreamCreateWithFlags, self.cuda.cudaStreamNonBlocking)
        self.undo.callback(self.cuda.cudaStreamDestroy, self.stream)
        try:
            self.done = self.call(self.cuda.cudaEventCreateWithFlags, self.cuda.cudaEventDisableTiming)
            self.undo.callback(self.cuda.cudaEventDestroy, self.done)
        except EngineError:
            self.close()
            raise

    def close(self) -> None:
        """Free everything, once the GPU no longer uses it; a second call does nothing."""
        if self.stream is not None:
            self.cuda.cudaStreamSynchronize(self.stream)
        self.stream = None
        self.undo.close()

    @property
    def closed(self) -> bool:
        return self.stream is None

    def __del__(self) -> None:
        """Last resort for an engine that nobody closed: it holds the device, so no work of its own can be under way."""
        if self.stream is not None:
            self.close()

    def call(self, function: Callable, *arguments: object) -> Any:
        """The (first) value that a CUDA call returns. Raises EngineError when it returns an error."""
        error, *values = function(*arguments)
        if error != self.cuda.cudaError_t.cudaSuccess:
            name, text = (describe(error)[1].decode() for describe in (self.cuda.cudaGetErrorName, self.cuda.cudaGetErrorString))
            raise EngineError(f"{self.name}: CUDA failed ({name}: {text}); {self.outlook()}")
        return values[0] if values else None

    def outlook(self) -> str:
        """What the caller can do after an error."""
        self.cuda.cudaGetLastError()  # forgets an error that can be forgotten
        error = self.cuda.cudaMemGetInfo()[0]  # after one that cannot, every call returns it
        if error == self.cuda.cudaError_t.cudaSuccess:
            return "the GPU still answers, the next turn may work"
        return "the GPU has given up on this process: restart it"

    # ---- memory -----------------------------------------------------------------------------------------------------
    def free_memory(self) -> int:
        """Bytes that can be allocated."""
        free: int = self.call(self.cuda.cudaMemGetInfo)
        if self.call(self.cuda.cudaDeviceGetAttribute, self.cuda.cudaDeviceAttr.cudaDevAttrIntegrated, 0):
            # A Jetson's GPU has the CPU's memory; CUDA counts files that the kernel keeps in it, and would drop, as used.
            available = re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text())
            free = max(free, int(available[1]) << 10) if available else free
        return free

    def memory(self, size: int) -> int:
        """The address of `size` new bytes of GPU memory; TensorRT wants an address even for none."""
        address: int = self.call(self.cuda.cudaMalloc, max(size, 1))
        self.undo.callback(self.cuda.cudaFree, address)
        return address

    def pinned(self, size: int) -> np.ndarray:
        """uint8 [size] of host memory that the GPU copies from and to by itself."""
        address = self.call(self.cuda.cudaMallocHost, max(size, 1))
        self.undo.callback(self.cuda.cudaFreeHost, address)
        return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), np.uint8)

    def constant(self, array: np.ndarray) -> int:
        """The address of a copy of `array` in GPU memory."""
        pinned, address = self.pinned(array.nbytes), self.memory(array.nbytes)
        pinned[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.upload(address, pinned)
        self.wait()
        return address

    # ---- work for the stream ----------------------------------------------------------------------------------------
    def upload(self, address: int, pinned: np.ndarray) -> None:
        self._copy(address, pinned.ctypes.data, pinned.nbytes, self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, pinned: np.ndarray, address: int) -> None:
        self._copy(pinned.ctypes.data, address, pinned.nbytes, self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def copy(self, target: int, source: int, size: int) -> None:
        self._copy(target, source, size, self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def _copy(self, target: int, source: int, size: int, kind: object) -> None:
        self.call(self.cuda.cudaMemcpyAsync, target, source, size, kind, self.stream)

    def zero(self, address: int, size: int) -> None:
        self.call(self.cuda.cudaMemsetAsync, address, 0, size, self.stream)

    def capture(self, work: Callable[..., None], *arguments: object) -> Any:
        """A graph of what `work(*arguments)` puts on the stream; nothing is run. Other threads may use CUDA meanwhile."""
        cuda = self.cuda
        self.call(cuda.cudaStreamBeginCapture, self.stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        with ExitStack() as template:
            try:
                work(*arguments)
            finally:  # a capture that failed has to end, too
                error, graph = cuda.cudaStreamEndCapture(self.stream)
                if error == cuda.cudaError_t.cudaSuccess:
                    template.callback(cuda.cudaGraphDestroy, graph)
            self.call(lambda: (error,))
            executable = self.call(cuda.cudaGraphInstantiate, graph, 0)
        self.undo.callback(cuda.cudaGraphExecDestroy, executable)
        return executable

    def launch(self, graph: Any) -> None:
        self.call(self.cuda.cudaGraphLaunch, graph, self.stream)

    def wait(self) -> None:
        """Return when the GPU has done all of this stream's work; other streams go on."""
        self.call(self.cuda.cudaEventRecord, self.done, self.stream)
        self.call(self.cuda.cudaEventSynchronize, self.done)
