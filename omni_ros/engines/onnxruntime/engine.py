"""ONNX Runtime backend. State tensors are allocated once; KV caches are written in place by the graph itself."""

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime as ort

from omni_ros.engines.engine import check_rows
from omni_ros.errors import EngineError, InputError

ORT_TYPE = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


class OnnxRuntimeEngine:
    """See engine.Engine. Not thread-safe: one engine belongs to one stage."""

    def __init__(self, directory: Path, config: dict, threads: int):
        self.directory, self.config, self.length = directory, config, 0
        path = directory / "model.onnx"
        self.session = load_session(path, config["graph_sha256"], threads, ["CPUExecutionProvider"])
        check_graph(self.session, config, directory)
        self.inputs = {i["name"]: np.dtype(i["dtype"]) for i in config["inputs"]}
        self.output_names = [o["name"] for o in config["outputs"]]
        position = config.get("position", {})
        self.position_input, self.counts = position.get("input"), position.get("counts")
        self.axis, self.capacity = position.get("axis", 0), config["limits"].get("capacity")
        self.inputs.pop(self.position_input, None)
        self.binding = self.session.io_binding()
        self.buffers = [self._allocate(s) for s in config["state"]]
        # State that is not written in place needs a second buffer: a run reads one and writes the other.
        self.spares = [b if s["in_place"] else self._allocate(s) for s, b in zip(config["state"], self.buffers)]
        for state, buffer in zip(config["state"], self.buffers):
            if state["in_place"]:
                self.binding.bind_ortvalue_input(state["input"], buffer)

    @staticmethod
    def _allocate(state: dict) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.zeros(state["shape"], state["dtype"]))

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if inputs.keys() != self.inputs.keys():
            raise InputError(f"{self.config['engine']} takes {sorted(self.inputs)}, got {sorted(inputs)}")
        bound = {name: np.ascontiguousarray(array, self.inputs[name]) for name, array in inputs.items()}
        rows = check_rows(self, bound)
        if self.counts:
            bound[self.position_input] = np.array([self.length], np.int64)
        for name, array in bound.items():
            self.binding.bind_cpu_input(name, array)
        self.binding.clear_binding_outputs()
        for name in self.output_names:
            self.binding.bind_output(name)
        for state, buffer, spare in zip(self.config["state"], self.buffers, self.spares):
            if not state["in_place"]:
                self.binding.bind_ortvalue_input(state["input"], buffer)
            self.binding.bind_ortvalue_output(state["output"], spare)
        try:
            self.session.run_with_iobinding(self.binding)
        except Exception as e:
            raise EngineError(
                f"{self.config['engine']}: ONNX Runtime failed on inputs { {k: v.shape for k, v in bound.items()} } ({e})"
            ) from e
        self.buffers, self.spares = self.spares, self.buffers
        self.length += rows
        outputs = self.binding.get_outputs()
        return {name: outputs[i].numpy() for i, name in enumerate(self.output_names)}

    def reset(self) -> None:
        self.length = 0
        for state, buffer in zip(self.config["state"], self.buffers):
            if not state["in_place"]:  # KV cache columns beyond `length` are never read
                buffer.update_inplace(np.zeros(state["shape"], state["dtype"]))

    def truncate(self, length: int) -> None:
        if not all(s["in_place"] for s in self.config["state"]):
            raise EngineError(f"{self.config['engine']}: this engine's state can be reset but not truncated")
        if not 0 <= length <= self.length:
            raise ValueError(f"truncate({length}) of {self.length} rows")
        self.length = length


def load_session(path: Path, sha256: str, threads: int, providers: list) -> ort.InferenceSession:
    """Load a graph whose checksum config.json knows. Raises EngineError naming the file."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise EngineError(f"{path}: damaged (its checksum differs from config.json); build the engine again")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Stages share the cores: a pool that spins after its work would take them from the next stage.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as e:  # ORT raises half a dozen classes of its own for a bad model
        raise EngineError(f"{path}: ONNX Runtime cannot load it ({e}); build the engine again") from e


def check_graph(session: ort.InferenceSession, config: dict, directory: Path) -> None:
    """config.json and the graph must describe the same inputs and outputs."""
    declared = {
        **{e["name"]: e for e in config["inputs"] + config["outputs"]},
        **{s["input"]: s for s in config["state"]},
        **{s["output"]: s for s in config["state"]},
    }
    found = {v.name: v for v in session.get_inputs() + session.get_outputs()}
    where = directory / "config.json"
    if set(declared) != set(found):
        raise EngineError(f"{where}: disagrees with model.onnx about {sorted(set(declared) ^ set(found))}; build again")
    for name, value in found.items():
        shape, dtype = [d if isinstance(d, int) else "*" for d in value.shape], ORT_TYPE.get(value.type, value.type)
        wanted = [d if isinstance(d, int) else "*" for d in declared[name]["shape"]]
        if shape != wanted or dtype != declared[name]["dtype"]:
            raise EngineError(
                f"{where}: says {name} is {declared[name]['dtype']}{wanted}, model.onnx has {dtype}{shape}; build again"
            )
    if not config["state"]:
        return
    position, capacity = config["position"], config["limits"]["capacity"]
    if not {position["input"], position["counts"]} <= {i["name"] for i in config["inputs"]}:
        raise EngineError(f"{where}: position names inputs that model.onnx does not have; build again")
    for state in config["state"]:  # the graph writes in place without looking: rows past the buffer would be someone else's
        if state["in_place"] and state["shape"][2] != capacity:
            raise EngineError(
                f"{where}: limits.capacity is {capacity}, {state['input']} has {state['shape'][2]} rows; build again"
            )
