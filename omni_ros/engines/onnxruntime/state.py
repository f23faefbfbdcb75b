"""What a conversation has in ONNX Runtime: tensors that a graph reads and leaves for its next run."""

import numpy as np
import onnxruntime as ort

from omni_ros.engines.config import EngineConfig, StateConfig
from omni_ros.engines.engine import State


class OnnxRuntimeState(State):
    """See engine.State: buffers on `device` ("cpu" or "cuda"), allocated once, and what binds them to the graph."""

    def __init__(self, session: ort.InferenceSession, config: EngineConfig, device: str):
        super().__init__(config.engine, truncates=all(s.in_place for s in config.state))
        self.entries = config.state
        self.buffers = [_allocate(s, device) for s in config.state]
        # State that is not written in place needs a second buffer: a run reads one and writes the other.
        self.spares = [b if s.in_place else _allocate(s, device) for s, b in zip(config.state, self.buffers)]
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
        super().close()
        self.buffers, self.spares, self.binding = [], [], None


def _allocate(state: StateConfig, device: str) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(state.shape, state.dtype), device, 0)
