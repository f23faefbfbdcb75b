"""ONNX Runtime on an NVIDIA GPU. State stays on the device; a decoder's single-row step replays as a CUDA graph.

Strategy: `model.onnx` has only constant sizes where the engine says so ("cuda_graph"), so its inputs and outputs are device
buffers allocated once: a run copies the inputs that changed, launches one graph, and copies back what is asked for. A
decoder's many-row runs go through `prefill.onnx`, which writes the same KV cache.
"""
from pathlib import Path

import numpy as np
import onnxruntime as ort

from omni_ros.engines.onnxruntime_engine import OnnxRuntimeEngine, check_graph, check_rows, load_session
from omni_ros.errors import EngineError, InputError

DEVICE = "cuda"


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """See engine.Engine. Not thread-safe: one engine belongs to one stage."""

    def __init__(self, directory: Path, config: dict, threads: int):
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise EngineError(f"{directory}: built for a GPU, but this ONNX Runtime has no CUDA provider; install "
                              "onnxruntime-gpu, or build the engines with --device cpu")
        ort.preload_dlls()
        self.directory, self.config, self.length = directory, config, 0
        graph = {"enable_cuda_graph": "1"} if config["cuda_graph"] else {}
        self.session = load_session(directory / "model.onnx", config["graph_sha256"], threads, _provider(graph))
        self.prefill = None
        if "prefill_sha256" in config:
            self.prefill = load_session(directory / "prefill.onnx", config["prefill_sha256"], threads, _provider({}))
        check_graph(self.prefill or self.session, config, directory)
        position = config.get("position") or {}
        self.position_input, self.counts = position.get("input"), position.get("counts")
        self.axis, self.capacity = position.get("axis", 0), config["limits"].get("capacity")
        self.inputs = {i["name"]: i for i in config["inputs"] if i["name"] != self.position_input}
        self.output_names = [o["name"] for o in config["outputs"]]
        self.buffers = [_on_device(np.zeros(s["shape"], s["dtype"])) for s in config["state"]]
        self.spares = [b if s["in_place"] else _on_device(np.zeros(s["shape"], s["dtype"]))
                       for s, b in zip(config["state"], self.buffers)]
        if config["cuda_graph"]:
            self._bind_fixed()

    def _bind_fixed(self) -> None:
        """Allocate the one-row inputs and outputs and bind everything once; addresses must never change again."""
        one = lambda shape: [1 if isinstance(d, str) else d for d in shape]  # noqa: E731
        self.binding = self.session.io_binding()
        self.fixed_in = {n: _on_device(np.zeros(one(i["shape"]), i["dtype"])) for n, i in self.inputs.items()}
        self.fixed_out = {o["name"]: _on_device(np.zeros(one(o["shape"]), o["dtype"])) for o in self.config["outputs"]}
        if self.position_input:
            self.fixed_in[self.position_input] = _on_device(np.zeros(1, np.int64))
        for name, value in self.fixed_in.items():
            self.binding.bind_ortvalue_input(name, value)
        for name, value in self.fixed_out.items():
            self.binding.bind_ortvalue_output(name, value)
        for state, buffer in zip(self.config["state"], self.buffers):
            self.binding.bind_ortvalue_input(state["input"], buffer)
            self.binding.bind_ortvalue_output(state["output"], buffer)
        self.uploaded: dict[str, np.ndarray] = {}  # the arrays that the input buffers hold now

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if inputs.keys() != self.inputs.keys():
            raise InputError(f"{self.config['engine']} takes {sorted(self.inputs)}, got {sorted(inputs)}")
        rows = check_rows(self, inputs)
        try:
            if self.config["cuda_graph"] and rows <= 1:
                outputs = self._replay(inputs)
            else:
                outputs = self._run(self.prefill or self.session, inputs)
        except Exception as e:
            shapes = {k: v.shape for k, v in inputs.items()}
            raise EngineError(f"{self.config['engine']}: ONNX Runtime failed on inputs {shapes} ({e})") from e
        self.length += rows
        return outputs

    def _replay(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.position_input:
            self.fixed_in[self.position_input].update_inplace(np.array([self.length], np.int64))
        for name, array in inputs.items():
            if self.uploaded.get(name) is not array:  # constants, such as the text rows' deepstack, are sent once
                self.fixed_in[name].update_inplace(np.ascontiguousarray(array, self.inputs[name]["dtype"]))
                self.uploaded[name] = array
        self.session.run_with_iobinding(self.binding)
        return {name: value.numpy() for name, value in self.fixed_out.items()}

    def _run(self, session: ort.InferenceSession, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        binding = session.io_binding()
        bound = {n: np.ascontiguousarray(a, self.inputs[n]["dtype"]) for n, a in inputs.items()}
        if self.position_input:
            bound[self.position_input] = np.array([self.length], np.int64)
        for name, array in bound.items():
            binding.bind_cpu_input(name, array)
        for name in self.output_names:
            binding.bind_output(name)  # to the host
        for state, buffer, spare in zip(self.config["state"], self.buffers, self.spares):
            binding.bind_ortvalue_input(state["input"], buffer)
            binding.bind_ortvalue_output(state["output"], spare)
        session.run_with_iobinding(binding)
        self.buffers, self.spares = self.spares, self.buffers
        outputs = binding.get_outputs()
        return {name: outputs[i].numpy() for i, name in enumerate(self.output_names)}


def _provider(options: dict[str, str]) -> list:
    # HEURISTIC: an exhaustive search for every new length of speech would cost more than it gains
    return [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC", **options}), "CPUExecutionProvider"]


def _on_device(array: np.ndarray) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(array, DEVICE, 0)
