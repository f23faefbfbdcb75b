"""Hugging Face Qwen3-Omni checkpoint -> standard ONNX graphs with their sidecars, one for every part that it has.

    python -m offline.export_onnx CHECKPOINT OUT

writes, each with `model.onnx`, `model.onnx.data` and `config.json`:

    OUT/thinker/llm                  + embedding, tokenizer, chat template, processor settings
    OUT/talker/llm                   + embedding, text_projection, hidden_projection
    OUT/multimodal/{audio,visual,code2wav,code_predictor}

Where OUT itself is called thinker, talker or multimodal and nothing else is exported, it is that folder: QUANT/thinker to
ONNX/thinker gives ONNX/thinker/llm. Of the checkpoints that `quantize` splits off, the one decoder that they are for is
exported; other parts in them on request (--components). Nothing is written unless everything can be.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from omni_ros.errors import CheckpointError, OmniError

from .checkpoints.checkpoint import Checkpoint
from .checkpoints.forms import UNUSED, check_forms
from .graphs import audio_encoder, code2wav, code_predictor, decoder, visual_encoder
from .graphs.sidecars import talker_sidecars, thinker_sidecars
from .outputs.atomic import atomic_directory
from .outputs.graph_folder import seal


class Component(NamedTuple):
    folder: str  # below OUT
    prefixes: tuple[str, ...]  # of its tensors
    export: Callable[..., None]
    section: tuple[str, ...]  # where config.json describes it


COMPONENTS = {
    "thinker": Component(
        "thinker/llm", ("thinker.model.", "thinker.lm_head."), decoder.export_thinker, ("thinker_config", "text_config")
    ),
    "talker": Component(
        "talker/llm",
        ("talker.model.", "talker.codec_head.", "talker.text_projection.", "talker.hidden_projection."),
        decoder.export_talker,
        ("talker_config", "text_config"),
    ),
    "code_predictor": Component(
        "multimodal/code_predictor",
        ("talker.code_predictor.",),
        code_predictor.export,
        ("talker_config", "code_predictor_config"),
    ),
    "visual": Component("multimodal/visual", ("thinker.visual.",), visual_encoder.export, ("thinker_config", "vision_config")),
    "audio": Component("multimodal/audio", ("thinker.audio_tower.",), audio_encoder.export, ("thinker_config", "audio_config")),
    "code2wav": Component("multimodal/code2wav", ("code2wav.",), code2wav.export, ("code2wav_config",)),
}
PREFIXES = tuple(prefix for component in COMPONENTS.values() for prefix in component.prefixes)


def export(
    checkpoint_dir: Path,
    out: Path,
    components: list[str],
    dtype: np.dtype,
    sidecars_from: Path | None = None,
    fp8_embedding: bool = False,
    quantize_activations: bool = False,
) -> list[Path]:
    """Export `components` (keys of COMPONENTS); returns their folders, which are replaced when all are complete.

    `quantize_activations` is for NVFP4 checkpoints: W4A4 instead of W4A16.
    Raises CheckpointError, with nothing written, when a tensor is missing or left over, or a setting unsupported.
    """
    checkpoint = open_checkpoint(checkpoint_dir)
    check_forms(checkpoint, PREFIXES)
    if quantize_activations and not any(key.endswith(".input_scale") for key in checkpoint.tensors):
        raise CheckpointError(f"{checkpoint_dir}: has no NVFP4 layers; quantise it first (quantize)")
    sidecars = Checkpoint(sidecars_from) if sidecars_from else checkpoint
    folders = {name: out / folder for name, folder in _folders(out, components).items()}
    with contextlib.ExitStack() as all_or_nothing:
        for name, folder in folders.items():
            directory = all_or_nothing.enter_context(atomic_directory(folder))
            prefixes = COMPONENTS[name].prefixes
            total = sum(i.nbytes for key, i in checkpoint.tensors.items() if key.startswith(prefixes))
            with tqdm(total=total, desc=f"{name:14}", unit="B", unit_scale=True) as bar:
                checkpoint.on_read = sidecars.on_read = bar.update
                try:
                    _export_one(name, checkpoint, sidecars, directory, dtype, fp8_embedding, quantize_activations)
                except KeyError as e:
                    raise CheckpointError(f"{checkpoint_dir / 'config.json'}: lacks {e}, which {name} needs") from e
            left = sorted(k for k in checkpoint.unread & sidecars.unread if k.startswith(prefixes) and not k.endswith(UNUSED))
            if left:
                raise CheckpointError(
                    f"{checkpoint_dir / 'config.json'}: does not account for {len(left)} weights of the "
                    f"checkpoint, such as {left[0]}; take the config.json that belongs to it"
                )
            seal(directory, checkpoint.directory)
    return list(folders.values())


def _export_one(
    name: str, checkpoint: Checkpoint, sidecars: Checkpoint, directory: Path, dtype: np.dtype, fp8: bool, quantize: bool
) -> None:
    if name in ("thinker", "talker", "code_predictor"):
        COMPONENTS[name].export(checkpoint, directory, dtype, quantize)
    else:
        COMPONENTS[name].export(checkpoint, directory, dtype)
    if name == "thinker":
        thinker_sidecars(checkpoint, directory, dtype, fp8)
    if name == "talker":
        talker_sidecars(sidecars, checkpoint.config["talker_config"], directory, dtype)


def open_checkpoint(directory: Path) -> Checkpoint:
    checkpoint = Checkpoint(directory)
    if checkpoint.config.get("model_type") != "qwen3_omni_moe":
        raise CheckpointError(
            f"{directory / 'config.json'}: model_type is {checkpoint.config.get('model_type')!r}, "
            "this exporter reads 'qwen3_omni_moe'"
        )
    return checkpoint


def found_components(checkpoint: Checkpoint) -> list[str]:
    """The components that the checkpoint has: of one that `quantize` split off, the decoder that it is for.

    Raises CheckpointError when config.json describes a part of which there is no tensor, or nothing is found at all.
    """
    if checkpoint.part:
        return [checkpoint.part]
    found = [n for n, c in COMPONENTS.items() if any(key.startswith(c.prefixes) for key in checkpoint.tensors)]
    missing = [name for name, c in COMPONENTS.items() if name not in found and _describes(checkpoint.config, c.section)]
    if missing or not found:
        raise CheckpointError(
            f"{checkpoint.directory}: has no tensor of {', '.join(missing) or 'any part'}; download it again, or name the parts "
            f"to export with --components ({', '.join(found) or ', '.join(COMPONENTS)})"
        )
    return found


def _describes(config: dict | None, section: tuple[str, ...]) -> bool:
    for key in section:
        config = config.get(key) if isinstance(config, dict) else None
    return config is not None


def _folders(out: Path, components: list[str]) -> dict[str, str]:
    """Component -> folder below `out`, without its first part where that is `out` itself."""
    folders = {name: COMPONENTS[name].folder for name in components}
    if all(folder.startswith(f"{out.name}/") for folder in folders.values()):
        return {name: folder.removeprefix(f"{out.name}/") for name, folder in folders.items()}
    return folders


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__.replace("python -m offline", f"python -m {__package__}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder with config.json and *.safetensors")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the ONNX tree")
    parser.add_argument(
        "--components", help=f"comma list of {','.join(COMPONENTS)} (default: all that the checkpoint has)", metavar="LIST"
    )
    parser.add_argument("--skip-llm", action="store_true", help="leave out thinker and talker")
    parser.add_argument("--skip-visual", action="store_true", help="leave out the visual encoder")
    parser.add_argument("--skip-audio", action="store_true", help="leave out the audio encoder")
    parser.add_argument("--skip-code2wav", action="store_true", help="leave out Code2Wav")
    parser.add_argument(
        "--talker-sidecar-from",
        type=Path,
        metavar="HF_ROOT",
        help="read the Talker's embedding and projections here (default: CHECKPOINT)",
    )
    parser.add_argument("--fp8-embedding", action="store_true", help="store the Thinker's embedding as FP8 (half the size)")
    parser.add_argument(
        "--activations",
        choices=("float", "nvfp4"),
        default="float",
        help="nvfp4: round what goes into NVFP4 weights to NVFP4 too (W4A4), and into FP8 weights to FP8, as GPUs with such "
        "arithmetic do",
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), help="default: float32 for a float32 checkpoint, else float16")
    args = parser.parse_args(argv)
    named = None if args.components is None else [c.strip() for c in args.components.split(",") if c.strip()]
    unknown = sorted(set(named or []) - set(COMPONENTS))
    if unknown:
        parser.error(f"unknown component {', '.join(unknown)}; choose from {', '.join(COMPONENTS)}")
    skipped = {
        "thinker": args.skip_llm,
        "talker": args.skip_llm,
        "visual": args.skip_visual,
        "audio": args.skip_audio,
        "code2wav": args.skip_code2wav,
    }
    if named is not None and all(skipped.get(c) for c in named):
        parser.error("nothing is left to export")
    try:
        checkpoint = open_checkpoint(args.checkpoint)
        components = [c for c in (found_components(checkpoint) if named is None else named) if not skipped.get(c)]
        if not components:
            raise CheckpointError(f"{args.checkpoint}: nothing is left to export")
        dtype = np.dtype(args.dtype or _stored_dtype(checkpoint))
        folders = export(
            args.checkpoint,
            args.out,
            components,
            dtype,
            args.talker_sidecar_from,
            args.fp8_embedding,
            args.activations == "nvfp4",
        )
    except (OmniError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"{len(folders)} graphs ({dtype}): {', '.join(map(str, folders))}")
    return 0


def _stored_dtype(checkpoint: Checkpoint) -> str:
    """float32 stays float32; 16-bit checkpoints (bfloat16 has no TensorRT/ORT-CPU compute) become float16."""
    weights = {info.dtype for name, info in checkpoint.tensors.items() if not name.endswith(("_scale", "_scale_2"))}
    return "float32" if np.dtype(np.float32) in weights else "float16"


if __name__ == "__main__":
    sys.exit(main())
