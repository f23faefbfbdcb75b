"""A graph in ONNX Runtime, on any device: loading it, whether it is the one that config.json describes, running it."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from omni_ros.engines.config import EngineConfig, StateConfig, TensorConfig
from omni_ros.engines.engine import check_rows
from omni_ros.engines.onnxruntime.state import OnnxRuntimeState
from omni_ros.errors import EngineError, InputError

ORT_TYPE = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}

SPIN_US = "20"  # of 20, 50, 150 and without end the one with the shortest turns, and no more CPU time than without spinning


def load_session(directory: Path, config: EngineConfig, threads: int, providers: list[Any]) -> ort.InferenceSession:
    """model.onnx, whose checksum config.json knows. Raises EngineError naming the file."""
    path = directory / "model.onnx"
    try:
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as e:
        raise EngineError(f"{path}: cannot be read ({e}); copy or build the engine again") from e
    if checksum != config.graph_sha256:
        raise EngineError(f"{path}: damaged (its checksum differs from config.json); copy or build the engine again")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Stages share the cores: a pool that spins for long after its work takes them from the next stage, and one that does not
    # spin is woken for every operator, which takes as long as a small one.
    if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 26):
        options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as e:  # ORT raises half a dozen classes of its own for a bad model
        raise EngineError(f"{path}: ONNX Runtime cannot load it ({one_line(e)}); build the engine again") from e.with_traceback(
            None
        )


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


def check_inputs(config: EngineConfig, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays as the graph takes them, contiguous and of its types. Raises InputError for another set of names."""
    dtypes = {i.name: i.dtype for i in config.fed}
    if inputs.keys() != dtypes.keys():
        raise InputError(f"{config.engine} takes {sorted(dtypes)}, got {sorted(inputs)}")
    return {name: np.ascontiguousarray(array, dtypes[name]) for name, array in inputs.items()}


def run_graph(
    session: ort.InferenceSession,
    binding: Any,  # ort.IOBinding; None in a closed state, which is refused
    config: EngineConfig,
    inputs: dict[str, np.ndarray],
    state: OnnxRuntimeState | None,
) -> dict[str, np.ndarray]:
    """One forward pass of what `check_inputs` returned; outputs come to the host, state stays where it is."""
    rows = check_rows(config, inputs, state)
    if state is not None and config.position is not None:
        inputs = inputs | {config.position.input: np.array([state.length], np.int64)}
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    binding.clear_binding_outputs()
    for output in config.outputs:
        binding.bind_output(output.name)
    if state is not None:
        state.bind()
    try:
        session.run_with_iobinding(binding)
    except Exception as e:
        shapes = {name: array.shape for name, array in inputs.items()}
        raise EngineError(f"{config.engine}: ONNX Runtime failed on inputs {shapes} ({one_line(e)})") from e.with_traceback(None)
    if state is not None:
        state.swap()
        state.length += rows
    return {output.name: value.numpy() for output, value in zip(config.outputs, binding.get_outputs())}


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
