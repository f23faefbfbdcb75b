"""Hugging Face Qwen3-Omni checkpoint -> six standard ONNX graphs with their sidecars.

    python -m offline.export_onnx CHECKPOINT OUT

writes, each with `model.onnx`, `model.onnx.data` and `config.json`:

    OUT/thinker/llm                  + embedding, tokenizer, chat template, processor settings
    OUT/talker/llm                   + embedding, text_projection, hidden_projection
    OUT/multimodal/{audio,visual,code2wav,code_predictor}
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from offline.atomic import atomic_directory
from offline.checkpoints.checkpoint import Checkpoint, write_safetensors
from offline.checkpoints.processor_files import copy_processor_files
from offline.graphs import audio_encoder, code2wav, code_predictor, decoder, visual_encoder
from omni_ros import __version__
from omni_ros.errors import CheckpointError, OmniError

# component -> (folder below OUT, tensor prefixes it reads, export function)
COMPONENTS = {
    "thinker": ("thinker/llm", ("thinker.model.", "thinker.lm_head."), decoder.export_thinker),
    "talker": (
        "talker/llm",
        ("talker.model.", "talker.codec_head.", "talker.text_projection.", "talker.hidden_projection."),
        decoder.export_talker,
    ),
    "code_predictor": ("multimodal/code_predictor", ("talker.code_predictor.",), code_predictor.export),
    "visual": ("multimodal/visual", ("thinker.visual.",), visual_encoder.export),
    "audio": ("multimodal/audio", ("thinker.audio_tower.",), audio_encoder.export),
    "code2wav": ("multimodal/code2wav", ("code2wav.",), code2wav.export),
}
FP8_MAX, FP8_ROWS = 448.0, 4096  # rows converted at a time


def export(
    checkpoint_dir: Path,
    out: Path,
    components: list[str],
    dtype: np.dtype,
    sidecars_from: Path | None = None,
    fp8_embedding: bool = False,
    quantize_activations: bool = False,
) -> None:
    """Export `components` (keys of COMPONENTS) into `out`; each folder is replaced whole when it is complete.

    `quantize_activations` is for NVFP4 checkpoints: W4A4 instead of W4A16.
    Raises CheckpointError when a tensor is missing or a setting unsupported; folders already complete stay.
    """
    checkpoint = Checkpoint(checkpoint_dir)
    if checkpoint.config.get("model_type") != "qwen3_omni_moe":
        raise CheckpointError(
            f"{checkpoint_dir / 'config.json'}: model_type is {checkpoint.config.get('model_type')!r}, "
            "this exporter reads 'qwen3_omni_moe'"
        )
    if quantize_activations and not any(key.endswith(".input_scale") for key in checkpoint.tensors):
        raise CheckpointError(f"{checkpoint_dir}: has no NVFP4 layers; quantise it with offline.quantize first")
    sidecars = Checkpoint(sidecars_from) if sidecars_from else checkpoint
    for name in components:
        folder, prefixes, export_graph = COMPONENTS[name]
        total = sum(i.nbytes for key, i in checkpoint.tensors.items() if key.startswith(prefixes))
        with tqdm(total=total, desc=f"{name:14}", unit="B", unit_scale=True) as bar, atomic_directory(out / folder) as directory:
            checkpoint.on_read = sidecars.on_read = bar.update
            try:
                if name in ("thinker", "talker"):
                    export_graph(checkpoint, directory, dtype, quantize_activations)
                else:
                    export_graph(checkpoint, directory, dtype)
                if name == "thinker":
                    _thinker_sidecars(checkpoint, directory, dtype, fp8_embedding)
                if name == "talker":
                    _talker_sidecars(sidecars, checkpoint.config["talker_config"], directory, dtype)
            except KeyError as e:
                raise CheckpointError(f"{checkpoint_dir / 'config.json'}: lacks {e}, which {name} needs") from e
            ignored = sorted(
                key for key in checkpoint.unread & sidecars.unread if key.startswith(prefixes) and key.endswith(".weight")
            )
            if ignored:
                raise CheckpointError(
                    f"{checkpoint_dir / 'config.json'}: does not account for {len(ignored)} weights of the "
                    f"checkpoint, such as {ignored[0]}; take the config.json that belongs to it"
                )
            _seal(directory, checkpoint)


def _thinker_sidecars(checkpoint: Checkpoint, directory: Path, dtype: np.dtype, fp8: bool) -> None:
    """embedding.safetensors and the tokenizer/processor files, which the runtime reads without transformers."""
    text = checkpoint.config["thinker_config"]["text_config"]
    weight = checkpoint.read("thinker.model.embed_tokens.weight", (text["vocab_size"], text["hidden_size"]))
    _write_sidecar(directory, "embedding", _fp8(weight) if fp8 else {"weight": weight.astype(dtype)})
    copy_processor_files(checkpoint.directory, directory)


def _fp8(weight: np.ndarray) -> dict[str, np.ndarray]:
    """weight [rows, H] as FP8 E4M3 with one scale per row, because a token's embedding is read alone."""
    codes, scale = np.empty(weight.shape, ml_dtypes.float8_e4m3fn), np.empty(len(weight), np.float32)
    for start in range(0, len(weight), FP8_ROWS):
        block = slice(start, start + FP8_ROWS)
        rows = weight[block].astype(np.float32)
        scale[block] = np.maximum(np.abs(rows).max(axis=1), 1e-12) / FP8_MAX
        codes[block] = rows / scale[block, None]
    return {"weight": codes, "scale": scale}


def _talker_sidecars(checkpoint: Checkpoint, talker: dict, directory: Path, dtype: np.dtype) -> None:
    """The Talker's codec embedding and the two projections from the Thinker (Qwen3OmniMoeTalkerResizeMLP)."""
    text = talker["text_config"]
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    codec = checkpoint.read("talker.model.codec_embedding.weight", (text["vocab_size"], hidden))
    _write_sidecar(directory, "embedding", {"weight": codec.astype(dtype)})
    shapes = {
        "linear_fc1.weight": (inner, talker["thinker_hidden_size"]),
        "linear_fc1.bias": (inner,),
        "linear_fc2.weight": (hidden, inner),
        "linear_fc2.bias": (hidden,),
    }
    for projection in ("text_projection", "hidden_projection"):
        tensors = {n: checkpoint.read(f"talker.{projection}.{n}", shape).astype(dtype) for n, shape in shapes.items()}
        _write_sidecar(directory, projection, tensors)


def _write_sidecar(directory: Path, name: str, tensors: dict[str, np.ndarray]) -> None:
    for key, tensor in tensors.items():
        if not key.endswith("bias") and not tensor.any():
            raise CheckpointError(f"{directory.parent.name} {name}: {key} is all zero in the checkpoint; replies would be noise")
    write_safetensors(directory / f"{name}.safetensors", {k: (v.dtype, v.shape, [v]) for k, v in tensors.items()})
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.setdefault("sidecars", {})[f"{name}.safetensors"] = {
        k: {"dtype": str(v.dtype), "shape": list(v.shape)} for k, v in tensors.items()
    }
    path.write_text(json.dumps(config, indent=2) + "\n")


def _seal(directory: Path, checkpoint: Checkpoint) -> None:
    """Record where the graph came from and the size of every file, so that damage is seen before it is run."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["provenance"] = {
        "checkpoint": checkpoint.directory.resolve().name,
        "checkpoint_config_sha256": hashlib.sha256((checkpoint.directory / "config.json").read_bytes()).hexdigest(),
        "omni_ros": __version__,
    }
    config["graph_sha256"] = hashlib.sha256((directory / "model.onnx").read_bytes()).hexdigest()
    config["files"] = {p.name: p.stat().st_size for p in sorted(directory.iterdir()) if p.name != "config.json"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m offline.export_onnx", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder with config.json and *.safetensors")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the ONNX tree")
    parser.add_argument("--components", default=",".join(COMPONENTS), help="comma list (default: %(default)s)")
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
        help="nvfp4: round what goes into NVFP4 weights to NVFP4 too (W4A4), as GPUs with FP4 arithmetic do",
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), help="default: float32 for a float32 checkpoint, else float16")
    args = parser.parse_args(argv)
    components = [c.strip() for c in args.components.split(",") if c.strip()]
    unknown = sorted(set(components) - set(COMPONENTS))
    if unknown:
        parser.error(f"unknown component {', '.join(unknown)}; choose from {', '.join(COMPONENTS)}")
    skipped = {
        "thinker": args.skip_llm,
        "talker": args.skip_llm,
        "visual": args.skip_visual,
        "audio": args.skip_audio,
        "code2wav": args.skip_code2wav,
    }
    components = [c for c in components if not skipped.get(c)]
    if not components:
        parser.error("nothing is left to export")
    try:
        dtype = np.dtype(args.dtype or _stored_dtype(args.checkpoint))
        export(
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
    print(f"{len(components)} graphs in {args.out} ({dtype})")
    return 0


def _stored_dtype(checkpoint_dir: Path) -> str:
    """float32 stays float32; 16-bit checkpoints (bfloat16 has no TensorRT/ORT-CPU compute) become float16."""
    dtypes = {i.dtype for i in Checkpoint(checkpoint_dir).tensors.values()}
    return "float32" if np.dtype(np.float32) in dtypes else "float16"


if __name__ == "__main__":
    sys.exit(main())
