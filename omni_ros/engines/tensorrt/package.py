"""Which TensorRT and which GPU are here, and whether an engine was built for them.

A TensorRT engine runs on the kind of GPU and with the version of TensorRT that it was built for, and nowhere else.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from omni_ros.engines.config import EngineConfig, StateConfig, TensorConfig, TensorRTConfig
from omni_ros.engines.cuda_device import gpu_target
from omni_ros.errors import EngineError

PACKAGES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")  # the last: RTX wheels without their meta package


def import_tensorrt(package: str | None = None) -> ModuleType:
    """`tensorrt` (10.13 or newer), else `tensorrt_rtx`; `package`: only this one of the two.

    Raises EngineError that says how to install one.
    """
    for name in PACKAGES:
        if package and _package(name) != package:
            continue
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise EngineError(
        f"{package or 'TensorRT'} is not installed: on a Jetson TensorRT is part of JetPack (apt install "
        "python3-libnvinfer); elsewhere pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"
    )


def package_name(trt: ModuleType) -> str:
    return _package(trt.__name__)


def _package(module: str) -> str:
    return "tensorrt_rtx" if "rtx" in module else "tensorrt"


def check_machine(directory: Path, built: TensorRTConfig) -> ModuleType:
    """The TensorRT that can load the engine in `directory`; `built` is the tensorrt section of its config.json.

    Raises EngineError with the command that builds the engine for this machine.
    """
    package, version, target = built.package, built.version, built.target
    present = gpu_target()
    if present is None:
        raise EngineError(
            f"{directory}: built for a {target} GPU, and no GPU answers here (nvidia-smi shows what the driver "
            "sees); for this machine's CPU: python -m offline.build_engines ONNX ENGINES --backend onnxruntime"
        )
    if target != present:
        raise EngineError(f"{directory}: built for a {target} GPU, the one here is {present}; {rebuild_command(present)}")
    try:
        trt = import_tensorrt(package)
    except EngineError as e:
        raise EngineError(f"{directory}: built with {package} {version}; {e}; or {rebuild_command(present)}") from e
    if trt.__version__ != version:
        raise EngineError(
            f"{directory}: built with {package} {version}, here is {trt.__version__}; install the version that it "
            f"was built with, or {rebuild_command(present)}"
        )
    return trt


def check_plan(trt: ModuleType, engine: Any, directory: Path, config: EngineConfig, built: TensorRTConfig) -> None:
    """config.json and the trt.ICudaEngine must describe the same tensors and profiles, or EngineError."""
    where, profiles = directory / "config.json", list(built.profiles.values())
    declared: dict[str, TensorConfig | StateConfig] = {t.name: t for t in config.inputs + config.outputs}
    declared |= {s.input: s for s in config.state} | {s.output: s for s in config.state}
    found = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    if set(declared) != set(found):
        raise EngineError(f"{where}: disagrees with model.engine about {sorted(set(declared) ^ set(found))}; build again")
    for name in found:
        shape, dtype = list(engine.get_tensor_shape(name)), np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
        wanted = [d if isinstance(d, int) else -1 for d in declared[name].shape]
        # TensorRT does not find out every size that the exporter knows: the row of the logits is -1 to it
        same = len(shape) == len(wanted) and all(a == b or -1 in (a, b) for a, b in zip(shape, wanted))
        if not same or dtype != declared[name].dtype:
            raise EngineError(
                f"{where}: says {name} is {declared[name].dtype}{wanted}, model.engine has {dtype}{shape}; build again"
            )
    if len(profiles) != engine.num_optimization_profiles or not set().union(*profiles) <= set(found):
        raise EngineError(f"{where}: disagrees with model.engine about its profiles; build again")
    compiled = [
        {name: [list(shape) for shape in engine.get_tensor_profile_shape(name, i)] for name in profile}
        for i, profile in enumerate(profiles)
    ]
    if compiled != profiles:
        raise EngineError(f"{where}: disagrees with model.engine about its profiles; build again")


def rebuild_command(target: str) -> str:
    """For error messages about an engine that has to be built again for the GPU here."""
    return f"build it for this machine: python -m offline.build_engines ONNX ENGINES --backend tensorrt --target {target}"


def make_logger(trt: Any) -> Any:
    """A trt.ILogger that collects errors in `.errors`; warnings are about details that the user cannot change."""

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()
