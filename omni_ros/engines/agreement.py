"""What types cannot say of a config.json: its parts agree, and no number in it divides by zero or reads out of bounds."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from omni_ros.engines.parse import wrong
from omni_ros.errors import EngineError

if TYPE_CHECKING:
    from omni_ros.engines.config import EngineConfig

DTYPES = ("float32", "float16", "int64", "int32", "bool")  # of what goes in and out of an engine
FP8 = "float8_e4m3fn"  # of keys and values in the KV cache of our own kernels, too
# Of each engine, the numbers of `model` that are sizes of tensors: key -> tensor, axis, and what is added to the axis' size
SIZES: dict[str, dict[str, tuple[str, int, int]]] = {
    "thinker": {
        "hidden_size": ("inputs_embeds", -1, 0),
        "num_deepstack": ("deepstack", 0, 0),
        "vocab_size": ("logits", -1, 0),
    },
    "talker": {"hidden_size": ("inputs_embeds", -1, 0), "vocab_size": ("logits", -1, 0)},
    "code_predictor": {"num_code_groups": ("noise", 0, 1), "noise_width": ("noise", 1, 0)},
    "code2wav": {"num_quantizers": ("codes", 0, 0)},
    "audio": {"mel_bins": ("mel", 2, 0), "hidden_size": ("embeds", -1, 0)},
    "visual": {
        "hidden_size": ("embeds", -1, 0),
        "levels": ("deepstack", 0, 0),
        "patch_width": ("patches", -1, 0),
    },
}
MAY_BE_ZERO = ("num_deepstack", "levels", "lookahead_samples", "position_id_per_seconds")  # and every token id


def check_agreement(config: "EngineConfig", path: Path) -> None:
    """Raises EngineError naming `path`, a config.json."""
    tensors = config.inputs + config.outputs
    names = [t.name for t in tensors] + [end for s in config.state for end in (s.input, s.output)]
    if len(set(names)) < len(names):
        raise EngineError(f"{path}: names an input or output twice; build the engine again")
    caches = (FP8,) if config.backend == "cuda" and config.engine in ("thinker", "talker") else ()
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise wrong(path, "dtype", tensor.dtype)
    for state in config.state:
        if state.dtype not in DTYPES + caches:
            raise wrong(path, "dtype", state.dtype)
        if not state.fp8_scale:
            raise wrong(path, "fp8_scale", state.fp8_scale)
    for name in (*config.files, *config.sidecars, *config.checksums):
        if Path(name).name != name or "\0" in name:
            raise wrong(path, "files", name)
    _check_position(config, path)
    _check_numbers(config, path)


def _check_position(config: "EngineConfig", path: Path) -> None:
    if config.state and config.position is None:
        raise EngineError(f"{path}: lacks position; build the engine again")
    if config.position is None:
        return
    counted = next((i for i in config.inputs if i.name == config.position.counts), None)
    known = any(i.name == config.position.input for i in config.inputs)
    if not known or counted is None or config.position.axis >= len(counted.shape):
        raise EngineError(f"{path}: position names inputs that the engine does not have; build again")
    capacity = getattr(config.limits, "capacity", None)
    if capacity is None:
        raise EngineError(f"{path}: a {config.engine} engine has no position; build again")
    for state in config.state:  # the graph writes in place without looking: rows past the buffer would be someone else's
        if state.in_place and state.shape[2:3] != [capacity]:
            raise EngineError(f"{path}: limits.capacity is {capacity}, {state.input} has {state.shape[2:3]} rows; build again")


def _check_numbers(config: "EngineConfig", path: Path) -> None:
    for section in ("model", "limits"):
        for key, value in dataclasses.asdict(getattr(config, section)).items():
            if value == 0 and not key.endswith(("_id", *MAY_BE_ZERO)):
                raise wrong(path, f"{section}.{key}", value)
    tensors = {t.name: t for t in config.inputs + config.outputs}
    for key, (name, axis, added) in SIZES[config.engine].items():
        value, shape = getattr(config.model, key), tensors[name].shape if name in tensors else []
        if not -len(shape) <= axis < len(shape) or shape[axis] != value - added:
            raise EngineError(f"{path}: model.{key} is {value}, {name} is {shape}; build the engine again")
    model, limits = config.model, config.limits
    if config.engine == "audio" and limits.max_chunks < model.window_chunks:
        raise EngineError(f"{path}: limits.max_chunks is less than model.window_chunks; build the engine again")
    if config.engine == "visual" and model.head_dim % 4:
        raise wrong(path, "model.head_dim", model.head_dim)
    if config.engine in ("thinker", "talker"):
        ids = {key: value for key, value in vars(model).items() if key.endswith("_id")}
        ids |= {f"speaker_id.{name}": value for name, value in getattr(model, "speaker_id", {}).items()}
        ids.pop("speaker_id", None)
        for key, value in ids.items():
            if value >= model.vocab_size:
                raise wrong(path, f"model.{key}", value)
    if config.engine == "talker" and not model.speaker_id:
        raise wrong(path, "model.speaker_id", model.speaker_id)
