"""An engine is a graph plus its state. Callers give named arrays and get named arrays; caches never leave the backend."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from omni_ros.engines import cuda_device
from omni_ros.engines.sidecar import Projection, check_sidecar
from omni_ros.errors import EngineError, KVCacheFullError


class Engine(Protocol):
    """What every backend offers. Stateful graphs count rows in `length`; others stay at 0."""

    config: dict  # the engine directory's config.json
    directory: Path
    length: int

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass. Raises KVCacheFullError when the rows do not fit, leaving the state as it was.

        Do not write into an array that was passed: a backend that has it on its device already does not send it again.
        """
        ...

    def reset(self) -> None:
        """Forget all state: the next run starts a new sequence."""
        ...

    def truncate(self, length: int) -> None:
        """Keep only the first `length` rows of the KV cache (a prefix shared with the next prompt)."""
        ...


def open_engine(directory: str | Path, threads: int = 0) -> Engine:
    """Check and load the engine in `directory`; `threads` = 0 lets the backend use every core.

    Raises EngineError naming the file when anything is missing, truncated, or disagrees with config.json.
    """
    directory = Path(directory)
    config = read_config(directory)
    check_files(directory, config)
    if config["backend"] == "cuda" and cuda_device.gpu_target() is None:
        raise EngineError(
            f"{directory}: built for a GPU, and none answers here (nvidia-smi shows what the driver sees); or "
            "build the engines with --device cpu"
        )
    if config["engine"] == "code_predictor" and config["backend"] == "cuda":
        from omni_ros.engines.cuda.code_predictor import CudaCodePredictor  # cuda-python, only when used

        return CudaCodePredictor(directory, config)
    if "decoder" in config and config["backend"] == "cuda":
        from omni_ros.engines.cuda.decoder import CudaDecoder  # cuda-python, only when used

        return CudaDecoder(directory, config)
    if config["backend"] == "cuda":
        from omni_ros.engines.cuda.onnxruntime_engine import OnnxRuntimeCudaEngine  # heavy import, only when used

        return OnnxRuntimeCudaEngine(directory, config, threads)
    if config["backend"] == "onnxruntime":
        from omni_ros.engines.onnxruntime.engine import OnnxRuntimeEngine  # heavy import, only when used

        return OnnxRuntimeEngine(directory, config, threads)
    if config["backend"] == "tensorrt":
        from omni_ros.engines.tensorrt.engine import TensorRTEngine  # heavy import, only when used

        return TensorRTEngine(directory, config)
    raise EngineError(
        f"{directory / 'config.json'}: backend {config['backend']!r} is not available here; "
        "build the engines with --backend onnxruntime"
    )


def open_projection(talker: Engine, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """One of the Talker's projections, [n, Thinker's hidden] -> [n, Talker's hidden], float32, where the Talker runs."""
    if talker.config["backend"] == "cuda":
        from omni_ros.engines.cuda.projection import CudaProjection  # cuda-python, only when used

        return CudaProjection(talker.directory / name, talker.config["decoder"])
    return Projection(talker.directory / name)


class Section(dict):
    """An object inside config.json: asking for a key that it lacks names the file."""

    def __init__(self, values: dict, path: Path):
        super().__init__(values)
        self.path = path

    def __missing__(self, key: str) -> None:
        raise EngineError(f"{self.path}: lacks {key}; build the engine again")


def read_config(directory: Path) -> dict:
    path = directory / "config.json"
    if not path.is_file():
        raise EngineError(f"{path}: not found; run `python -m offline.build_engines ONNX ENGINES` and give its ENGINES")
    try:
        config = json.loads(path.read_text(), object_hook=lambda values: Section(values, path))
    except ValueError as e:
        raise EngineError(f"{path}: not valid JSON ({e}); build the engine again") from e
    if not isinstance(config, dict):
        raise EngineError(f"{path}: must be a JSON object; build the engine again")
    kinds = {
        "engine": str,
        "backend": str,
        "inputs": list,
        "outputs": list,
        "state": list,
        "model": dict,
        "limits": dict,
        "files": dict,
    }
    bad = [key for key, kind in kinds.items() if not isinstance(config.get(key), kind)]
    if bad:
        raise EngineError(f"{path}: lacks {', '.join(bad)}; build the engine again")
    return config


def check_files(directory: Path, config: dict) -> None:
    """Every file has the size it was built with, and every sidecar its tensors, with numbers in them."""
    for name, size in config["files"].items():
        path = directory / name
        if not path.is_file():
            raise EngineError(f"{path}: not found; build the engine again")
        if path.stat().st_size != size:
            raise EngineError(f"{path}: {path.stat().st_size} bytes, built with {size}; copy or build the engine again")
    sidecars = config.get("sidecars", {})
    unknown = sorted({name for name in config["files"] if name.endswith(".safetensors")} - set(sidecars))
    if unknown:
        raise EngineError(f"{directory / 'config.json'}: does not say what is in {', '.join(unknown)}; build the engine again")
    for name, tensors in sidecars.items():
        check_sidecar(directory / name, tensors)


def check_rows(engine: Engine, inputs: dict[str, np.ndarray]) -> int:
    """How many rows a run adds to the engine's state. Raises KVCacheFullError when they do not fit.

    For backends: their `counts` and `axis` say which dimension of which input is rows, `capacity` how many fit.
    """
    if not engine.counts:
        return 0
    rows = inputs[engine.counts].shape[engine.axis]
    if engine.length + rows > engine.capacity:
        raise KVCacheFullError(
            f"{engine.config['engine']}: {engine.length} + {rows} rows do not fit its capacity of "
            f"{engine.capacity}; build with a larger one or shorten the turn"
        )
    return rows
