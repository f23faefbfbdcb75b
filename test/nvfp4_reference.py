"""NVFP4 checkpoints without ModelOpt, and the torch forward with their tensors: the reference for every graph made of them."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from offline.checkpoints.checkpoint import STANDALONE, Checkpoint, write_safetensors
from offline.quantization.nvfp4 import decode, encode

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # share one scale_2, as ModelOpt exports them
CODE_PREDICTOR = re.compile(r"talker\.code_predictor\.model\.layers\..*(self_attn\.[qkvo]|gate|up)_proj\.weight")
HEADS = ("thinker.lm_head.weight", "talker.codec_head.weight")


def packed(checkpoint: Checkpoint) -> list[str]:
    """Names of the NVFP4 linears, without `.weight`."""
    return [n.removesuffix(".weight_scale") for n in checkpoint.tensors if n.endswith(".weight_scale")]


def read(checkpoint: Checkpoint, linear: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(checkpoint.read(f"{linear}.{name}") for name in ("weight", "weight_scale", "weight_scale_2"))


@contextlib.contextmanager
def exported_linears(model: torch.nn.Module, parts: dict[str, Checkpoint], activations: bool = True) -> Iterator[None]:
    """Within, `model` computes with the decoded weights of `parts` and (`activations`) quantises their inputs by
    `input_scale`: W4A4, else W4A16."""
    layers = {"thinker": model.thinker.model.language_model, "talker": model.talker.model}
    input_scales = {}
    for name, part in parts.items():
        for linear in packed(part):
            weight = torch.from_numpy(decode(*read(part, linear)))
            path = linear.removeprefix(f"{name}.model.")
            if ".experts." in path:
                layer, _, rest = path.partition(".experts.")
                expert, projection = rest.split(".")
                experts = layers[name].get_submodule(f"{layer}.experts")
                size = experts.gate_up_proj.shape[1] // 2
                target = (experts.down_proj if projection == "down_proj" else experts.gate_up_proj).data[int(expert)]
                half = {"gate_proj": slice(0, size), "up_proj": slice(size, None), "down_proj": slice(None)}[projection]
                target[half] = weight
            else:
                owner = model if path == linear else layers[name]  # a head lies beside the layers
                target = owner.get_submodule(path).weight.data
                target.copy_(weight)
            if activations:
                input_scales[target.data_ptr()] = float(part.read(f"{linear}.input_scale"))
    plain = torch.nn.functional.linear

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        scale = input_scales.get(weight.data_ptr())
        return plain(x if scale is None else torch.from_numpy(decode(*encode(x.numpy(), scale))), weight, bias)

    torch.nn.functional.linear = linear
    try:
        yield
    finally:
        torch.nn.functional.linear = plain


def is_quantised(name: str) -> bool:
    return name.endswith("proj.weight") and (".experts." in name or name.startswith("thinker.model") and "self_attn" in name)


def shared_scale(root: Checkpoint, name: str) -> float:
    linear, projection = name.removesuffix(".weight").rsplit(".", 1)
    together = next((group for group in FUSED if projection in group), (projection,))
    return max(float(np.abs(root.read(f"{linear}.{p}.weight").astype(np.float32)).max()) for p in together) / (6 * 448)


def split(root: Checkpoint, out: Path, heads: bool = False) -> dict[str, Checkpoint]:
    """DIR/thinker and DIR/talker as `offline.quantize` lays them out (test_quantize.py), without waiting for ModelOpt;
    with `heads`, as it does when asked to --include them."""
    for model_type, prefix in STANDALONE.items():
        folder, tensors = out / prefix.rstrip("."), {}
        folder.mkdir()
        for name in root.tensors:
            if not name.startswith(prefix) or name.startswith(("thinker.visual.", "thinker.audio_tower.")):
                continue
            key, value = name.removeprefix(prefix), root.read(name)
            if is_quantised(name) or heads and name in HEADS:
                codes, scale, scale_2 = encode(value, shared_scale(root, name))
                tensors |= {
                    key: codes,
                    f"{key}_scale": scale,
                    f"{key}_scale_2": np.array(scale_2),
                    key.replace("weight", "input_scale"): np.array(4 / (6 * 448), np.float32),
                }
            else:
                tensors[key] = value
        write_safetensors(folder / "model.safetensors", {k: (v.dtype, v.shape, [v]) for k, v in tensors.items()})
        config = {**root.config, **({"nvfp4_heads": list(HEADS)} if heads else {})}
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, "omni_config": config}))
        for file in root.directory.iterdir():
            if file.suffix in (".json", ".jinja") and file.name != "config.json":
                shutil.copy(file, folder / file.name)
    return {name: Checkpoint(out / name) for name in ("thinker", "talker")}


def quantised_code_predictor(root: Checkpoint, out: Path, form: str) -> Checkpoint:
    """`root` with the CodePredictor that `offline.quantize --cp_quantization` makes of it, `form` fp8 or nvfp4."""
    tensors = {}
    for name in root.tensors:
        value = root.read(name)
        if CODE_PREDICTOR.fullmatch(name):
            value = value.astype(np.float32)
            if form == "fp8":
                scale = np.abs(value).max() / np.float32(448)
                value, tensors[f"{name}_scale"] = (value / scale).astype(ml_dtypes.float8_e4m3fn), np.array(scale)
            else:
                value, scale, scale_2 = encode(value, shared_scale(root, name))
                tensors |= {f"{name}_scale": scale, f"{name}_scale_2": np.array(scale_2)}
            tensors[name.replace("weight", "input_scale")] = np.array(8 / (448 if form == "fp8" else 6 * 448), np.float32)
        tensors[name] = value
    shutil.copytree(root.directory, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    write_safetensors(out / "model.safetensors", {k: (v.dtype, v.shape, [v]) for k, v in tensors.items()})
    return Checkpoint(out)


def decoded(root: Checkpoint, parts: dict[str, Checkpoint], out: Path) -> Path:
    """A float32 checkpoint for transformers: `root`, with what is NVFP4 or FP8 in `parts` replaced by the values of its codes."""
    tensors = {}
    for name in root.tensors:
        part = parts.get(name.split(".")[0])
        if part and f"{name}_scale_2" in part:
            tensors[name] = decode(*read(part, name.removesuffix(".weight")))
        elif part and f"{name}_scale" in part:
            tensors[name] = part.read(name).astype(np.float32) * part.read(f"{name}_scale")
        else:
            tensors[name] = root.read(name).astype(np.float32)
    out.mkdir()
    write_safetensors(out / "model.safetensors", {k: (v.dtype, v.shape, [v]) for k, v in tensors.items()})
    for file in root.directory.iterdir():
        if file.suffix in (".json", ".jinja") and "index" not in file.name:
            shutil.copy(file, out / file.name)
    return out
