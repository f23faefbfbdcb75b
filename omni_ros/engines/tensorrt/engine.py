"""TensorRT (or TensorRT-RTX) on an NVIDIA GPU. State stays on the device; a step of one shape replays as a CUDA graph.

Strategy: every buffer is allocated at load, for the largest shapes of the engine's optimisation profiles: a pinned one on the
host and one on the device for each input and output, one on the device for each state (two where the graph cannot write it in
place). A profile with a single shape, such as a decoder's one-row step, is captured once: copies in, the network, copies out.
Its run fills the pinned inputs, launches that graph, and waits for an event. All other runs put the same work on the stream.
"""

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from omni_ros.engines.config import DecoderLimits, EngineConfig, TensorConfig, TensorRTConfig
from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.engines.engine import OneState, Running, State, check_rows, own_state, was_closed
from omni_ros.engines.tensorrt.package import check_plan, make_logger, rebuild_command
from omni_ros.engines.tensorrt.profile import Profile, Shapes, Tensor
from omni_ros.engines.tensorrt.state import StateBuffers, TensorRTState
from omni_ros.errors import EngineError, InputError

GIB = 1 << 30


class TensorRTEngine:
    """See engine.Engine; one state at a time."""

    verified: bool | str | None = None

    def __init__(self, directory: Path, config: EngineConfig, built: TensorRTConfig, trt: ModuleType, plan: np.ndarray):
        """`trt` is the TensorRT that `built` names, `plan` uint8 the content of model.engine."""
        self.directory, self.config, self.built = directory, config, built
        self.running, self.one_state = Running(config.engine), OneState(config.engine)
        self.max_rows = config.limits.max_input_len if isinstance(config.limits, DecoderLimits) else 1
        self.position = config.position.input if config.position else None
        self.inputs = {i.name: i for i in config.fed}
        self.profiles: list[Profile] = []
        self.engine: Any = None  # trt.ICudaEngine
        self.device = CudaDevice(config.engine)
        try:
            with Running(config.engine):  # whoever keeps an error would keep TensorRT's share of the GPU
                self._load(trt, plan)
        except BaseException:
            self.close()
            raise

    # ---- loading ----------------------------------------------------------------------------------------------------
    def _load(self, trt: ModuleType, plan: np.ndarray) -> None:
        device = self.device
        sizes = [math.prod(s.shape) * np.dtype(s.dtype).itemsize for s in self.config.state]
        state_bytes = sum(size * (1 if s.in_place else 2) for s, size in zip(self.config.state, sizes))
        self._check_memory({"weights": len(plan), "state": state_bytes})
        self.logger = make_logger(trt)
        self.runtime = trt.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise EngineError(
                f"{self.directory / 'model.engine'}: TensorRT {trt.__version__} cannot load it ({self._errors()}); "
                f"{rebuild_command(self.built.target)}"
            )
        check_plan(trt, self.engine, self.directory, self.config, self.built)
        activations = self.engine.device_memory_size_v2
        self._check_memory({"state": state_bytes, "activations": activations})
        # The contexts share one activation memory: on one stream they never run at the same time.
        scratch = device.memory(activations)
        profiles, host_inputs = self.built.profiles.values(), self.built.host_inputs
        fixed = [
            not host_inputs and all(low == high for low, _, high in bounds.values()) for bounds in profiles
        ]  # what the CPU reads when a step is captured would stay in its graph
        self.profiles = [
            self._profile(trt, index, bounds, scratch, activations, fixed[index]) for index, bounds in enumerate(profiles)
        ]
        self._allocate_tensors(trt)
        self.buffers = []
        for entry, size in zip(self.config.state, sizes):
            first = device.memory(size)
            addresses = (first, first if entry.in_place else device.memory(size))
            self.buffers.append(StateBuffers(entry.input, entry.output, size, addresses))
        state = self._state()
        for profile in self.profiles:
            for name, tensor in self.tensors.items():
                self._ok(profile.context.set_tensor_address(name, tensor.address or tensor.host.ctypes.data))
        state.zero()
        for profile, single in zip(self.profiles, fixed):
            if single:
                self._capture(profile, state)
        device.wait()

    def _state(self) -> TensorRTState:
        return TensorRTState(self.config.engine, self.device, self.running, self.buffers)

    def _check_memory(self, parts: dict[str, int]) -> None:
        """Raise EngineError unless the bytes of `parts` can be allocated."""
        free = self.device.free_memory()
        if sum(parts.values()) > free:
            listed = ", ".join(f"{name} {size / GIB:.3f}" for name, size in parts.items())
            raise EngineError(
                f"{self.directory}: needs {sum(parts.values()) / GIB:.3f} GiB of GPU memory ({listed}), {free / GIB:.3f} GiB are "
                "free; close other programs, or lower --maxKVCacheCapacity and --maxCodeLen (state) or --maxInputLen "
                f"(activations): {rebuild_command(self.built.target)}"
            )

    def _profile(self, trt: ModuleType, index: int, bounds: dict, scratch: int, size: int, single: bool) -> Profile:
        """The execution context of a profile, with `scratch` for its activations."""
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # TensorRT-RTX compiles kernels for the shapes it meets in the background: too late for a graph, which keeps its own
            options = self.engine.create_runtime_config()
            options.set_execution_context_allocation_strategy(strategy)
            if single:
                options.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            context = self.engine.create_execution_context(options)
        else:
            context = self.engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(
                f"{self.directory}: TensorRT cannot make an execution context ({self._errors()}); {self.device.outlook()}"
            )
        context.set_device_memory(scratch, size)
        self._ok(context.set_optimization_profile_async(index, int(self.device.stream)))
        smallest, largest = ({name: tuple(shapes[k]) for name, shapes in bounds.items()} for k in (0, 2))
        return Profile(context, smallest, largest)

    def _allocate_tensors(self, trt: ModuleType) -> None:
        """A pinned buffer and a device buffer for the largest shape of every input and output."""
        self.tensors: dict[str, Tensor] = {}
        for entry in self.config.inputs:
            self._allocate(trt, entry, [p.largest.get(entry.name, entry.shape) for p in self.profiles])
        for p in self.profiles:
            for name, tensor in self.tensors.items():
                if tensor.address is None:  # rows so far: the more, the longer the output
                    tensor.view((1,))[:] = self.config.limits.capacity
                    self._ok(p.context.set_tensor_address(name, tensor.host.ctypes.data))
        outputs = [self._infer(p, p.largest) for p in self.profiles]
        for entry in self.config.outputs:
            self._allocate(trt, entry, [o[entry.name] for o in outputs])

    def _allocate(self, trt: ModuleType, entry: TensorConfig, shapes: list) -> None:
        dtype = np.dtype(entry.dtype)
        size = max(int(np.prod(s, dtype=np.int64)) for s in shapes) * dtype.itemsize
        on_device = self.engine.get_tensor_location(entry.name) == trt.TensorLocation.DEVICE
        self.tensors[entry.name] = Tensor(dtype, self.device.pinned(size), self.device.memory(size) if on_device else None)

    def _infer(self, profile: Profile, shapes: Shapes) -> Shapes:
        """Tell the context its input shapes; the shapes of the outputs."""
        for name in profile.smallest:
            self._ok(profile.context.set_input_shape(name, shapes[name]))
        try:
            missing = profile.context.infer_shapes()
        except RuntimeError as e:
            raise EngineError(f"{self.config.engine}: TensorRT cannot take inputs {shapes} ({e})") from e.with_traceback(None)
        outputs = {o.name: tuple(profile.context.get_tensor_shape(o.name)) for o in self.config.outputs}
        if missing or any(d < 0 for shape in outputs.values() for d in shape):
            raise EngineError(
                f"{self.directory}: TensorRT cannot tell {missing or outputs} from inputs {shapes} "
                f"({self._errors()}); build the engine again"
            )
        return outputs

    def _capture(self, profile: Profile, state: TensorRTState) -> None:
        """Record the only step that `profile` has, once for each buffer that may hold the state."""
        profile.inputs = {
            i.name: self.tensors[i.name].view(profile.largest.get(i.name) or tuple(d for d in i.shape if isinstance(d, int)))
            for i in self.config.inputs
        }
        profile.outputs = {name: self.tensors[name].view(s) for name, s in self._infer(profile, profile.largest).items()}
        for view in profile.inputs.values():
            view[...] = 0
        for parity in (0,) if state.truncates else (0, 1):
            self._enqueue(profile, profile.inputs, profile.outputs, parity)  # TensorRT's own preparations cannot be captured
            profile.graphs.append(self.device.capture(self._enqueue, profile, profile.inputs, profile.outputs, parity))

    # ---- running ----------------------------------------------------------------------------------------------------
    def new_state(self) -> TensorRTState:
        with self.running:
            if not self.profiles:
                raise was_closed(self.config, self.directory)
            state = self._state()
            self.one_state.take(state)
            state.zero()
            return state

    def run(self, inputs: dict[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        """The arrays returned are the caller's: no later run writes into them."""
        own = own_state(TensorRTState, state)
        with self.running:
            if not self.profiles:
                raise was_closed(self.config, self.directory)
            shapes = self._check_inputs(inputs)
            rows = check_rows(self.config, inputs, own)
            profile = next((p for p in self.profiles if p.fits(shapes)), None)
            if profile is None:
                raise InputError(
                    f"{self.config.engine}: inputs {shapes} are not among the shapes that it was built for, at most "
                    f"{self.profiles[-1].largest}; send less, or build with larger limits"
                )
            outputs = self._run(profile, inputs, shapes, own)
            if own is not None:
                own.advance(rows)
            return outputs

    def _run(
        self, profile: Profile, inputs: dict[str, np.ndarray], shapes: Shapes, state: TensorRTState | None
    ) -> dict[str, np.ndarray]:
        parity = state.parity if state else 0
        pinned = profile.inputs or {name: self.tensors[name].view(shape) for name, shape in shapes.items()}
        for name, array in inputs.items():
            pinned[name][...] = array
        if self.position and state:
            pinned[self.position][...] = state.length
        if profile.graphs:
            outputs = profile.outputs
            self.device.launch(profile.graphs[parity])
        else:
            outputs = {name: self.tensors[name].view(shape) for name, shape in self._infer(profile, shapes).items()}
            self._enqueue(profile, pinned, outputs, parity)
        self.device.wait()
        return {name: view.copy() for name, view in outputs.items()}

    def _check_inputs(self, inputs: dict[str, np.ndarray]) -> Shapes:
        """The shapes of all inputs, `position` included. Raises InputError for what the graph does not take."""
        if inputs.keys() != self.inputs.keys():
            raise InputError(f"{self.config.engine} takes {sorted(self.inputs)}, got {sorted(inputs)}")
        sizes: dict[str, int] = {}
        for name, array in inputs.items():
            shape, dtype = self.inputs[name].shape, self.tensors[name].dtype
            agrees = len(shape) == array.ndim and all(
                n == (d if isinstance(d, int) else sizes.setdefault(d, n)) for d, n in zip(shape, array.shape)
            )
            if not agrees or not np.can_cast(array.dtype, dtype, "same_kind"):
                raise InputError(
                    f"{self.config.engine}: {name} must be {dtype}{shape} with {sizes}, got {array.dtype}{list(array.shape)}"
                )
        shapes = {name: array.shape for name, array in inputs.items()}
        return shapes | {self.position: (1,)} if self.position else shapes

    def _enqueue(self, profile: Profile, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], parity: int) -> None:
        """Copies in, the network, copies out, on the stream."""
        context, device = profile.context, self.device
        for name, pinned in inputs.items():
            if (address := self.tensors[name].address) is not None:
                device.upload(address, pinned)
        for buffer in self.buffers:
            read, written = buffer.addresses[parity], buffer.addresses[1 - parity]
            self._ok(context.set_tensor_address(buffer.input, read) and context.set_tensor_address(buffer.output, written))
        self._ok(context.execute_async_v3(int(device.stream)))
        for name, pinned in outputs.items():
            if (address := self.tensors[name].address) is not None:
                device.download(pinned, address)

    def _ok(self, done: bool) -> None:
        if not done:
            raise EngineError(f"{self.config.engine}: TensorRT failed ({self._errors()}); {self.device.outlook()}")

    def _errors(self) -> str:
        """What TensorRT has said since this was last asked."""
        said, self.logger.errors = self.logger.errors, []
        return " ".join("; ".join(said).split()) or "no reason given"

    def close(self) -> None:
        with self.running:
            for profile in self.profiles:
                profile.close()  # before the engine, and that before the memory that they point into
            self.profiles, self.engine, self.runtime = [], None, None
            self.device.close()

    def __del__(self) -> None:
        """Last resort for an engine that nobody closed: here, too, the order matters."""
        if hasattr(self, "device"):
            self.close()
