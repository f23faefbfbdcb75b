"""Loading a graph into ONNX Runtime, and whether it is the graph that config.json describes."""

import hashlib
from pathlib import Path
from typing import Any

import onnxruntime as ort

from omni_ros.engines.config import EngineConfig, StateConfig, TensorConfig
from omni_ros.errors import EngineError

ORT_TYPE = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


def load_session(directory: Path, config: EngineConfig, threads: int, providers: list[Any]) -> ort.InferenceSession:
    """model.onnx, whose checksum config.json knows. Raises EngineError naming the file."""
    path = directory / "model.onnx"
    if hashlib.sha256(path.read_bytes()).hexdigest() != config.graph_sha256:
        raise EngineError(f"{path}: damaged (its checksum differs from config.json); copy or build the engine again")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Stages share the cores: a pool that spins after its work would take them from the next stage.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as e:  # ORT raises half a dozen classes of its own for a bad model
        raise EngineError(f"{path}: ONNX Runtime cannot load it ({e}); build the engine again") from e


def check_graph(session: ort.InferenceSession, directory: Path, config: EngineConfig) -> None:
    """config.json and the graph must describe the same inputs, outputs and state."""
    declared: dict[str, TensorConfig | StateConfig] = {t.name: t for t in config.inputs + config.outputs}
    declared |= {s.input: s for s in config.state} | {s.output: s for s in config.state}
    found = {v.name: v for v in session.get_inputs() + session.get_outputs()}
    where = directory / "config.json"
    if set(declared) != set(found):
        raise EngineError(f"{where}: disagrees with model.onnx about {sorted(set(declared) ^ set(found))}; build again")
    for name, value in found.items():
        shape, dtype = [d if isinstance(d, int) else "*" for d in value.shape], ORT_TYPE.get(value.type, value.type)
        wanted = [d if isinstance(d, int) else "*" for d in declared[name].shape]
        if shape != wanted or dtype != declared[name].dtype:
            raise EngineError(
                f"{where}: says {name} is {declared[name].dtype}{wanted}, model.onnx has {dtype}{shape}; build again"
            )
    if config.position is None:
        return
    if not {config.position.input, config.position.counts} <= {i.name for i in config.inputs}:
        raise EngineError(f"{where}: position names inputs that model.onnx does not have; build again")
    capacity = config.limits.capacity
    for state in config.state:  # the graph writes in place without looking: rows past the buffer would be someone else's
        if state.in_place and state.shape[2] != capacity:
            raise EngineError(f"{where}: limits.capacity is {capacity}, {state.input} has {state.shape[2]} rows; build again")
