"""Does an engine compute what it should? Compilers and drivers are known to make graphs fast and wrong without a word.

The build stored a few inputs and the exported graph's own answers to them (offline/outputs/self_check.py), computed on a CPU in
float32; here the engine answers, when it is opened, before anybody hears it.
"""

from pathlib import Path

import numpy as np

from omni_ros.engines.engine import Engine
from omni_ros.engines.sidecar import Sidecar
from omni_ros.errors import EngineError

# What is known to cure it, by backend.
CURES = {
    "onnxruntime": "build the engine again, or install another version of onnxruntime",
    "cuda": "build the engine again, update the GPU's driver, or build with --device cpu",
    "tensorrt": "build the engine again with another TensorRT (JetPack 7.2 or newer; 10.13 fuses layers wrongly at batch 1)",
}


def check_answers(engine: Engine) -> None:
    """Raises EngineError that says which output of `engine` is how far off. Nothing to do where the build stored nothing."""
    check = engine.config.self_check
    if check is None or not check.file:
        return
    stored = {name: tensor.array() for name, tensor in Sidecar(engine.directory / check.file).tensors.items()}
    worst: dict[str, float] = {}
    first_codes: list[bool] = []
    state = engine.new_state() if engine.config.state else None
    try:
        for call in range(check.calls):
            inputs = _arrays(stored, f"{call}.in.", engine)
            wanted = {name[len(f"{call}.out.") :]: a for name, a in stored.items() if name.startswith(f"{call}.out.")}
            answers = engine.run(inputs, state)
            for name, array in wanted.items():
                if name not in answers or array.shape != answers[name].shape or not np.isfinite(answers[name]).all():
                    raise _refused(engine, f"{name} of its self-check is no number, or of another shape")
                if name == "codes":
                    first_codes.append(bool(array[0] == answers[name][0]))
                if check.cosine:
                    worst[name] = min(worst.get(name, 1.0), _cosine(array, answers[name]))
    finally:
        if state is not None:
            state.close()
    for name, cosine in worst.items():
        if cosine < check.cosine:
            raise _refused(engine, f"{name} has a cosine of {cosine:.4f} with what it should be, at least {check.cosine} is due")
    if first_codes and np.mean(first_codes) < check.first_code:
        right = f"{sum(first_codes)} of {len(first_codes)}"
        raise _refused(engine, f"{right} codes are what they should be, at least {check.first_code:.0%} are due")


def _arrays(stored: dict[str, np.ndarray], prefix: str, engine: Engine) -> dict[str, np.ndarray]:
    """The inputs of one call, in the types that the engine takes."""
    missing = [prefix + i.name for i in engine.config.fed if prefix + i.name not in stored]
    if missing:
        raise EngineError(f"{engine.directory}: its self-check lacks {', '.join(missing)}; build the engine again")
    return {i.name: stored[prefix + i.name].astype(i.dtype) for i in engine.config.fed}


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / max(norms, 1e-30)


def _refused(engine: Engine, what: str) -> EngineError:
    directory: Path = engine.directory
    return EngineError(f"{directory}: computes wrongly on this machine: {what}; {CURES[engine.config.backend]}")
