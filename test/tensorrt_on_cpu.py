"""TensorRT without a GPU: the part of its Python API that omni_ros builds and runs engines with, over `cuda_on_cpu.Cuda`.

An engine is the lowered ONNX graph itself. Enqueueing it puts work on the simulated stream: read the inputs at the addresses
that were set, compute with ONNX Runtime, write the outputs to theirs. What TensorRT demands is enforced: shapes within the
profile, every address set and on the right side, aliased state in place, and a first ordinary run before a captured one.

Seen with TensorRT 8.6.0 on an H100 (tensorrt_8_on_gpu.py): sizes that no profile leaves open are static, and an address must be
aligned to its elements, no more. Here is demanded what that version did not need: a run before the capture, as TensorRT's
documents ask, no CUDA error left uncleared, and no output over an input that is not its alias.
"""

import ctypes
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cuda_on_cpu import Cuda, Fault
from onnx import helper, numpy_helper, shape_inference
from opset_17 import load

from omni_ros.engines.tensorrt.package import PACKAGES

VERSION = "1.7.0-simulated"
SHAPE_OPERANDS = {
    "Slice": (1, 2, 3, 4),
    "Reshape": (1,),
    "Expand": (1,),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Tile": (1,),
    "Pad": (1,),
}  # operator -> inputs that decide a shape


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class TensorLocation(Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class ComputeCapability(Enum):
    SM89 = 89


class BuilderFlag(Enum):
    TF32 = 0


class IProgressMonitor:
    """Never called here."""


# ---- building ----------------------------------------------------------------------------------------------------------
class ITensor:
    def __init__(self, name: str, is_shape_tensor: bool):
        self.name, self.is_shape_tensor = name, is_shape_tensor


class INetworkDefinition:
    num_layers = 0

    def __init__(self):
        self.model, self.host_inputs = onnx.ModelProto(), set()

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_layer(self, index):
        raise IndexError("ONNX Runtime computes the graph: no layers are made")

    def get_input(self, index):
        name = self.model.graph.input[index].name
        return ITensor(name, name in self.host_inputs)


class OnnxParser:
    num_errors = 0
    unknown: tuple[str, ...] = ()  # operators that this parser is too old for

    def __init__(self, network, logger):
        self.network = network

    def supports_operator(self, op_name):
        return op_name not in self.unknown

    def parse_from_file(self, model):
        loaded = load(Path(model))
        self.network.model, self.network.host_inputs = loaded, host_inputs(loaded.graph)
        return True


def host_inputs(graph: onnx.GraphProto) -> set[str]:
    """Inputs whose values decide a shape: those that reach an operand of SHAPE_OPERANDS, but not through Shape."""
    made_by = {o: n for n in graph.node for o in n.output}
    pending = [i for n in graph.node for k in SHAPE_OPERANDS.get(n.op_type, ()) for i in n.input[k : k + 1]]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in seen and (node := made_by.get(name)) is not None and node.op_type != "Shape":
            pending.extend(node.input)
        seen.add(name)
    return seen & {i.name for i in graph.input}


class IOptimizationProfile:
    def __init__(self):
        self.shapes, self.values = {}, {}

    def set_shape(self, input, min, opt, max):
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))

    def set_shape_input(self, input, min, opt, max):
        self.values[input] = (min, opt, max)


class IBuilderConfig:
    progress_monitor, num_compute_capabilities = None, 0

    def __init__(self):
        self.profiles, self.flags = [], {BuilderFlag.TF32}

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_compute_capability(self, compute_capability, index):
        assert index < self.num_compute_capabilities
        return True


class Builder:
    def __init__(self, logger):
        assert isinstance(logger, ILogger)

    def create_network(self, flags=0):
        return INetworkDefinition()

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        assert BuilderFlag.TF32 not in config.flags, "ONNX Runtime computes in float32: a GPU with TF32 would not agree with it"
        return pickle.dumps(
            (network.model.SerializeToString(), network.host_inputs, [(p.shapes, p.values) for p in config.profiles])
        )


# ---- running -----------------------------------------------------------------------------------------------------------
class Runtime:
    cuda: Cuda

    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        try:
            plan = pickle.loads(bytes(serialized_engine))
        except pickle.UnpicklingError:
            self.logger.log(ILogger.ERROR, "the plan is no plan")
            return None
        return ICudaEngine(self.cuda, self.logger, *plan, len(serialized_engine))


class ICudaEngine:
    device_memory_size_v2 = 1 << 20
    contexts_to_refuse = 0
    enqueues_until_failure = 0

    def __init__(self, cuda: Cuda, logger: ILogger, model: bytes, on_host: set[str], profiles: list, size: int):
        self.cuda, self.logger, self.on_host, self.profiles = cuda, logger, on_host, profiles
        self.weights = cuda.allocate("device", size)
        self.model = onnx.load_from_string(model)
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = {v.name: v for v in self.model.graph.input}
        self.outputs = {v.name: v for v in self.model.graph.output}
        self.aliases = {n.output[0]: n.input[0] for n in self.model.graph.node if n.op_type == "TensorScatter"}
        self.num_io_tensors, self.num_optimization_profiles = len(self.inputs) + len(self.outputs), len(profiles)
        self.known_shapes: dict[tuple, dict[str, tuple[int, ...]]] = {}

    def __del__(self):
        self.cuda.free("device", self.weights)

    def value(self, name: str) -> onnx.ValueInfoProto:
        return self.inputs.get(name) or self.outputs[name]

    def get_tensor_name(self, index):
        return [*self.inputs, *self.outputs][index]

    def get_tensor_dtype(self, name):
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.value(name).type.tensor_type.elem_type))

    def get_tensor_shape(self, name):
        """-1 for a size that a profile leaves open, and for the rows of outputs, which TensorRT cannot always tell."""
        shape = [d.dim_value if d.HasField("dim_value") else -1 for d in self.value(name).type.tensor_type.shape.dim]
        for axis in range(len(shape)):  # a size that no profile leaves open is one of the engine's
            sizes = {bounds[axis] for shapes, _ in self.profiles for bounds in shapes.get(name, ())}
            shape[axis] = sizes.pop() if len(sizes) == 1 else shape[axis]
        dynamic = any(d.dim_param for i in self.inputs.values() for d in i.type.tensor_type.shape.dim)
        state = name in self.aliases or name.startswith("present_")
        return (-1, *shape[1:]) if name in self.outputs and dynamic and not state else tuple(shape)

    def get_tensor_location(self, name):
        return TensorLocation.HOST if name in self.on_host else TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name, profile_index):
        fixed = self.get_tensor_shape(name)
        return list(self.profiles[profile_index][0].get(name, (fixed,) * 3))

    def create_execution_context(self, strategy):
        if isinstance(strategy, IRuntimeConfig):
            return self._context(strategy.strategy, strategy.dynamic_shapes_kernel_specialization_strategy)
        return self._context(strategy, DynamicShapesKernelSpecializationStrategy.EAGER)

    def _context(
        self, strategy: ExecutionContextAllocationStrategy, kernels: DynamicShapesKernelSpecializationStrategy
    ) -> "IExecutionContext | None":
        if strategy != ExecutionContextAllocationStrategy.USER_MANAGED or self.contexts_to_refuse:
            self.logger.log(ILogger.ERROR, "no such context")
            return None
        return IExecutionContext(self, kernels == DynamicShapesKernelSpecializationStrategy.EAGER)

    def create_runtime_config(self):
        return IRuntimeConfig()

    def output_shapes(self, shapes: dict[str, tuple[int, ...]], values: dict[str, int]) -> dict[str, tuple[int, ...]]:
        """Of all outputs, by ONNX shape inference, or where that does not know a size, by running the graph."""
        key = (*sorted(shapes.items()), *sorted(values.items()))
        if key not in self.known_shapes:
            inferred = onnx.ModelProto()
            inferred.CopyFrom(self.model)
            for name, shape in shapes.items():
                value = next(v for v in inferred.graph.input if v.name == name)
                value.CopyFrom(helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, shape))
            for name, number in values.items():
                inferred.graph.input.remove(next(v for v in inferred.graph.input if v.name == name))
                inferred.graph.initializer.append(numpy_helper.from_array(np.array([number]), name))
            for output in inferred.graph.output:
                output.type.tensor_type.ClearField("shape")
            inferred = shape_inference.infer_shapes(inferred, strict_mode=True, data_prop=True)
            found = {o.name: tuple(d.dim_value for d in o.type.tensor_type.shape.dim) for o in inferred.graph.output}
            if not all(all(shape) for shape in found.values()):
                feed = {n: np.zeros(shapes.get(n, self.get_tensor_shape(n)), self.get_tensor_dtype(n)) for n in self.inputs}
                feed |= {n: np.array([number]) for n, number in values.items()}
                found = {n: y.shape for n, y in zip(self.outputs, self.session.run(list(self.outputs), feed))}
            self.known_shapes[key] = found
        return self.known_shapes[key]


class IRuntimeConfig:
    """Of TensorRT-RTX."""

    strategy = ExecutionContextAllocationStrategy.STATIC
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, final_kernels: bool):
        self.engine, self.final_kernels = engine, final_kernels
        self.profile, self.scratch, self.warm = -1, None, False
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def _refuse(self, why: str) -> bool:
        self.engine.logger.log(ILogger.ERROR, why)
        return False

    def set_device_memory(self, memory, size):
        assert size >= self.engine.device_memory_size_v2 and memory % 256 == 0
        self.scratch = memory

    def set_optimization_profile_async(self, profile_index, stream_handle):
        self.engine.cuda.live("stream", stream_handle)
        self.profile = profile_index
        self.shapes = {
            n: self.engine.get_tensor_shape(n) for n in self.engine.inputs if n not in self.engine.profiles[profile_index][0]
        }
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.profiles[self.profile][0].get(name, ((), (), ()))
        if len(shape) != len(low) or not all(a <= n <= b for a, n, b in zip(low, shape, high)):
            return self._refuse(f"{name}{shape} is outside profile {self.profile}")
        self.warm &= self.shapes.get(name) == tuple(shape)
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, memory):
        known = name in self.engine.inputs or name in self.engine.outputs
        if not known or memory % self.engine.get_tensor_dtype(name).itemsize:
            return self._refuse(f"{name} cannot be at {memory}")
        self.addresses[name] = memory
        return True

    def host_values(self) -> dict[str, int]:
        """What the inputs that TensorRT reads on the CPU hold now."""
        return {n: int(self.engine.cuda.view("pinned", self.addresses[n], 8).view(np.int64)[0]) for n in self.engine.on_host}

    def infer_shapes(self):
        missing = [n for n in self.engine.inputs if n not in self.shapes or n in self.engine.on_host - set(self.addresses)]
        if not missing:
            try:
                self.engine.output_shapes(self.shapes, self.host_values())
            except Exception as e:
                raise RuntimeError("shapes do not go together") from e
        return missing

    def get_tensor_shape(self, name):
        if name in self.engine.inputs:
            return self.shapes.get(name, self.engine.get_tensor_shape(name))
        if len(self.shapes) < len(self.engine.inputs):
            return self.engine.get_tensor_shape(name)
        return self.engine.output_shapes(self.shapes, self.host_values())[name]

    def execute_async_v3(self, stream_handle):
        engine, cuda = self.engine, self.engine.cuda
        stream = cuda.live("stream", stream_handle)
        if engine.enqueues_until_failure:
            engine.enqueues_until_failure -= 1
            if not engine.enqueues_until_failure:
                return self._refuse("the network did not feel like it")
        if stream.capture is not None and not (self.warm and self.final_kernels):
            return self._refuse("captured before it ran once, or with kernels that would be replaced")
        values = self.host_values()
        for name, value in values.items():
            low, _, high = engine.profiles[self.profile][1][name]
            if not low[0] <= value <= high[0]:
                return self._refuse(f"{name} = {value} is outside profile {self.profile}")
        shapes = self.shapes | engine.output_shapes(self.shapes, values)
        sizes = {n: int(np.prod(s)) * engine.get_tensor_dtype(n).itemsize for n, s in shapes.items() if n not in values}
        addresses = {n: self.addresses.get(n) for n in sizes}
        for output, name in engine.aliases.items():
            if addresses[output] != addresses[name]:
                return self._refuse(f"{output} must be where {name} is")
        if {addresses[n] for n in engine.outputs if n not in engine.aliases} & {addresses.get(n) for n in engine.inputs}:
            return self._refuse("an output would overwrite an input")
        if cuda.last:
            return self._refuse(f"after its launches it finds {cuda.last.name}, which nobody has cleared")
        try:
            for name, size in sizes.items():
                cuda.view("device", addresses[name] or 0, size)
            cuda.view("device", self.scratch, engine.device_memory_size_v2)
        except Fault:
            return self._refuse("an address is not on the device, or has too little room")
        scratch = self.scratch

        def network() -> None:
            cuda.check("kernel")
            cuda.view("device", scratch, engine.device_memory_size_v2)[:] = 0xAA
            feed = {
                n: cuda.view("device", addresses[n], sizes[n]).view(engine.get_tensor_dtype(n)).reshape(shapes[n]).copy()
                for n in engine.inputs
                if n not in values
            } | {n: np.array([v]) for n, v in values.items()}
            for name, y in zip(engine.outputs, engine.session.run(list(engine.outputs), feed)):
                assert y.shape == tuple(shapes[name]), name
                cuda.view("device", addresses[name], sizes[name])[:] = np.ascontiguousarray(y).view(np.uint8).ravel()

        cuda.put(stream, network)
        self.warm = self.warm or stream.capture is None
        return True


def nptype(trt_type):
    return trt_type.type


# ---- the module --------------------------------------------------------------------------------------------------------
def simulated_tensorrt(cuda: Cuda, name: str = "tensorrt_rtx") -> ModuleType:
    """What `import tensorrt_rtx` or `import tensorrt` gives on the machine whose GPU is `cuda`."""
    module = ModuleType(name)
    module.__version__ = VERSION
    for value in (
        ILogger,
        TensorLocation,
        ExecutionContextAllocationStrategy,
        ComputeCapability,
        IProgressMonitor,
        BuilderFlag,
        INetworkDefinition,
        IBuilderConfig,
        Builder,
        nptype,
    ):
        setattr(module, value.__name__, value)
    module.NetworkDefinitionCreationFlag = object()  # every network is strongly typed
    module.OnnxParser = type("OnnxParser", (OnnxParser,), {})
    module.Runtime = type("Runtime", (Runtime,), {"cuda": cuda})
    if name == "tensorrt_rtx":
        module.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    return module


class Driver:
    """libcuda.so.1"""

    def __init__(self, capability: tuple[int, int] | None):
        self.capability = capability

    def cuInit(self, flags):
        return 0 if self.capability else 100

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.capability[attribute - 75]
        return 0


@contextmanager
def simulated_gpu(name: str = "tensorrt_rtx", capability: tuple[int, int] | None = (8, 9), **options) -> Iterator[Cuda]:
    """A machine with this TensorRT, and a GPU of this compute capability or none; `options` are those of Cuda.

    It is the machine of whatever is imported meanwhile; engines that were opened on it keep it.
    """
    cuda, real = Cuda(**options), ctypes.CDLL

    with pytest.MonkeyPatch.context() as patch:
        for package in PACKAGES:
            patch.setitem(sys.modules, package, simulated_tensorrt(cuda, name) if package == name else None)
        patch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        patch.setattr(
            ctypes,
            "CDLL",
            lambda library, *rest, **how: Driver(capability) if library == "libcuda.so.1" else real(library, *rest, **how),
        )
        yield cuda
