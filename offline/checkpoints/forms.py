"""Which tensors an exporter can make something of, by their names: everything else is refused before anything is written.

A checkpoint whose keys match nothing must not become a graph of other numbers, and a form of weights that is not read
must not be taken for one that is.
"""

import re
from collections.abc import Iterable

import ml_dtypes
import numpy as np

from omni_ros.errors import CheckpointError

from .checkpoint import Checkpoint

UNUSED = (".input_scale", ".inv_freq")  # suffixes of tensors that a graph may do without: W4A16 needs no input scales
ZERO_POINTS = re.compile(r"(qzeros|zero_points?|zeros)$")
OTHER_PACKINGS = re.compile(r"(qweight|g_idx|pre_quant_scale|weight_packed|SCB|absmax)$")
# What stays 16 bit: 4-bit encoders and vocoder are known to ruin the answers, projections and embeddings are in no graph
SIXTEEN_BIT = (
    "thinker.visual.",
    "thinker.audio_tower.",
    "thinker.model.embed_tokens.",
    "talker.text_projection.",
    "talker.hidden_projection.",
    "talker.model.codec_embedding.",
    "talker.code_predictor.model.codec_embedding.",
    "code2wav.",
)
HEADS = ("thinker.lm_head.", "talker.codec_head.", "talker.code_predictor.lm_head.")


def check_forms(checkpoint: Checkpoint, prefixes: Iterable[str]) -> None:
    """`prefixes` are those of all components. Raises CheckpointError naming the first tensor at fault."""
    names, where = sorted(checkpoint.tensors), checkpoint.directory
    known = tuple(prefixes)
    strange = [name for name in names if not name.startswith(known)]
    if strange:
        raise CheckpointError(
            f"{where}: {len(strange)} of {len(names)} tensors belong to no part of the model, such as {strange[0]} "
            f"(parts begin with {', '.join(known)})"
        )
    for name in names:
        if ZERO_POINTS.search(name):
            raise CheckpointError(
                f"{where}: {name}: asymmetric INT4 weights (with zero points) are not read; use NVFP4 or 16 bit"
            )
        if OTHER_PACKINGS.search(name):
            raise CheckpointError(f"{where}: {name}: weights packed like this (AWQ, GPTQ, ...) are not read; use NVFP4 or 16 bit")
    for name in (n.removesuffix("_scale") for n in names if n.endswith(".weight_scale")):
        _check_nvfp4(checkpoint, name)


def _check_nvfp4(checkpoint: Checkpoint, name: str) -> None:
    """`name` has scales: it must be NVFP4 as ModelOpt writes it, and where NVFP4 may be; or FP8 where that may be."""
    where = f"{checkpoint.directory}: {name}"
    if name.startswith(SIXTEEN_BIT):
        raise CheckpointError(f"{where} is quantised, and has to stay in 16 bit; quantise again and leave it out")
    if name.startswith(HEADS) and name not in checkpoint.config.get("nvfp4_heads", []):
        raise CheckpointError(
            f"{where}: a head is quantised, and config.json does not say that this was meant; leave it out, or quantise again "
            "and --include it"
        )
    if "gate_up_proj" in name:
        raise CheckpointError(
            f"{where}: gate and up in one quantised tensor are not read; quantise again with gate_proj and up_proj"
        )
    weight = checkpoint.info(name)
    if weight.dtype == ml_dtypes.float8_e4m3fn and name.startswith("talker.code_predictor.model.layers."):
        read_scalar(checkpoint, f"{name}_scale")
        return
    if weight.dtype != np.uint8 or f"{name}_scale_2" not in checkpoint:
        raise CheckpointError(
            f"{where}: {weight.dtype} weights with scales are not NVFP4, the only quantised form that is read "
            "(in the CodePredictor's layers, FP8 with one scale, too)"
        )
    if checkpoint.info(f"{name}_scale").dtype != ml_dtypes.float8_e4m3fn:
        raise CheckpointError(f"{where}: its block scales are {checkpoint.info(f'{name}_scale').dtype}, NVFP4 has float8_e4m3fn")
    for scale in (f"{name}_scale_2", f"{name.removesuffix('weight')}input_scale"):
        if scale in checkpoint:
            read_scalar(checkpoint, scale)


def read_scalar(checkpoint: Checkpoint, name: str) -> np.float32:
    """A scale of a whole matrix: one number. Some exporters write it as [1], or once for each matrix of a fused kernel
    ([2] for gate and up): the numbers must be the same then. Raises CheckpointError."""
    values = checkpoint.read(name).reshape(-1)
    if not len(values) or not (values == values[0]).all():
        raise CheckpointError(
            f"{checkpoint.directory}: {name} has {len(values)} different values ({', '.join(map(str, values[:3]))}, ...): "
            "scales of fused matrices; quantise again so that gate and up share theirs"
        )
    return np.float32(values[0])
