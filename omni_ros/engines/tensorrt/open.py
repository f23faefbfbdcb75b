"""TensorRT or TensorRT-RTX on an NVIDIA GPU; the Talker's projections stay on the CPU."""

from pathlib import Path

from omni_ros.engines.config import EngineConfig
from omni_ros.engines.engine import Engine
from omni_ros.engines.sidecar import Projection
from omni_ros.engines.tensorrt.engine import TensorRTEngine
from omni_ros.errors import EngineError


def open_engine(directory: Path, config: EngineConfig, threads: int) -> TensorRTEngine:
    if config.tensorrt is None:
        raise EngineError(f"{directory / 'config.json'}: lacks tensorrt; build the engine again")
    return TensorRTEngine(directory, config)


def open_projection(talker: Engine, path: Path) -> Projection:
    return Projection(path)
