"""ONNX Runtime on the CPU. A state's tensors are allocated once; KV caches are written in place by the graph itself."""

import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort

from omni_ros.engines.config import EngineConfig, StateConfig
from omni_ros.engines.engine import State, check_rows
from omni_ros.engines.onnxruntime.session import check_graph, load_session
from omni_ros.errors import EngineError, InputError

MAX_ROWS = 256  # large enough for matrix products at full speed


class OnnxRuntimeState(State):
    """See engine.State: host buffers, and what binds them to the graph."""

    def __init__(self, session: ort.InferenceSession, config: EngineConfig):
        super().__init__(config.engine, truncates=all(s.in_place for s in config.state))
        self.entries = config.state
        self.buffers = [_allocate(s) for s in config.state]
        # State that is not written in place needs a second buffer: a run reads one and writes the other.
        self.spares = [b if s.in_place else _allocate(s) for s, b in zip(config.state, self.buffers)]
        self.binding = session.io_binding()

    def bind(self) -> None:
        for entry, buffer, spare in zip(self.entries, self.buffers, self.spares):
            self.binding.bind_ortvalue_input(entry.input, buffer)
            self.binding.bind_ortvalue_output(entry.output, spare)

    def swap(self) -> None:
        self.buffers, self.spares = self.spares, self.buffers

    def reset(self) -> None:
        super().reset()
        for entry, buffer in zip(self.entries, self.buffers):
            if not entry.in_place:  # KV cache columns beyond `length` are never read
                buffer.update_inplace(np.zeros(entry.shape, entry.dtype))

    def close(self) -> None:
        self.buffers, self.spares, self.binding = [], [], None


class OnnxRuntimeEngine:
    """See engine.Engine."""

    max_rows = MAX_ROWS

    def __init__(self, directory: Path, config: EngineConfig, threads: int):
        self.directory, self.config = directory, config
        self.session = load_session(directory, config, threads, ["CPUExecutionProvider"])
        check_graph(self.session, directory, config)
        self.dtypes = {i.name: np.dtype(i.dtype) for i in config.fed}
        self.output_names = [o.name for o in config.outputs]
        self.binding = self.session.io_binding()  # where there is no state
        self.running = threading.Lock()

    def new_state(self) -> OnnxRuntimeState:
        return OnnxRuntimeState(self._open_session(), self.config)

    def run(self, inputs: dict[str, np.ndarray], state: OnnxRuntimeState | None = None) -> dict[str, np.ndarray]:
        if inputs.keys() != self.dtypes.keys():
            raise InputError(f"{self.config.engine} takes {sorted(self.dtypes)}, got {sorted(inputs)}")
        bound = {name: np.ascontiguousarray(array, self.dtypes[name]) for name, array in inputs.items()}
        with self.running:
            return self._run(self._open_session(), bound, state)

    def _run(
        self, session: ort.InferenceSession, bound: dict[str, np.ndarray], state: OnnxRuntimeState | None
    ) -> dict[str, np.ndarray]:
        rows = check_rows(self.config, bound, state)
        binding = self.binding if state is None else state.binding
        if state is not None and self.config.position is not None:
            bound[self.config.position.input] = np.array([state.length], np.int64)
        for name, array in bound.items():
            binding.bind_cpu_input(name, array)
        binding.clear_binding_outputs()
        for name in self.output_names:
            binding.bind_output(name)
        if state is not None:
            state.bind()
        try:
            session.run_with_iobinding(binding)
        except Exception as e:
            shapes = {name: array.shape for name, array in bound.items()}
            raise EngineError(f"{self.config.engine}: ONNX Runtime failed on inputs {shapes} ({e})") from e
        if state is not None:
            state.swap()
            state.length += rows
        outputs = binding.get_outputs()
        return {name: outputs[i].numpy() for i, name in enumerate(self.output_names)}

    def _open_session(self) -> ort.InferenceSession:
        if self.session is None:
            raise EngineError(f"{self.config.engine}: was closed; open {self.directory} again")
        return self.session

    def close(self) -> None:
        with self.running:
            self.session = self.binding = None


def _allocate(state: StateConfig) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(state.shape, state.dtype))
