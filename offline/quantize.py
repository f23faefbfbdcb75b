"""Qwen3-Omni checkpoint -> NVFP4 checkpoints of Thinker and Talker, in NVIDIA ModelOpt's format.

    python -m offline.quantize --model_dir HF_ROOT --output_dir OUT [--calibration_dir SAMPLES]

writes OUT/thinker and OUT/talker, standalone checkpoints in ModelOpt's format, and OUT/quantization_report.json. Tensor
X of OUT/thinker is tensor thinker.X of HF_ROOT (the same for talker); config.json["omni_config"] is HF_ROOT's config.
With --single_folder, OUT is one checkpoint with every part of HF_ROOT instead; export_onnx takes either.
Thinker attention and experts and Talker experts get 4-bit weights and inputs; the rest is copied bit for bit.

With --cp_quantization the CodePredictor's layers get 8 or 4 bits, too, in OUT/talker.

Without --calibration_dir the samples come from LibriSpeech, MMMU and CNN/DailyMail; quantization/calibration.py
describes the folder. On one H100 of 80 GB, 30B-A3B with 500 samples took 3 minutes and 71 GB. More GPUs share the layers; on a
smaller one, layers that do not fit are read again for every step, which is slow. A run that was stopped goes on where it was
when the same command is given again: what it has is in a hidden folder beside OUT.
"""

import argparse
import fnmatch
import json
import os
import sys
import tempfile
from pathlib import Path

from omni_ros.errors import CheckpointError, OmniError

from .checkpoints.checkpoint import Checkpoint
from .checkpoints.whole import join
from .outputs.atomic import atomic_directory, atomic_file
from .quantization.calibration import COUNTS, download, find_samples

PROJECTIONS = ("talker.text_projection.", "talker.hidden_projection.")  # in no graph: the robot's numpy applies them


def run(args: argparse.Namespace) -> None:
    """Raises OmniError: no samples, a checkpoint that cannot be read, modules that cannot be quantised."""
    checkpoint = Checkpoint(args.model_dir)
    present = {name.split(".")[0] for name in checkpoint.tensors}
    if checkpoint.config.get("model_type") != "qwen3_omni_moe" or not present >= {"thinker", "talker", "code2wav"}:
        raise CheckpointError(
            f"{args.model_dir}: is not a complete qwen3_omni_moe checkpoint (model_type "
            f"{checkpoint.config.get('model_type')!r}, parts {', '.join(sorted(present))})"
        )
    _refuse_projections(checkpoint, args.include, args.exclude)
    if args.single_folder and args.output_dir.exists() and any(args.output_dir.iterdir()):
        raise CheckpointError(f"{args.output_dir}: exists and is not empty; choose another folder")
    counts = {kind: getattr(args, f"talker_num_{kind}") for kind in COUNTS}
    with tempfile.TemporaryDirectory() as temporary:
        directory = args.calibration_dir
        if directory is None:
            directory = Path(temporary)
            download(directory, counts)
        samples, warnings = find_samples(directory, counts, args.seed)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        # Media are decoded by omni_ros. transformers would import torchvision if it is there, and fails when that is a
        # CUDA build beside a CPU-only torch.
        sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # None: importing it fails
        from .quantization.checkpoints import Settings, quantised  # only now: it takes seconds to import

        settings = Settings(
            args.seed, tuple(args.include), tuple(args.exclude), args.reply_tokens, args.codec_frames, args.cp_quantization
        )
        kinds = {"samples": {kind: sum(s.kind == kind for s in samples) for kind in COUNTS}, "warnings": warnings}
        with quantised(checkpoint, samples, args.output_dir, args.device, settings) as (parts, report):
            text = json.dumps(report | kinds, indent=2) + "\n"
            if args.single_folder:
                with atomic_directory(args.output_dir) as folder:
                    join(checkpoint, [Checkpoint(parts / name) for name in ("thinker", "talker")], folder)
                    (folder / "quantization_report.json").write_text(text)
                made = f"{args.output_dir}"
            else:
                for name in ("thinker", "talker"):
                    with atomic_directory(args.output_dir / name) as folder:
                        os.replace(parts / name, folder)
                with atomic_file(args.output_dir / "quantization_report.json") as path:
                    path.write_text(text)
                made = f"{args.output_dir / 'thinker'} and {args.output_dir / 'talker'}"
        _warn_of_unreached(report)
    print(f"{made}: {len(report['ranges'])} modules in NVFP4{' and FP8' * (args.cp_quantization == 'fp8')}")


def _warn_of_unreached(report: dict) -> None:
    missed = sum(map(len, report["experts_never_reached"].values()))
    if missed:
        total = sum(map(len, report["expert_rows"].values()))
        print(
            f"warning: calibration never reached {missed} of {total} experts (named in the report); they take the "
            "input scale of their layer's other experts, and their own weights give the rest",
            file=sys.stderr,
        )


def _refuse_projections(checkpoint: Checkpoint, include: list[str], exclude: list[str]) -> None:
    """Raise CheckpointError if `include` less `exclude` (wildcards) names a projection from the Thinker to the Talker."""
    for name in checkpoint.tensors:
        if name.startswith(PROJECTIONS) and name.endswith(".weight"):
            module = name.removesuffix(".weight")
            included, excluded = (any(fnmatch.fnmatchcase(module, p) for p in patterns) for patterns in (include, exclude))
            if included and not excluded:
                raise CheckpointError(
                    f"{module} cannot be NVFP4: the robot applies it outside the engines; take it out of "
                    "--include, or add --exclude 'talker.*_projection.*'"
                )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__.replace("python -m offline", f"python -m {__package__}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model_dir", type=Path, required=True, metavar="HF_ROOT", help="complete 16-bit checkpoint")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="OUT", help="folder for thinker/ and talker/")
    for kind, count in COUNTS.items():
        parser.add_argument(
            f"--talker_num_{kind}",
            type=_count,
            default=count,
            metavar="N",
            help=f"{kind} samples to calibrate with (default: %(default)s)",
        )
    parser.add_argument(
        "--single_folder", action="store_true", help="write one checkpoint with every part, not one for each decoder"
    )
    parser.add_argument("--calibration_dir", type=Path, metavar="SAMPLES", help="folder with audio/, images/ and text/")
    parser.add_argument("--seed", type=int, default=0, help="draws samples and speech codes (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    parser.add_argument(
        "--include",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="quantise these modules too, by their names in HF_ROOT, e.g. thinker.lm_head "
        "talker.codec_head 'talker.model.layers.*.mlp.shared_expert.*'",
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="keep these modules in 16 bit, e.g. 'thinker.model.layers.*.self_attn.*'",
    )
    parser.add_argument(
        "--cp_quantization",
        choices=("fp8", "nvfp4"),
        default="",
        help="quantise the CodePredictor, too, but for its down_proj and heads; export it from OUT/talker then, with "
        "--components talker,code_predictor",
    )
    parser.add_argument(
        "--reply_tokens",
        type=_count,
        default=24,
        metavar="N",
        help="longest reply of the Thinker to a sample, at least 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--codec_frames",
        type=_count,
        default=24,
        metavar="N",
        help="longest speech of the Talker per sample, frames of 80 ms (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.reply_tokens < 2 or args.codec_frames < 1:
        parser.error("--reply_tokens must be at least 2 and --codec_frames at least 1")
    try:
        run(args)
    except (OmniError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


if __name__ == "__main__":
    sys.exit(main())
