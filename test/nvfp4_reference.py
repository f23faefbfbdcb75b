"""torch forward with the tensors of an NVFP4 checkpoint: the reference for every graph made from it."""
import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from offline.checkpoint import Checkpoint
from offline.nvfp4 import decode, encode


def packed(checkpoint: Checkpoint) -> list[str]:
    """Names of the NVFP4 linears, without `.weight`."""
    return [n.removesuffix(".weight_scale") for n in checkpoint.tensors if n.endswith(".weight_scale")]


def read(checkpoint: Checkpoint, linear: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(checkpoint.read(f"{linear}.{name}") for name in ("weight", "weight_scale", "weight_scale_2"))


@contextlib.contextmanager
def exported_linears(model: torch.nn.Module, parts: dict[str, Checkpoint], activations: bool = True) -> Iterator[None]:
    """Within, `model` computes with the decoded weights of `parts` and (`activations`) quantises their inputs by
    `input_scale`: W4A4, else W4A16."""
    modules = {"thinker": model.thinker.model.language_model, "talker": model.talker.model}
    input_scales = {}
    for name, part in parts.items():
        for linear in packed(part):
            weight = torch.from_numpy(decode(*read(part, linear)))
            path = linear.removeprefix(f"{name}.model.")
            if ".experts." in path:
                layer, _, rest = path.partition(".experts.")
                expert, projection = rest.split(".")
                experts = modules[name].get_submodule(f"{layer}.experts")
                size = experts.gate_up_proj.shape[1] // 2
                target = (experts.down_proj if projection == "down_proj" else experts.gate_up_proj).data[int(expert)]
                half = {"gate_proj": slice(0, size), "up_proj": slice(size, None), "down_proj": slice(None)}[projection]
                target[half] = weight
            else:
                target = modules[name].get_submodule(path).weight.data
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
