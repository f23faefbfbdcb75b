"""Engine folder -> open engine. `backend` in config.json is the word that decides who runs it."""

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from omni_ros.engines.config import EngineConfig, read_config
from omni_ros.engines.engine import Engine
from omni_ros.engines.sidecar import check_sidecar
from omni_ros.errors import EngineError

# backend -> module with `open_engine(directory, config, threads)` and `open_projection(directory, config)`; imported when used
BACKENDS = {name: f"omni_ros.engines.{name}.open" for name in ("onnxruntime", "cuda", "tensorrt")}


def open_engine(directory: str | Path, threads: int = 0) -> Engine:
    """Check and load the engine in `directory`; `threads` = 0 lets the backend use every core.

    Raises EngineError naming the file when anything is missing, truncated, or disagrees with config.json.
    """
    directory = Path(directory)
    config = read_config(directory)
    backend = _backend(directory, config)
    check_files(directory, config)
    return importlib.import_module(backend).open_engine(directory, config, threads)


def open_projection(talker: Engine, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """One of the Talker's projections, [n, Thinker's hidden] -> [n, Talker's hidden], float32, where the Talker runs."""
    backend = _backend(talker.directory, talker.config)
    return importlib.import_module(backend).open_projection(talker.directory / name, talker.config)


def _backend(directory: Path, config: EngineConfig) -> str:
    if config.backend not in BACKENDS:
        raise EngineError(
            f"{directory / 'config.json'}: backend {config.backend!r} is not one of {', '.join(BACKENDS)}; build the engine again"
        )
    return BACKENDS[config.backend]


def check_files(directory: Path, config: EngineConfig) -> None:
    """Every file has the size it was built with, and every sidecar its tensors, with numbers in them."""
    for name, size in config.files.items():
        path = directory / name
        if not path.is_file():
            raise EngineError(f"{path}: not found; build the engine again")
        if path.stat().st_size != size:
            raise EngineError(f"{path}: {path.stat().st_size} bytes, built with {size}; copy or build the engine again")
    unknown = sorted({name for name in config.files if name.endswith(".safetensors")} - set(config.sidecars))
    if unknown:
        raise EngineError(f"{directory / 'config.json'}: does not say what is in {', '.join(unknown)}; build the engine again")
    for name, tensors in config.sidecars.items():
        check_sidecar(directory / name, tensors)
