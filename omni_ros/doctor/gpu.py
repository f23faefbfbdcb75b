"""The GPU with its driver, and what the engines' backends need of CUDA and TensorRT."""

import ctypes
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from omni_ros.doctor.finding import FAILURE, OK, WARNING, Finding, Subject, try_out

DRIVER = Path("/proc/driver/nvidia/version")
PROVIDERS = """
import json, onnxruntime
print(json.dumps(onnxruntime.get_available_providers()))
"""
# Known to fuse layers of these graphs wrongly at batch 1; the self-check of an engine says whether it did.
DOUBTFUL_TENSORRT = ("10.13", "10.14")


def gpu(subject: Subject) -> Iterator[Finding]:
    needed = sorted(subject.backends & {"cuda", "tensorrt"})
    target, cuda = _target()
    if target is None and needed:
        fix = "nvidia-smi has to list it: install the driver; in a container: docker run --gpus all (Jetson: --runtime nvidia)"
        yield Finding("gpu", FAILURE, f"the engines are for {' and '.join(needed)}, and no GPU answers", fix)
    elif target is None:
        yield Finding("gpu", OK, "none answers; engines for the CPU need none")
    else:
        yield Finding("gpu", OK, f"{target}, CUDA {cuda} by its driver")


def cuda(subject: Subject) -> Iterator[Finding]:
    if not subject.backends & {"cuda", "tensorrt"}:
        return
    _, driver = _target()
    for name in ("cuda-bindings", *(("nvidia-cuda-nvrtc",) if "cuda" in subject.backends else ())):
        major = driver.split(".")[0] if driver else "13"
        fix = f"pip install '{name}>={major},<{int(major) + 1}'"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("cuda", FAILURE, f"{name} is not installed", fix)
            continue
        if driver and int(version.split(".")[0]) > int(major):
            yield Finding("cuda", FAILURE, f"{name} {version} is newer than CUDA {driver}, which the driver has", fix)
        else:
            yield Finding("cuda", OK, f"{name} {version}")
    if "cuda" in subject.backends:
        tried = try_out(PROVIDERS)
        if tried.code == 0 and tried.lines and "CUDAExecutionProvider" in tried.lines[-1]:
            yield Finding("cuda", OK, "this onnxruntime has the CUDA provider")
        else:
            fix = 'pip uninstall -y onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]"'
            yield Finding("cuda", FAILURE, "this onnxruntime has no CUDA provider, which encoders and Code2Wav run on", fix)


def tensorrt(subject: Subject) -> Iterator[Finding]:
    from omni_ros.engines.tensorrt.package import import_tensorrt, package_name
    from omni_ros.errors import EngineError

    try:
        trt = import_tensorrt()
    except EngineError as error:
        if "tensorrt" in subject.backends:
            yield Finding("tensorrt", FAILURE, *_halves(str(error)))
        return
    name, version = package_name(trt), str(trt.__version__)
    if name == "tensorrt" and version.startswith(DOUBTFUL_TENSORRT):
        text = f"{name} {version} is known to compute such engines wrongly; their self-check decides"
        yield Finding("tensorrt", WARNING, text, "JetPack 7.2 or newer (TensorRT 10.16), then build the engines again")
    else:
        yield Finding("tensorrt", OK, f"{name} {version}")


def _target() -> tuple[str | None, str]:
    """Compute capability and the CUDA version of the driver: ("sm110", "13.0"); (None, "") without a GPU."""
    from omni_ros.engines.cuda_device import gpu_target

    target, version = gpu_target(), ctypes.c_int()
    if target is None or ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
        return target, ""
    return target, f"{version.value // 1000}.{version.value % 1000 // 10}"


def _halves(message: str) -> tuple[str, str]:
    """Our errors say what is wrong, a colon or semicolon, and what helps."""
    what, _, fix = message.partition(": ")
    return what, fix
