"""TensorRT 8.6 in the clothes of TensorRT 10: what we ask of `tensorrt`, on the last wheel with libraries inside.

Newer wheels on PyPI bring none, so 8.6.0 is what can be run where nothing but a package index is at hand. Its parser reads
opset 17 (opset_17.py does the rest), whole numbers are int32, the memory of contexts is set by other names, and a build has no
progress to tell. cuBLAS and cuDNN are not used: without tactics of theirs, empty libraries of their names satisfy the loader.

    with tensorrt_8(): ...     # `import tensorrt` gives it
"""

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from opset_17 import load, to_opset_17


class ExecutionContextAllocationStrategy(Enum):
    USER_MANAGED = 2


class IProgressMonitor:
    """8.6 tells no progress."""


class Wrapper:
    """Whatever is not said otherwise is the wrapped object's."""

    def __init__(self, wrapped: Any):
        object.__setattr__(self, "wrapped", wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


class Context(Wrapper):
    def set_device_memory(self, memory: int, size: int) -> None:
        self.wrapped.device_memory = memory


class Engine(Wrapper):
    @property
    def device_memory_size_v2(self) -> int:
        return self.wrapped.device_memory_size

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> Context | None:
        context = self.wrapped.create_execution_context_without_device_memory()
        return None if context is None else Context(context)


class Runtime(Wrapper):
    def deserialize_cuda_engine(self, plan: np.ndarray) -> Engine | None:
        engine = self.wrapped.deserialize_cuda_engine(plan)
        return None if engine is None else Engine(engine)


class Config(Wrapper):
    progress_monitor = None
    level: int | None = None  # of 0 to 5 (None: 3): how long the builder tries

    def __setattr__(self, name: str, value: object) -> None:
        if name != "progress_monitor":
            setattr(self.wrapped, name, value)


class ParserError(Wrapper):
    def node_name(self) -> str:
        return f"number {self.wrapped.node()}"

    def node_operator(self) -> str:
        return "operator not told"


class OnnxParser(Wrapper):
    def parse_from_file(self, path: str) -> bool:
        model = to_opset_17(load(Path(path)))
        object.__setattr__(self, "serialized", model.SerializeToString())  # the network's weights are in here
        parsed: bool = self.wrapped.parse(self.serialized)
        return parsed

    def get_error(self, index: int) -> ParserError:
        return ParserError(self.wrapped.get_error(index))


class Builder(Wrapper):
    def __init__(self, trt: ModuleType, wrapped: Any):
        super().__init__(wrapped)
        object.__setattr__(self, "trt", trt)

    def create_network(self, flags: int = 0) -> Any:
        return self.wrapped.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))

    def create_builder_config(self) -> Config:
        config = self.wrapped.create_builder_config()
        config.set_tactic_sources(0)
        if Config.level is not None:
            config.builder_optimization_level = Config.level
        return Config(config)

    def build_serialized_network(self, network: Any, config: Config) -> Any:
        inputs = (network.get_input(i) for i in range(network.num_inputs))
        outputs = (network.get_output(i) for i in range(network.num_outputs))
        if any(t.dtype == self.trt.float16 for t in (*inputs, *outputs)) or _has_float16(network, self.trt):
            # types are wishes to this version, unless it is told to keep them
            config.set_flag(self.trt.BuilderFlag.FP16)
            config.set_flag(self.trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            _keep_types(network, self.trt)
        return self.wrapped.build_serialized_network(network, config.wrapped)


def _has_float16(network: Any, trt: ModuleType) -> bool:
    layers = map(network.get_layer, range(network.num_layers))
    return any(layer.get_output(i).dtype == trt.float16 for layer in layers for i in range(layer.num_outputs))


def _keep_types(network: Any, trt: ModuleType) -> None:
    """Every layer computes in the type that the graph gives its output."""
    for layer in map(network.get_layer, range(network.num_layers)):
        kinds = {layer.get_output(i).dtype for i in range(layer.num_outputs)}
        if layer.type in (trt.LayerType.CONSTANT, trt.LayerType.SHAPE, trt.LayerType.CAST) or len(kinds) != 1:
            continue
        if (kind := kinds.pop()) in (trt.float16, trt.float32):
            layer.precision = kind
            for i in range(layer.num_outputs):
                layer.set_output_type(i, kind)


def as_newer(trt: ModuleType) -> ModuleType:
    """The module `tensorrt` of 8.6 as what the code for 10 and newer asks for."""
    module = ModuleType("tensorrt")
    module.__getattr__ = lambda name: getattr(trt, name)  # type: ignore[method-assign]
    module.__version__ = trt.__version__
    module.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    module.IProgressMonitor = IProgressMonitor
    module.Builder = lambda logger: Builder(trt, trt.Builder(logger))
    module.OnnxParser = lambda network, logger: OnnxParser(trt.OnnxParser(network, logger))
    module.Runtime = lambda logger: Runtime(trt.Runtime(logger))
    return module


@contextmanager
def tensorrt_8() -> Iterator[ModuleType]:
    """`import tensorrt` gives TensorRT 8.6, dressed."""
    real = importlib.import_module("tensorrt")
    assert real.__version__.startswith("8.6."), real.__version__
    sys.modules["tensorrt"] = as_newer(real)
    try:
        yield sys.modules["tensorrt"]
    finally:
        sys.modules["tensorrt"] = real


def use_int32(directory: Path) -> None:
    """Tell config.json of an engine that was built that its whole numbers are int32: 8.6 has no other."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for entry in config["inputs"] + config["outputs"]:
        entry["dtype"] = entry["dtype"].replace("int64", "int32")
    path.write_text(json.dumps(config, indent=2) + "\n")
