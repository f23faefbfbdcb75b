"""Engine folder -> open engine. `backend` in config.json is the word that decides who runs it."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from omni_ros.engines.config import EngineConfig, read_config
from omni_ros.engines.engine import Engine, Running
from omni_ros.engines.self_check import check_answers
from omni_ros.engines.sidecar import check_sidecar
from omni_ros.engines.verify import MODES, check_sums, check_sums_behind, is_quick
from omni_ros.errors import EngineError

# backend -> module with `open_engine(directory, config, threads)` and `open_projection(talker, path)`; imported when used
BACKENDS = {name: f"omni_ros.engines.{name}.open" for name in ("onnxruntime", "cuda", "tensorrt")}


def open_engine(directory: str | Path, threads: int = 0, verify: str | None = None) -> Engine:
    """Check and load the engine in `directory`; `threads` = 0 lets the backend use every core.

    `verify`: "sizes", or "full" for every byte, before the engine is used; by default every byte, behind the running
    engine if that takes more than two seconds (see verify.py and `engine.verified`).
    Raises EngineError naming the file when anything is missing, damaged, or disagrees with config.json.
    """
    if verify not in MODES:
        raise ValueError(f"verify is {verify!r}, known are {MODES}")
    directory = Path(directory)
    config = read_config(directory)
    backend = _backend(directory, config)
    check_files(directory, config)
    if verify == "full" and not config.checksums:
        raise EngineError(f"{directory / 'config.json'}: has no checksums; build the engine again, or verify sizes only")
    at_once = verify == "full" or verify is None and is_quick(config)
    if at_once:
        check_sums(directory, config)
    with Running(config.engine):  # an error keeps nothing of what had been loaded
        engine = backend.open_engine(directory, config, threads)
        try:
            check_answers(engine)
        except BaseException:
            engine.close()
            raise
    engine.verified = True if at_once and config.checksums else None
    if verify is None and not at_once:
        check_sums_behind(engine)
    return engine


def open_projection(talker: Engine, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """One of the Talker's projections, [n, Thinker's hidden] -> [n, Talker's hidden], float32, where the Talker runs.

    It is closed with the Talker.
    """
    return _backend(talker.directory, talker.config).open_projection(talker, talker.directory / name)


def _backend(directory: Path, config: EngineConfig) -> ModuleType:
    if config.backend not in BACKENDS:
        raise EngineError(
            f"{directory / 'config.json'}: backend {config.backend!r} is not one of {', '.join(BACKENDS)}; build the engine again"
        )
    try:
        return importlib.import_module(BACKENDS[config.backend])
    except ImportError as e:
        raise EngineError(
            f"{directory}: what runs {config.backend} engines is not installed ({e}); see README.md, or build for another backend"
        ) from e


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
