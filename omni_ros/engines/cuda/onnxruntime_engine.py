"""ONNX Runtime on an NVIDIA GPU: encoders and Code2Wav. State stays on the device."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort

from omni_ros.engines.engine import check_rows
from omni_ros.engines.onnxruntime.engine import OnnxRuntimeEngine, check_graph, load_session
from omni_ros.errors import EngineError, InputError

DEVICE = "cuda"
# float32 is what it says: rounded to TF32, the voice is 40 dB above the noise that this makes, and nothing is faster.
PROVIDERS = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
# What a new Code2Wav runs once: first runs load kernels and take memory, which should not be in the middle of a reply.
WARM_UP_FRAMES = (1, 2, 4, 8, 16, 25)


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """See engine.Engine. Not thread-safe: one engine belongs to one stage."""

    def __init__(self, directory: Path, config: dict, threads: int):
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise EngineError(
                f"{directory}: built for a GPU, but this ONNX Runtime has no CUDA provider; install "
                "onnxruntime-gpu, or build the engines with --device cpu"
            )
        ort.preload_dlls()
        # Otherwise attention over a new number of rows waits 0.1 s for cuDNN's plan.
        os.environ.setdefault("ORT_ENABLE_CUDNN_FLASH_ATTENTION", "0")
        # The provider keeps handles per thread that take 100 ms to make, and a turn's stages are new threads.
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=config["engine"])
        self.directory, self.config, self.length = directory, config, 0
        self.session = load_session(directory / "model.onnx", config["graph_sha256"], threads, PROVIDERS)
        if "CUDAExecutionProvider" not in self.session.get_providers():  # it goes on without one of its libraries
            raise EngineError(
                f"{directory}: ONNX Runtime cannot use the GPU here without CUDA and cuDNN: pip install "
                '"onnxruntime-gpu[cuda,cudnn]"'
            )
        check_graph(self.session, config, directory)
        position = config.get("position") or {}
        self.position_input, self.counts = position.get("input"), position.get("counts")
        self.axis, self.capacity = position.get("axis", 0), config["limits"].get("capacity")
        self.inputs = {i["name"]: i["dtype"] for i in config["inputs"] if i["name"] != self.position_input}
        self.output_names = [o["name"] for o in config["outputs"]]
        self.buffers = [_on_device(s) for s in config["state"]]
        self.spares = [b if s["in_place"] else _on_device(s) for s, b in zip(config["state"], self.buffers)]
        self._warm_up()

    def _warm_up(self) -> None:
        for frames in WARM_UP_FRAMES if self.config["engine"] == "code2wav" else ():
            if frames <= self.capacity:
                self._run({"codes": np.zeros((self.config["model"]["num_quantizers"], frames), np.int64)})
                self.reset()

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if inputs.keys() != self.inputs.keys():
            raise InputError(f"{self.config['engine']} takes {sorted(self.inputs)}, got {sorted(inputs)}")
        rows = check_rows(self, inputs)
        outputs = self._run(inputs)
        self.length += rows
        return outputs

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        binding = self.session.io_binding()
        bound = {n: np.ascontiguousarray(a, self.inputs[n]) for n, a in inputs.items()}
        if self.position_input:
            bound[self.position_input] = np.array([self.length], np.int64)
        for name, array in bound.items():
            binding.bind_cpu_input(name, array)
        for name in self.output_names:
            binding.bind_output(name)  # to the host
        for state, buffer, spare in zip(self.config["state"], self.buffers, self.spares):
            binding.bind_ortvalue_input(state["input"], buffer)
            binding.bind_ortvalue_output(state["output"], spare)
        try:
            self.thread.submit(self.session.run_with_iobinding, binding).result()
        except Exception as e:
            shapes = {k: v.shape for k, v in inputs.items()}
            raise EngineError(f"{self.config['engine']}: ONNX Runtime failed on inputs {shapes} ({e})") from e
        self.buffers, self.spares = self.spares, self.buffers
        outputs = binding.get_outputs()
        return {name: outputs[i].numpy() for i, name in enumerate(self.output_names)}


def _on_device(state: dict) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(state["shape"], state["dtype"]), DEVICE, 0)
