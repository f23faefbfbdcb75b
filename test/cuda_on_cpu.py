"""A GPU made of host memory: the part of `cuda.bindings.runtime` that omni_ros uses, stricter than the real one.

Streams put off: work on a stream runs only when somebody waits for it, so a missing wait shows as wrong numbers. Capture
records and runs nothing, and refuses what CUDA refuses. Every address is checked against what is allocated; new memory is
full of NaN. What was not freed can be counted, and any call can be made to fail.
"""

import ctypes
import functools
import inspect
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from enum import IntEnum

import numpy as np


class CudaError(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


STICKY = (CudaError.cudaErrorIllegalAddress, CudaError.cudaErrorLaunchFailure)


class Fault(Exception):
    def __init__(self, error: CudaError):
        self.error = error


class MemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class DeviceAttr(IntEnum):
    cudaDevAttrMultiProcessorCount = 16
    cudaDevAttrIntegrated = 18
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class Handle:
    """A stream, event, graph or executable graph."""

    def __init__(self, kind: str, number: int):
        self.kind, self.number = kind, number
        self.work: list[Callable[[], None]] = []  # of a stream: not yet run; of a graph: recorded
        self.put = self.ran = 0  # of a stream: how much work it was given, and has done
        self.capture: list[Callable[[], None]] | None = None
        self.capturing_thread, self.capture_failed = 0, False
        self.waits_for: tuple[Handle, int] | None = None  # of an event: a stream, and how far it must be

    def __int__(self) -> int:
        return self.number


def api(values: int = 0, in_capture: bool = True, ends: bool = False) -> Callable:
    """A function of CUDA's: returns (error, its `values` values).

    `in_capture` is whether a capturing thread may call it; `ends` what it ends is over even if the call fails.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(self: "Cuda", *arguments: object) -> tuple:
            with self.lock:
                self.calls[function.__name__] += 1
                try:
                    inspect.signature(function).bind(self, *arguments)
                    if ends:
                        result = function(self, *arguments)
                    self.check(function.__name__)
                    capturing = [
                        s for s in self.streams() if s.capture is not None and s.capturing_thread == threading.get_ident()
                    ]
                    if capturing and not in_capture:
                        capturing[0].capture_failed = True
                        raise Fault(CudaError.cudaErrorStreamCaptureUnsupported)
                    if not ends:
                        result = function(self, *arguments)
                except Fault as fault:
                    self.last = fault.error
                    return fault.error, *[None] * values
            return (CudaError.cudaSuccess, *(result if values > 1 else (result,) if values else ()))

        call.simulates_cuda = True
        return call

    return decorate


class Cuda:
    """Stands in for the module; one GPU."""

    cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode, cudaDeviceAttr = CudaError, MemcpyKind, CaptureMode, DeviceAttr
    cudaStreamNonBlocking, cudaEventDisableTiming = 1, 2

    def __init__(self, total: int = 1 << 40, integrated: bool = False):
        self.total, self.integrated, self.lock = total, integrated, threading.RLock()
        self.starts: list[int] = []  # addresses of what is allocated, sorted
        self.allocations: dict[int, tuple[str, int, np.ndarray]] = {}  # address -> "device" or "pinned", size, what keeps it
        self.handles: dict[int, Handle] = {}
        self.calls: Counter = Counter()
        self.faults: dict[str, tuple[int, CudaError]] = {}  # function -> which of its next calls fails, and how
        self.sticky, self.last, self.numbers = CudaError.cudaSuccess, CudaError.cudaSuccess, 1000

    # ---- for tests ----------------------------------------------------------------------------------------------
    def fail(self, function: str, nth: int = 1, error: CudaError = CudaError.cudaErrorInvalidValue) -> None:
        """The nth of the calls to come fails; "kernel" is a network while it runs."""
        self.faults[function] = (nth, error)

    def alive(self) -> Counter:
        """What was made and not freed, by kind."""
        return Counter(h.kind for h in self.handles.values()) + Counter(kind for kind, _, _ in self.allocations.values())

    def check(self, function: str) -> None:
        """Raise the fault that is due in `function`, or the error that ended the context."""
        nth, error = self.faults.get(function, (0, CudaError.cudaSuccess))
        if nth:
            self.faults[function] = (nth - 1, error)
        if nth == 1:
            self.sticky = error if error in STICKY else self.sticky
            raise Fault(error)
        if self.sticky and function != "cudaGetLastError":
            raise Fault(self.sticky)

    # ---- memory -------------------------------------------------------------------------------------------------
    def allocate(self, kind: str, size: int) -> int:
        if kind == "device" and size > self.free_bytes():
            raise Fault(CudaError.cudaErrorMemoryAllocation)
        buffer = np.empty(size + 256, np.uint8)
        if size < 1 << 24:
            buffer[:] = 0xFF
        address = -(-buffer.ctypes.data // 256) * 256
        self.starts.insert(bisect_right(self.starts, address), address)
        self.allocations[address] = (kind, size, buffer)
        return address

    def free(self, kind: str, address: int) -> None:
        if self.allocations.get(address, ("",))[0] != kind:
            raise Fault(CudaError.cudaErrorInvalidValue)
        del self.allocations[address]
        self.starts.remove(address)

    def free_bytes(self) -> int:
        return self.total - sum(size for kind, size, _ in self.allocations.values() if kind == "device")

    def view(self, kind: str, address: int, size: int) -> np.ndarray:
        """uint8 [size] at an address, all of it inside one allocation of this kind."""
        i = bisect_right(self.starts, address) - 1
        found, allocated, _ = self.allocations[self.starts[i]] if i >= 0 else ("", 0, None)
        if found != kind or address + size > self.starts[i] + allocated:
            raise Fault(CudaError.cudaErrorIllegalAddress)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)

    @api(values=1, in_capture=False)
    def cudaMalloc(self, size):
        return self.allocate("device", size)

    @api(in_capture=False)
    def cudaFree(self, devPtr):
        self.free("device", devPtr)

    @api(values=1, in_capture=False)
    def cudaMallocHost(self, size):
        return self.allocate("pinned", size)

    @api(in_capture=False)
    def cudaFreeHost(self, ptr):
        self.free("pinned", ptr)

    @api(values=2)
    def cudaMemGetInfo(self):
        return self.free_bytes(), self.total

    @api(values=1)
    def cudaDeviceGetAttribute(self, attr, device):
        return {
            DeviceAttr.cudaDevAttrIntegrated: int(self.integrated),
            DeviceAttr.cudaDevAttrMultiProcessorCount: 2,
            DeviceAttr.cudaDevAttrComputeCapabilityMajor: 9,
            DeviceAttr.cudaDevAttrComputeCapabilityMinor: 0,
        }[attr]

    # ---- streams and events -------------------------------------------------------------------------------------
    def streams(self) -> list[Handle]:
        return [h for h in self.handles.values() if h.kind == "stream"]

    def make(self, kind: str) -> Handle:
        self.numbers += 1
        self.handles[self.numbers] = Handle(kind, self.numbers)
        return self.handles[self.numbers]

    def live(self, kind: str, handle: Handle | int) -> Handle:
        found = self.handles.get(int(handle))
        if found is None or found.kind != kind:
            raise Fault(CudaError.cudaErrorInvalidResourceHandle)
        return found

    def put(self, stream: Handle | int, work: Callable[[], None]) -> None:
        """Put work on a stream, or into the graph that is recorded from it."""
        stream = self.live("stream", stream)
        if stream.capture is not None:
            stream.capture.append(work)
        else:
            stream.work.append(work)
            stream.put += 1

    def catch_up(self, stream: Handle, until: int) -> None:
        while stream.ran < until:
            stream.ran += 1
            try:
                stream.work.pop(0)()
            except Fault as fault:
                self.sticky = fault.error
                raise

    @api(values=1)
    def cudaStreamCreateWithFlags(self, flags):
        return self.make("stream")

    @api(in_capture=False)
    def cudaStreamSynchronize(self, stream):
        self.catch_up(self.live("stream", stream), stream.put)

    @api()
    def cudaStreamDestroy(self, stream):
        del self.handles[int(self.live("stream", stream))]

    @api(values=1)
    def cudaEventCreateWithFlags(self, flags):
        return self.make("event")

    @api()
    def cudaEventRecord(self, event, stream):
        self.live("event", event).waits_for = (self.live("stream", stream), stream.put)

    @api(in_capture=False)
    def cudaEventSynchronize(self, event):
        self.catch_up(*self.live("event", event).waits_for)

    @api()
    def cudaEventDestroy(self, event):
        del self.handles[int(self.live("event", event))]

    @api()
    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        to = "pinned" if kind == MemcpyKind.cudaMemcpyDeviceToHost else "device"
        from_ = "pinned" if kind == MemcpyKind.cudaMemcpyHostToDevice else "device"

        def copy() -> None:
            self.view(to, dst, count)[:] = self.view(from_, src, count)

        self.put(stream, copy)

    @api()
    def cudaMemsetAsync(self, devPtr, value, count, stream):
        self.put(stream, lambda: self.view("device", devPtr, count).fill(value))

    # ---- graphs -------------------------------------------------------------------------------------------------
    @api()
    def cudaStreamBeginCapture(self, stream, mode):
        stream = self.live("stream", stream)
        stream.capture, stream.capture_failed, stream.capturing_thread = [], False, threading.get_ident()

    @api(values=1, ends=True)
    def cudaStreamEndCapture(self, stream):
        stream = self.live("stream", stream)
        work, stream.capture = stream.capture, None
        if stream.capture_failed:
            raise Fault(CudaError.cudaErrorStreamCaptureInvalidated)
        if not self.faults.get("cudaStreamEndCapture", (0,))[0] == 1:
            graph = self.make("graph")
            graph.work = work
            return graph

    @api(values=1)
    def cudaGraphInstantiate(self, graph, flags):
        executable = self.make("executable")
        executable.work = self.live("graph", graph).work
        return executable

    @api()
    def cudaGraphLaunch(self, graphExec, stream):
        for work in self.live("executable", graphExec).work:
            self.put(stream, work)

    @api()
    def cudaGraphDestroy(self, graph):
        del self.handles[int(self.live("graph", graph))]

    @api()
    def cudaGraphExecDestroy(self, graphExec):
        del self.handles[int(self.live("executable", graphExec))]

    # ---- errors -------------------------------------------------------------------------------------------------
    def cudaGetErrorName(self, error):
        return CudaError.cudaSuccess, error.name.encode()

    def cudaGetErrorString(self, error):
        return CudaError.cudaSuccess, f"in words {error.name}".encode()

    @api(values=0)
    def cudaGetLastError(self):
        self.last = CudaError.cudaSuccess
