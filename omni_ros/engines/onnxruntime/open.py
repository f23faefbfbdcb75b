"""ONNX Runtime on the CPU."""

from pathlib import Path

from omni_ros.engines.config import EngineConfig
from omni_ros.engines.engine import Engine
from omni_ros.engines.onnxruntime.engine import OnnxRuntimeEngine
from omni_ros.engines.sidecar import Projection


def open_engine(directory: Path, config: EngineConfig, threads: int) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(directory, config, threads)


def open_projection(talker: Engine, path: Path) -> Projection:
    return Projection(path)
