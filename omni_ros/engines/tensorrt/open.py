"""TensorRT or TensorRT-RTX on an NVIDIA GPU; the Talker's projections stay on the CPU."""

import hashlib
from pathlib import Path

import numpy as np

from omni_ros.engines.config import EngineConfig
from omni_ros.engines.engine import Engine
from omni_ros.engines.sidecar import Projection
from omni_ros.engines.tensorrt.engine import TensorRTEngine
from omni_ros.engines.tensorrt.package import check_machine, rebuild_command
from omni_ros.errors import EngineError


def open_engine(directory: Path, config: EngineConfig, threads: int) -> TensorRTEngine:
    built, path = config.tensorrt, directory / "model.engine"
    if built is None:
        raise EngineError(f"{directory / 'config.json'}: lacks tensorrt; build the engine again")
    trt = check_machine(directory, built)
    try:
        plan = np.memmap(path, np.uint8, mode="r")  # only while it is loaded
    except (OSError, ValueError) as e:
        raise EngineError(f"{path}: cannot be read ({e}); build the engine again") from e
    if hashlib.sha256(plan.data).hexdigest() != config.engine_sha256:
        raise EngineError(
            f"{path}: damaged (its checksum differs from config.json); copy it again, or {rebuild_command(built.target)}"
        )
    return TensorRTEngine(directory, config, built, trt, plan)


def open_projection(talker: Engine, path: Path) -> Projection:
    return Projection(path)
