"""What lies beside the graphs: embeddings, the projections from Thinker to Talker, tokenizer and processor files."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np

from omni_ros.errors import CheckpointError

from ..checkpoints.checkpoint import Checkpoint, write_safetensors
from ..checkpoints.processor_files import copy_processor_files

FP8_MAX, FP8_ROWS = 448.0, 4096  # rows converted at a time


def thinker_sidecars(checkpoint: Checkpoint, directory: Path, dtype: np.dtype, fp8: bool) -> None:
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


def talker_sidecars(checkpoint: Checkpoint, talker: dict, directory: Path, dtype: np.dtype) -> None:
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
            raise CheckpointError(f"{name}: {key} is all zero in the checkpoint; replies would be noise")
    write_safetensors(directory / f"{name}.safetensors", {k: (v.dtype, v.shape, [v]) for k, v in tensors.items()})
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.setdefault("sidecars", {})[f"{name}.safetensors"] = {
        k: {"dtype": str(v.dtype), "shape": list(v.shape)} for k, v in tensors.items()
    }
    path.write_text(json.dumps(config, indent=2) + "\n")
