"""Thinker and Talker -> NVFP4 by NVIDIA ModelOpt, calibrated together in one pass.

While ModelOpt collects the ranges of activations nothing is quantised, so that the Talker is calibrated on what the
16-bit Thinker says. ModelOpt's own exporter writes the two checkpoints: it gives linears that read the same input (q, k
and v; gate and up) common scales, so the exported tensors, not the quantisers in memory, are the result.
"""

import fnmatch
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import modelopt
import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from tqdm import tqdm
from transformers import Qwen3OmniMoeForConditionalGeneration
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoePreTrainedModel

from omni_ros.errors import CheckpointError

from ..checkpoints.checkpoint import STANDALONE, Checkpoint
from ..checkpoints.forms import HEADS
from ..checkpoints.processor_files import copy_processor_files
from ..outputs.atomic import atomic_directory
from .calibration import Prompts, Sample, chained_forward
from .nvfp4 import BLOCK

# Modules that become NVFP4, by their names in the root checkpoint. All else stays in 16 bit.
QUANTISED = ("thinker.model.layers.*.self_attn.*", "thinker.model.layers.*.mlp.experts", "talker.model.layers.*.mlp.experts")
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: BLOCK, "type": "dynamic", "scale_bits": (4, 3)}}
ARCHITECTURES = {"thinker": "Qwen3OmniMoeThinkerTextModel", "talker": "Qwen3OmniMoeTalkerForConditionalGeneration"}
MODEL_TYPES = {prefix.removesuffix("."): model_type for model_type, prefix in STANDALONE.items()}


class Thinker(Qwen3OmniMoePreTrainedModel):
    """The Thinker without its encoders: what a `qwen3_omni_moe_text` checkpoint holds, and ModelOpt exports."""

    def __init__(self, model: Qwen3OmniMoeForConditionalGeneration):
        super().__init__(model.thinker.config.text_config)
        self.model, self.lm_head = model.thinker.model.language_model, model.thinker.lm_head

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.model(input_ids=input_ids).last_hidden_state)


def load(checkpoint: Checkpoint, device: torch.device) -> Qwen3OmniMoeForConditionalGeneration:
    """The whole model in its stored precision, each tensor read from its shard straight to `device`.

    Raises CheckpointError when it does not fit or a tensor is missing.
    """
    needed = required_bytes(checkpoint)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else needed
    if free < needed:
        raise CheckpointError(
            f"{checkpoint.directory}: needs {needed / 1e9:.0f} GB on the GPU and {free / 1e9:.0f} GB "
            "are free; use a larger GPU or --device cpu"
        )
    model, info = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        checkpoint.directory, dtype="auto", device_map={"": device}, output_loading_info=True, experts_implementation="eager"
    )  # experts as plain linears, which ModelOpt can watch
    wrong = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if wrong:
        raise CheckpointError(f"{checkpoint.directory}: tensors are missing or misshapen: {', '.join(wrong[:5])}")
    return model.eval()


def required_bytes(checkpoint: Checkpoint) -> int:
    """Weights, plus one layer's experts (held twice while they are fused at load and split at export), plus 10 GB of
    activations and KV cache: 82 GB for 30B-A3B. On an H200, 81 GB were in use after four short samples."""
    sizes = {name: info.nbytes for name, info in checkpoint.tensors.items()}
    layer = sum(size for name, size in sizes.items() if name.startswith("thinker.model.layers.0.mlp.experts."))
    return sum(sizes.values()) + layer + 10 * 10**9


# ---- which modules --------------------------------------------------------------------------------------------------
def input_sizes(parts: torch.nn.Module) -> dict[str, list[int]]:
    """Module name -> input sizes, of every module that ModelOpt can quantise: linears and fused experts."""
    sizes = {}
    for name, module in parts.named_modules():
        if isinstance(module, torch.nn.Linear):
            sizes[name] = [module.in_features]
        elif hasattr(module, "gate_up_proj") and hasattr(module, "num_experts"):
            sizes[name] = [module.gate_up_proj.shape[-1], module.down_proj.shape[-1]]
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


# ---- calibration ----------------------------------------------------------------------------------------------------
class ExpertUse:
    """Counts how many rows each router sends to each expert; `counts[layer]` is int64 [experts]."""

    def __init__(self, parts: torch.nn.Module):
        self.counts: dict[str, torch.Tensor] = {}
        self.hooks = [
            m.register_forward_hook(functools.partial(self._count, name.removesuffix(".gate")))
            for name, m in parts.named_modules()
            if name.endswith(".mlp.gate")
        ]

    def _count(self, layer: str, router: torch.nn.Module, inputs: tuple, output: tuple) -> None:
        chosen = torch.bincount(output[2].flatten(), minlength=router.num_experts)  # output[2]: expert ids [rows, k]
        self.counts[layer] = self.counts.get(layer, 0) + chosen

    def never_reached(self) -> dict[str, list[int]]:
        unused = {layer: (n == 0).nonzero().flatten().tolist() for layer, n in self.counts.items()}
        return {layer: experts for layer, experts in unused.items() if experts}


def calibrate(parts: torch.nn.Module, chosen: list[str], forward: Callable[[], None]) -> None:
    """Insert ModelOpt's quantisers and set their ranges: of weights by their own maximum, of inputs by what `forward`
    feeds. Raises CheckpointError for a module whose inputs `forward` never feeds."""
    rules = [{"quantizer_name": "*", "enable": False}]
    rules += [{"quantizer_name": f"{name}.*{kind}_quantizer*", "cfg": NVFP4} for name in chosen for kind in ("weight", "input")]

    def feed(_: torch.nn.Module) -> None:
        # The weights' ranges are there by now; looking again whenever a weight is used would find nothing new.
        for name, quantizer in _quantizers(parts, chosen):
            if "weight_quantizer" in name:
                quantizer.disable_calib()
        forward()

    mtq.quantize(parts, {"quant_cfg": rules, "algorithm": "max"}, feed)
    for name, quantizer in _quantizers(parts, chosen):
        if quantizer.amax is None or not quantizer.amax.max() > 0:
            raise CheckpointError(
                f"{name.rpartition('.')[0]}: no calibration sample reached it; add some that use it "
                "(hidden_projection: recordings or pictures) or keep it in 16 bit"
            )


def _quantizers(parts: torch.nn.Module, chosen: list[str]) -> Iterator[tuple[str, torch.nn.Module]]:
    """(name, quantiser) of everything that is quantised."""
    for name in chosen:
        for suffix, module in parts.get_submodule(name).named_modules():
            if isinstance(module, mtq.nn.TensorQuantizer) and module.is_enabled:
                yield f"{name}.{suffix}", module


# ---- output ---------------------------------------------------------------------------------------------------------
def ranges(parts: torch.nn.Module, chosen: list[str]) -> dict[str, dict[str, float]]:
    """Module -> quantiser -> largest magnitude it was calibrated for; of per-expert quantisers the largest."""
    table: dict[str, dict[str, float]] = {name: {} for name in chosen}
    for name, quantizer in _quantizers(parts, chosen):
        owner = next(n for n in (name.rpartition(".")[0], name.rpartition(".")[0].rpartition(".")[0]) if n in table)
        kind = name.removeprefix(f"{owner}.").split(".")[0].removesuffix("s")
        table[owner][kind] = max(table[owner].get(kind, 0.0), float(quantizer.amax.max()))
    return table


def export(part: torch.nn.Module, name: str, checkpoint: Checkpoint, directory: Path, heads: list[str]) -> None:
    """Write `part` as a checkpoint of its own: tensor X of the folder is tensor `name`.X of the root checkpoint.

    `heads`: weights of heads that were to be NVFP4. config.json says so, as elsewhere a 4-bit head is an accident.
    """
    with warnings.catch_warnings(), atomic_directory(directory) as partial:
        # ModelOpt splits the experts back into the names on disk itself; what it then warns of has been done.
        warnings.filterwarnings("ignore", message="Quant-aware reverse weight conversion skipped")
        part.config.architectures = [ARCHITECTURES[name]]
        export_hf_checkpoint(part, export_dir=partial)
        config = json.loads((partial / "config.json").read_text())
        whole = {**checkpoint.config, **({"nvfp4_heads": heads} if heads else {})}
        config.update(architectures=[ARCHITECTURES[name]], model_type=MODEL_TYPES[name], omni_config=whole)
        config.pop("audio_config", None)  # what chained_forward lent the Talker
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if name == "thinker":
            copy_processor_files(checkpoint.directory, partial)


def quantize(
    checkpoint: Checkpoint,
    samples: list[Sample],
    output: Path,
    device: str,
    seed: int,
    include: Iterable[str],
    exclude: Iterable[str],
    reply_tokens: int,
    codec_frames: int,
) -> dict:
    """Write output/{thinker,talker} and return the report: samples, ranges per module, use of the experts."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    prompts = Prompts(checkpoint)
    for sample in tqdm(samples, desc="reading samples", unit="sample"):
        prompts(sample)  # a damaged file is found now, not after an hour
    model = load(checkpoint, torch.device(device))
    parts = torch.nn.ModuleDict({"thinker": Thinker(model), "talker": model.talker})  # names as in the root checkpoint
    chosen = select(input_sizes(parts), include, exclude)
    use = ExpertUse(parts)
    calibrate(parts, chosen, lambda: chained_forward(model, prompts, samples, seed, reply_tokens, codec_frames))
    for hook in use.hooks:
        hook.remove()
    report = {
        "modelopt": modelopt.__version__,
        "device": str(device),
        "seed": seed,
        "ranges": ranges(parts, chosen),
        "expert_rows": {layer: n.tolist() for layer, n in use.counts.items()},
        "experts_never_reached": use.never_reached(),
    }
    # ModelOpt finds linears that share an input by a forward pass with token ids, which the Talker does not take.
    rows = torch.zeros(1, 2, model.talker.config.text_config.hidden_size, dtype=model.dtype, device=model.device)
    model.talker.get_dummy_inputs = lambda: {"inputs_embeds": rows}
    heads = [f"{name}.weight" for name in chosen if f"{name}.".startswith(HEADS)]
    for name in tqdm(parts, desc="exporting", unit="checkpoint"):
        export(parts[name], name, checkpoint, output / name, heads)
    missed = sum(map(len, report["experts_never_reached"].values()))
    if missed:
        total = sum(map(len, report["expert_rows"].values()))
        print(
            f"warning: calibration never reached {missed} of {total} experts (named in the report); they take the "
            "input scale of their layer's other experts, and their own weights give the rest",
            file=sys.stderr,
        )
    return report
