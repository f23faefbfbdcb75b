"""Which modules become NVFP4, by their names in the root checkpoint."""

import fnmatch
import re
from collections.abc import Iterable

from omni_ros.errors import CheckpointError

from ..checkpoints.checkpoint import Checkpoint
from .nvfp4 import BLOCK

# All else stays in 16 bit.
QUANTISED = ("thinker.model.layers.*.self_attn.*", "thinker.model.layers.*.mlp.experts", "talker.model.layers.*.mlp.experts")
CODE_PREDICTOR = (  # with --cp_quantization; its down_proj and heads stay in 16 bit
    *(f"talker.code_predictor.model.layers.*.self_attn.{p}_proj" for p in "qkvo"),
    "talker.code_predictor.model.layers.*.mlp.gate_proj",
    "talker.code_predictor.model.layers.*.mlp.up_proj",
)
NO_LINEAR = re.compile(r"thinker\.(visual|audio_tower)\.|code2wav\.|.*(embed_tokens|codec_embedding)|.*\.mlp\.gate\.weight$")
EXPERT = re.compile(r"(.*\.mlp\.experts)\.\d+\.(\w+)\.weight$")


def input_sizes(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Module name -> input sizes, of every module that can be quantised: linears, and the experts of a layer as one module,
    which has two: of gate and up, and of down."""
    sizes: dict[str, list[int]] = {}
    for name, info in checkpoint.tensors.items():
        if NO_LINEAR.match(name) or not name.endswith(".weight") or len(info.shape) != 2:
            continue
        expert = EXPERT.match(name)
        if expert is None:
            sizes[name.removesuffix(".weight")] = [info.shape[1]]
        elif expert[2] != "up_proj":
            sizes.setdefault(expert[1], [0, 0])[expert[2] == "down_proj"] = info.shape[1]
    return sizes


def select(sizes: dict[str, list[int]], include: Iterable[str], exclude: Iterable[str]) -> list[str]:
    """Names of the modules to quantise: QUANTISED and `include` (wildcards), less `exclude`.

    Raises CheckpointError for a wildcard without a match and for an input size that has no whole blocks.
    """
    for pattern in (*include, *exclude):
        if not fnmatch.filter(sizes, pattern):
            raise CheckpointError(
                f"{pattern!r} matches no module of the two checkpoints that could be NVFP4; there are {', '.join(_kinds(sizes))}"
            )
    chosen = [
        n
        for n in sizes
        if any(fnmatch.fnmatchcase(n, p) for p in (*QUANTISED, *include)) and not any(fnmatch.fnmatchcase(n, p) for p in exclude)
    ]
    if not chosen:
        raise CheckpointError("nothing is left to quantise: --exclude matches every module")
    odd = [n for n in chosen if any(size % BLOCK for size in sizes[n])]
    if odd:
        raise CheckpointError(
            f"{odd[0]} has {sizes[odd[0]]} inputs, NVFP4 needs multiples of {BLOCK}; "
            f"keep it in 16 bit with --exclude {' '.join(map(repr, _kinds(odd)))}"
        )
    return chosen


def _kinds(names: Iterable[str]) -> list[str]:
    """Names with their numbers replaced by *, each once."""
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names))
