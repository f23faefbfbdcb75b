"""ONNX Runtime on an NVIDIA GPU: encoders and Code2Wav. State stays on the device."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort

from omni_ros.engines.config import EngineConfig
from omni_ros.engines.engine import Running, State, own_state, was_closed
from omni_ros.engines.onnxruntime.session import check_graph, check_inputs, load_session, run_graph
from omni_ros.engines.onnxruntime.state import OnnxRuntimeState
from omni_ros.errors import EngineError

MAX_ROWS = 256
# float32 is what it says: rounded to TF32, the voice is 40 dB above the noise that this makes, and nothing is faster.
PROVIDERS = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
# What a new Code2Wav runs once: first runs load kernels and take memory, which should not be in the middle of a reply.
WARM_UP_FRAMES = (1, 2, 4, 8, 16, 25)


class OnnxRuntimeCudaEngine:
    """See engine.Engine; as many states as there is memory for."""

    max_rows = MAX_ROWS
    verified: bool | str | None = None

    def __init__(self, directory: Path, config: EngineConfig, threads: int):
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise EngineError(
                f"{directory}: built for a GPU, but this ONNX Runtime has no CUDA provider; install "
                "onnxruntime-gpu, or build the engines with --device cpu"
            )
        ort.preload_dlls()
        # Otherwise attention over a new number of rows waits 0.1 s for cuDNN's plan.
        os.environ.setdefault("ORT_ENABLE_CUDNN_FLASH_ATTENTION", "0")
        self.directory, self.config, self.running = directory, config, Running(config.engine)
        self.session: ort.InferenceSession | None = None
        # The provider keeps handles per thread that take 100 ms to make, and a turn's stages are new threads.
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=config.engine)
        try:
            self.session = load_session(directory, config, threads, PROVIDERS)
            if "CUDAExecutionProvider" not in self.session.get_providers():  # it goes on without one of its libraries
                raise EngineError(
                    f"{directory}: ONNX Runtime cannot use the GPU here without CUDA and cuDNN: pip install "
                    '"onnxruntime-gpu[cuda,cudnn]"'
                )
            check_graph(self.session, directory, config)
            self.binding = self.session.io_binding()  # of an engine without state
            self._warm_up()
        except BaseException:
            self.close()
            raise

    def _warm_up(self) -> None:
        if self.config.engine != "code2wav":
            return
        state = self.new_state()
        for frames in WARM_UP_FRAMES:
            if frames <= self.config.limits.capacity:
                self.run({"codes": np.zeros((self.config.model.num_quantizers, frames), np.int64)}, state)
                state.reset()
        state.close()

    def new_state(self) -> OnnxRuntimeState:
        with self.running:
            if self.session is None:
                raise was_closed(self.config, self.directory)
            return OnnxRuntimeState(self.session, self.config, "cuda")

    def run(self, inputs: dict[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        arrays, own = check_inputs(self.config, inputs), own_state(OnnxRuntimeState, state)
        with self.running:
            if self.session is None:
                raise was_closed(self.config, self.directory)
            return self.thread.submit(
                run_graph, self.session, self.binding if own is None else own.binding, self.config, arrays, own
            ).result()

    def close(self) -> None:
        with self.running:
            self.thread.shutdown()
            self.session = self.binding = None
