"""CudaDevice on the simulated GPU, and the same on a real one where there is one: the simulation must behave alike.

Needs no TensorRT and none of the session's engines: on a GPU machine, `pytest --noconftest test/test_cuda_device.py`.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cuda_on_cpu import Cuda, CudaError

from omni_ros.engines.cuda_device import CudaDevice, gpu_target, import_cuda
from omni_ros.errors import EngineError


def skip_without_gpu() -> None:
    if gpu_target() is None:
        pytest.skip("a real GPU: there is no NVIDIA GPU here")
    pytest.importorskip("cuda.bindings.runtime", reason="a real GPU: cuda-python is not installed")


@pytest.fixture(params=["simulated", "real"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDevice]:
    if request.param == "real":
        skip_without_gpu()
    else:
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", Cuda(total=1 << 28))
    opened = CudaDevice("test")
    yield opened
    opened.close()


def test_bytes_go_there_and_back(device):
    address, source, target = device.memory(1 << 20), device.pinned(1 << 20), device.pinned(1 << 20)
    source[:] = np.random.default_rng(0).integers(0, 256, 1 << 20)
    device.upload(address, source)
    device.download(target, address)
    device.wait()
    np.testing.assert_array_equal(target, source)
    device.copy(other := device.memory(100), address, 100)
    device.download(target[:100], other)
    device.zero(address + 100, 50)
    device.download(target[100:], address + 100)
    device.wait()
    assert not target[100:150].any() and (target[:100] == source[:100]).all() and (target[150:] == source[150:]).all()
    assert address % 256 == 0 and source.ctypes.data % 256 == 0  # what TensorRT asks of an address


def test_a_graph_reads_what_the_pinned_memory_holds_when_it_is_launched(device):
    first, second, source, target = device.memory(64), device.memory(64), device.pinned(64), device.pinned(64)

    def step(read: int) -> None:
        device.upload(read, source)
        device.download(target, read)

    graphs = [device.capture(step, first), device.capture(step, second)]
    target[:] = 9
    device.wait()
    assert (target == 9).all()  # recording ran nothing
    for n in range(6):
        source[:] = n
        device.launch(graphs[n % 2])
        device.wait()
        assert (target == n).all()


@pytest.mark.parametrize("forbidden", [lambda d: d.memory(8), lambda d: d.wait()])
def test_a_capture_that_fails_ends(device, forbidden):
    address, pinned = device.memory(8), device.pinned(8)
    with pytest.raises(EngineError, match=r"test: CUDA failed \(cudaError(StreamCapture|CapturedEvent).*the next turn may work"):
        device.capture(forbidden, device)
    graph = device.capture(device.zero, address, 8)
    pinned[:] = 1
    device.upload(address, pinned)
    device.launch(graph)
    device.download(pinned, address)
    device.wait()
    assert not pinned.any()


def test_other_threads_allocate_during_a_capture(device):
    def work() -> None:
        device.zero(address, 8)
        other = threading.Thread(target=allocate)
        other.start()
        other.join()

    def allocate() -> None:
        made = CudaDevice("other")
        made.memory(1 << 16)
        made.close()

    address = device.memory(8)
    device.launch(device.capture(work))
    device.wait()


def test_out_of_memory_passes(device):
    with pytest.raises(EngineError, match="cudaErrorMemoryAllocation: .*the next turn may work"):
        device.memory(1 << 50)
    device.memory(1 << 20)
    assert device.free_memory() > 0


def test_close_gives_memory_back(device):
    """The second of two engines fits only when the first is gone."""
    half = device.free_memory() * 6 // 10
    for _ in range(3):
        other = CudaDevice("other")
        other.memory(half)
        other.close()
        other.close()


def test_waiting_leaves_python_to_other_threads(device):
    """Two stages wait side by side."""
    address, pinned = device.memory(1 << 26), device.pinned(1 << 26)
    counted, done = 0, threading.Event()

    def count() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=count)
    thread.start()
    for _ in range(20):
        device.upload(address, pinned)
    device.wait()
    done.set()
    thread.join()
    assert counted > 1


PTX = b""".version 6.3
.target sm_75
.address_size 64
.visible .entry wild() { .reg .b64 %p; .reg .b32 %v; mov.b64 %p, 16; mov.b32 %v, 1; st.global.b32 [%p], %v; ret; }
\0"""


def test_an_error_that_stays_is_told_from_one_that_passes():
    """A kernel that writes where it may not ends the process's use of the GPU; every later call says so."""
    skip_without_gpu()
    done = subprocess.run([sys.executable, __file__], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.stdout.count("restart") == 2, done.stdout + done.stderr


def write_wildly() -> None:
    from cuda.bindings import driver  # only where there is a GPU

    device = CudaDevice("test")
    device.wait()
    module = driver.cuModuleLoadData(PTX)[1]
    kernel = driver.cuModuleGetFunction(module, b"wild")[1]
    driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, int(device.stream), 0, 0)
    for call in (device.wait, lambda: device.memory(8)):
        try:
            call()
        except EngineError as e:
            print(e)
    device.close()


def test_a_sticky_error_of_the_simulation(monkeypatch):
    cuda = Cuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    device = CudaDevice("test")
    cuda.put(device.stream, lambda: cuda.check("kernel"))
    cuda.fail("kernel", error=CudaError.cudaErrorIllegalAddress)
    for call in (device.wait, lambda: device.memory(8)):
        with pytest.raises(EngineError, match="cudaErrorIllegalAddress.*restart"):
            call()


def test_without_cuda_python(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineError, match="pip install cuda-bindings"):
        import_cuda()


if __name__ == "__main__":
    write_wildly()
