"""16-bit checkpoint and samples -> NVFP4 checkpoints of Thinker and Talker.

The Thinker answers every sample and is written; then the Talker speaks the answers and is written. While ranges are collected
nothing is quantised, so that the Talker is calibrated on what the 16-bit Thinker says. Every batch leaves a file with what
it saw, so a run that was stopped goes on behind the last one.
"""

import contextlib
import fnmatch
import gc
import json
import math
import sys
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import Qwen3OmniMoeConfig

from omni_ros import __version__
from omni_ros.errors import CheckpointError

from ..checkpoints.checkpoint import STANDALONE, Checkpoint, read_header
from ..checkpoints.forms import HEADS
from ..checkpoints.processor_files import copy_processor_files
from ..checkpoints.whole import quantization
from ..outputs.atomic import atomic_file, resumable_directory
from .calibration import Prompts, Sample
from .export import LARGEST, Exporter
from .nvfp4 import BLOCK
from .placement import Placement, Reader
from .ranges import Ranges
from .selection import CODE_PREDICTOR, input_sizes, select
from .talker import Talker
from .thinker import Thinker
from .turns import BATCH_ROWS, Turn, batches

ARCHITECTURES = {"thinker": "Qwen3OmniMoeThinkerTextModel", "talker": "Qwen3OmniMoeTalkerForConditionalGeneration"}
MODEL_TYPES = {prefix.removesuffix("."): model_type for model_type, prefix in STANDALONE.items()}
PREFIXES = {"thinker": ("thinker.model.", "thinker.lm_head."), "talker": ("talker.",)}
PRODUCER = {"name": "modelopt", "version": "0.47.0"}  # whose format this is: readers know it by that name
RESERVE = 12 * 10**9  # bytes of a GPU beside the weights: a batch's keys, values and activations, and CUDA itself


@dataclass(frozen=True)
class Settings:
    """What the result depends on beside the checkpoint and the samples' contents."""

    seed: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    reply_tokens: int = 24
    codec_frames: int = 24
    cp_quantization: str = ""  # of the CodePredictor: "fp8", "nvfp4", or none
    greedy: bool = False  # speech too; for comparisons

    def key(self, checkpoint: Checkpoint, samples: list[Sample]) -> str:
        tensors = [(n, i.file.name, i.offset, i.file.stat().st_mtime_ns) for n, i in sorted(checkpoint.tensors.items())]
        files = [(s.kind, str(s.path.name), s.path.stat().st_size, s.text) for s in samples]
        return sha256(repr((__version__, asdict(self), checkpoint.config, tensors, files)).encode()).hexdigest()[:16]


def devices_of(device: str) -> list[torch.device]:
    """auto | cpu | cuda (all GPUs that are there)."""
    if device == "cpu" or device == "auto" and not torch.cuda.is_available():
        return [torch.device("cpu")]
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


@contextlib.contextmanager
def quantised(
    checkpoint: Checkpoint, samples: list[Sample], output: Path, device: str, settings: Settings
) -> Iterator[tuple[Path, dict]]:
    """Yields a folder beside `output` with thinker/ and talker/, to be moved or joined, and the report: ranges per module,
    use of the experts."""
    extra = CODE_PREDICTOR if settings.cp_quantization else ()
    chosen = select(input_sizes(checkpoint), [*settings.include, *extra], settings.exclude)
    prompts = Prompts(checkpoint)
    turns = []
    for i, sample in enumerate(tqdm(samples, desc="reading samples", unit="sample")):
        turns.append(Turn(i, prompts(sample)))  # a damaged file is found now, not after minutes
    with resumable_directory(output, settings.key(checkpoint, samples)) as folder:
        groups = batches(turns, BATCH_ROWS)
        run = _Run(checkpoint, chosen, devices_of(device), settings, folder)
        inputs: dict[str, float] = {}
        rows: dict[str, list[int]] = {}
        for part in PREFIXES:
            seen, used = run.calibrate(part, groups)
            run.export(part, seen)
            inputs |= seen
            rows |= used
        unreached = {layer: [e for e, n in enumerate(used) if n == 0] for layer, used in rows.items()}
        yield (
            folder,
            {
                "device": ", ".join(map(str, run.devices)),
                "seed": settings.seed,
                "ranges": _ranges(chosen, inputs, [Checkpoint(folder / part) for part in PREFIXES]),
                "expert_rows": rows,
                "experts_never_reached": {layer: experts for layer, experts in unreached.items() if experts},
            },
        )


class _Run:
    def __init__(self, checkpoint: Checkpoint, chosen: list[str], devices: list[torch.device], settings: Settings, folder: Path):
        self.checkpoint, self.chosen, self.devices, self.settings, self.folder = checkpoint, chosen, devices, settings, folder
        self.reader = Reader(checkpoint)
        self.config = Qwen3OmniMoeConfig.from_pretrained(checkpoint.directory)

    def calibrate(self, part: str, groups: list[list[Turn]]) -> tuple[dict[str, float], dict[str, list[int]]]:
        """Show `part` every batch that has no file yet. Returns what Ranges saw of all, inputs and rows.

        Raises CheckpointError for a module whose inputs no sample feeds.
        """
        ranges, model = Ranges(self.chosen), None
        make: type[Thinker | Talker] = Thinker if part == "thinker" else Talker
        inputs: dict[str, float] = {}
        rows: dict[str, torch.Tensor] = {}
        with tqdm(total=sum(map(len, groups)), desc=f"calibrating {part}", unit="sample") as bar:
            for i, group in enumerate(groups):
                file = self.folder / f"{part}-{i:04d}.safetensors"
                if not file.exists():
                    if model is None:
                        placement = Placement(self.reader, self.devices, RESERVE if self.devices[0].type == "cuda" else 0)
                        model = make(placement, self.config, ranges)
                        if placement.streamed:
                            bar.write(f"{len(placement.streamed)} layers do not fit and are read for every step", sys.stderr)
                    ranges.inputs, ranges.rows = {}, {}
                    self._show(model, group, i)
                    _save(file, ranges, group if part == "thinker" else [])
                seen = load_file(file)
                for name, value in seen.items():
                    kind, _, name = name.partition("/")
                    if kind == "input":
                        inputs[name] = max(inputs.get(name, 0.0), float(value), key=abs)
                    elif kind == "rows":
                        rows[name] = rows[name] + value if name in rows else value
                for turn in group if part == "thinker" else []:
                    turn.reply, turn.states = seen[f"reply/{turn.number}"].tolist(), seen.get(f"states/{turn.number}")
                bar.update(len(group))
        del model
        gc.collect()
        if self.devices[0].type == "cuda":
            torch.cuda.empty_cache()
        self._check(part, inputs)
        return inputs, {layer: n.tolist() for layer, n in rows.items()}

    def _show(self, model: Thinker | Talker, group: list[Turn], number: int) -> None:
        if isinstance(model, Thinker):
            model.answer(group, self.settings.reply_tokens)
        elif self.settings.greedy:
            model.speak(group, self.settings.codec_frames, None)
        else:
            random = torch.Generator(self.devices[0]).manual_seed(self.settings.seed + number)
            model.speak(group, self.settings.codec_frames, random)

    def _check(self, part: str, inputs: dict[str, float]) -> None:
        for module in self.chosen:
            if not module.startswith(PREFIXES[part]):
                continue
            ends = (".gate_up_proj", ".down_proj") if module.endswith(".experts") else ("",)
            for value in (inputs.get(f"{module}{end}", 0.0) for end in ends):
                if not math.isfinite(value):
                    raise CheckpointError(f"{module}: its inputs are no numbers; are these the weights of a trained model?")
                if not value > 0:
                    raise CheckpointError(
                        f"{module}: no calibration sample reached it; add some that use it "
                        "(hidden_projection: recordings or pictures) or keep it in 16 bit"
                    )

    def export(self, part: str, inputs: dict[str, float]) -> None:
        """Write folder/`part`, a checkpoint of its own: its tensor X is tensor `part`.X of the root checkpoint."""
        place = self.folder / part
        fp8 = [n for p in CODE_PREDICTOR if self.settings.cp_quantization == "fp8" for n in fnmatch.filter(self.chosen, p)]
        Exporter(self.reader, self.chosen, inputs, self.devices, frozenset(fp8)).write(part, PREFIXES[part], place)
        quant = quantization(dict(ChainMap(*map(read_header, place.glob("*.safetensors")))), producer=PRODUCER)
        (place / "hf_quant_config.json").write_text(json.dumps(quant, indent=2) + "\n")
        section = self.config.thinker_config.text_config if part == "thinker" else self.config.talker_config
        # config.json says which heads are meant to be 4 bit, as elsewhere a 4-bit head is an accident
        heads = [f"{name}.weight" for name in self.chosen if f"{name}.".startswith(HEADS)]
        config = json.loads(section.to_json_string(use_diff=False)) | {
            "architectures": [ARCHITECTURES[part]],
            "model_type": MODEL_TYPES[part],
            "omni_config": {**self.checkpoint.config, **({"nvfp4_heads": heads} if heads else {})},
            "quantization_config": _as_transformers_has_it(quant),
        }
        (place / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if part == "thinker":
            copy_processor_files(self.checkpoint.directory, place)


def _save(file: Path, ranges: Ranges, group: list[Turn]) -> None:
    """What a batch gave; from the Thinker's, the Talker goes on."""
    tensors = {f"input/{name}": value.cpu() for name, value in ranges.inputs.items()}
    tensors |= {f"rows/{layer}": n.cpu() for layer, n in ranges.rows.items()}
    for turn in group:
        tensors[f"reply/{turn.number}"] = torch.tensor(turn.reply)
        if turn.states is not None and len(turn.states):
            tensors[f"states/{turn.number}"] = turn.states.contiguous()
    with atomic_file(file) as path:
        save_file(tensors, path)


def _ranges(chosen: list[str], inputs: dict[str, float], parts: list[Checkpoint]) -> dict[str, dict[str, float]]:
    """Module -> quantiser -> largest magnitude that its scale allows; of the experts' weights the largest."""
    table: dict[str, dict[str, float]] = {name: {} for name in chosen}
    for name, value in inputs.items():
        owner, kind = (name, "") if name in table else name.rsplit(".", 1)
        table[owner][f"{kind}_input_quantizer".lstrip("_")] = value
    for part in parts:
        for scale in (n for n in part.tensors if n.endswith(".weight_scale_2")):
            name = scale.removesuffix(".weight_scale_2")
            owner, experts, _ = name.partition(".experts")
            kind = "" if not experts else "down_proj" if name.endswith("down_proj") else "gate_up_proj"
            row, key = table[owner + experts], f"{kind}_weight_quantizer".lstrip("_")
            row[key] = max(row.get(key, 0.0), float(part.read(scale)) * LARGEST)
    return table


def _as_transformers_has_it(quant: dict) -> dict:
    """The same as config.json's quantization_config, the form that vLLM and transformers read."""
    four_bits = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": BLOCK}
    groups: dict[str, Any] = {"group_0": {"input_activations": four_bits, "weights": four_bits, "targets": ["Linear"]}}
    mixed = quant["quantization"].get("quantized_layers", {})
    if mixed:
        eight_bits = {"dynamic": False, "num_bits": 8, "type": "float"}
        by = {a: [n for n, layer in mixed.items() if layer["quant_algo"] == a] for a in ("NVFP4", "FP8")}
        groups["group_0"]["targets"] = by["NVFP4"]
        groups["group_1"] = {"input_activations": eight_bits, "weights": eight_bits, "targets": by["FP8"]}
    return {
        "config_groups": groups,
        "ignore": quant["quantization"]["exclude_modules"],
        "quant_algo": quant["quantization"]["quant_algo"],
        "producer": quant["producer"],
        "quant_method": "modelopt",
    }
