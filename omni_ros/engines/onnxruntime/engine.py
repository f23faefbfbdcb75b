"""ONNX Runtime on the CPU. A state's tensors are allocated once; KV caches are written in place by the graph itself."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from omni_ros.engines.config import EngineConfig
from omni_ros.engines.engine import Running, State, own_state, was_closed
from omni_ros.engines.onnxruntime.session import check_graph, check_inputs, load_session, run_graph
from omni_ros.engines.onnxruntime.state import OnnxRuntimeState

MAX_ROWS = 512  # a turn with a picture is one run; of a longer prompt, cancel() waits for so much


class OnnxRuntimeEngine:
    """See engine.Engine; as many states as there is memory for."""

    max_rows = MAX_ROWS
    verified: bool | str | None = None

    def __init__(self, directory: Path, config: EngineConfig, threads: int):
        self.directory, self.config, self.running = directory, config, Running(config.engine)
        self.session: ort.InferenceSession | None = load_session(directory, config, threads, ["CPUExecutionProvider"])
        check_graph(self.session, directory, config)
        self.binding = self.session.io_binding()  # of an engine without state

    def new_state(self) -> OnnxRuntimeState:
        with self.running:
            if self.session is None:
                raise was_closed(self.config, self.directory)
            return OnnxRuntimeState(self.session, self.config, "cpu")

    def run(self, inputs: dict[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        arrays, own = check_inputs(self.config, inputs), own_state(OnnxRuntimeState, state)
        with self.running:
            if self.session is None:
                raise was_closed(self.config, self.directory)
            return run_graph(self.session, self.binding if own is None else own.binding, self.config, arrays, own)

    def close(self) -> None:
        with self.running:
            self.session = self.binding = None
