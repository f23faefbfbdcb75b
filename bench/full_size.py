"""A random NVFP4 checkpoint with the dimensions of Qwen3-Omni-30B-A3B, in the three folders that `offline.quantize` and
the Hugging Face root would be. For timing only: bytes are drawn from small pools, as fast as a disk can take them.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from offline.checkpoints.checkpoint import write_safetensors
from offline.checkpoints.random_tokenizer import train_tokenizer
from offline.checkpoints.random_weights import DTYPE, Weight, all_tensors
from offline.make_checkpoint import complete_config, merge, write_processor
from offline.quantization import nvfp4

DIMENSIONS: dict[str, dict] = {
    "thinker_config": {
        "text_config": {
            "vocab_size": 152064,
            "hidden_size": 2048,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "intermediate_size": 768,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
        "audio_config": {
            "d_model": 1280,
            "encoder_layers": 32,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "downsample_hidden_size": 480,
        },
        "vision_config": {
            "depth": 27,
            "hidden_size": 1152,
            "num_heads": 16,
            "intermediate_size": 4304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    },
    "talker_config": {
        "accept_hidden_layer": 24,
        "text_config": {
            "hidden_size": 1024,
            "num_hidden_layers": 20,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "intermediate_size": 2048,
            "moe_intermediate_size": 384,
            "shared_expert_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 6,
        },
        "code_predictor_config": {
            "vocab_size": 2048,
            "hidden_size": 1024,
            "num_hidden_layers": 5,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
        },
    },
    "code2wav_config": {
        "hidden_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
        "decoder_dim": 1536,
    },
}
MAX_PIXELS = 1024 * 32 * 32
MODEL_TYPES = {"thinker": "qwen3_omni_moe_text", "talker": "qwen3_omni_moe_talker"}
POOL = 1 << 24  # values; a prime stride through them keeps neighbouring tensors different


def full_size_config(layers: dict[str, int] | None = None) -> tuple[dict, Tokenizer]:
    """config.json's contents and the tokenizer; `layers` ({"thinker": 4}, say) shortens the decoders, for a quick look."""
    tokenizer = train_tokenizer(DIMENSIONS["thinker_config"]["text_config"]["vocab_size"])
    fewer = {f"{part}_config": {"text_config": {"num_hidden_layers": n}} for part, n in (layers or {}).items()}
    chosen = merge(DIMENSIONS, fewer)
    chosen["talker_config"]["accept_hidden_layer"] = chosen["thinker_config"]["text_config"]["num_hidden_layers"] // 2
    return complete_config(chosen, tokenizer), tokenizer


def write_full_size(directory: Path, layers: dict[str, int] | None = None) -> None:
    """`directory`/{thinker,talker,root} as inputs of `offline.export_onnx`; `layers` as above."""
    config, tokenizer = full_size_config(layers)
    for name in ("thinker", "talker", "root"):
        (directory / name).mkdir(parents=True)
        own = {**config, "model_type": MODEL_TYPES[name], "omni_config": config} if name in MODEL_TYPES else config
        (directory / name / "config.json").write_text(json.dumps(own))
    write_processor(directory / "thinker", tokenizer, MAX_PIXELS)
    write_processor(directory / "root", tokenizer, MAX_PIXELS)
    pools = Pools()
    for name, weights in _split(config).items():
        with tqdm(weights, desc=name, unit="tensor", disable=None) as progress:
            tensors = {n: t for w in progress for n, t in pools.tensors(w, name)}
            write_safetensors(directory / name / "model.safetensors", tensors)


def write_full_size_root(directory: Path, layers: dict[str, int] | None = None) -> None:
    """`directory` as the complete 16-bit checkpoint, an input of `offline.quantize`: 70.5 GB, a shard for every decoder layer,
    as fast as memory can be copied."""
    config, tokenizer = full_size_config(layers)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_processor(directory, tokenizer, MAX_PIXELS)
    shards: dict[str, list[Weight]] = {}
    for weight in all_tensors(config):
        owner = re.match(r"(.*\.layers\.\d+\.)?", weight.name)
        shards.setdefault(owner[0] or weight.name.split(".")[0], []).append(weight)
    normal = np.random.default_rng(0).standard_normal(POOL, np.float32)
    pools = {}  # of each distribution: values are copied, never computed
    for std, mean in {(w.std, w.mean) for weights in shards.values() for w in weights}:
        pools[std, mean] = (normal * np.float32(std) + np.float32(mean)).astype(DTYPE)

    def parts(weight: Weight, start: int) -> Iterator[np.ndarray]:
        pool, count = pools[weight.std, weight.mean], int(np.prod(weight.shape))
        while count:
            start = (start + 1_000_003) % (POOL // 2)
            part = pool[start : start + min(count, POOL // 2)]
            count -= len(part)
            yield part

    def write(number: int, weights: list[Weight]) -> None:
        tensors = {w.name: (DTYPE, w.shape, parts(w, 7919 * (number * 997 + i))) for i, w in enumerate(weights)}
        write_safetensors(directory / f"model-{number:05d}.safetensors", tensors)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(write, range(len(shards)), shards.values()))


def _split(config: dict) -> dict[str, list[Weight]]:
    """Decoders and their embeddings and heads to the quantised folders, all else to the root, as the exports read it."""
    parts: dict[str, list[Weight]] = {"thinker": [], "talker": [], "root": []}
    for weight in all_tensors(config):
        part = weight.name.split(".")[0]
        decoder = part in MODEL_TYPES and weight.name.split(".")[1] in ("model", "lm_head", "codec_head")
        parts[part if decoder else "root"].append(weight)
        if weight.name == "talker.model.codec_embedding.weight":  # `--talker-sidecar-from` reads it in the root
            parts["root"].append(weight)
    return parts


class Pools:
    """Random numbers, drawn once and used again from other starting points."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.bytes = random.integers(0, 256, POOL, np.uint8)
        self.scales = random.integers(0x38, 0x40, POOL, np.uint8).view(ml_dtypes.float8_e4m3fn)  # 1 to 1.875
        self.normal = random.standard_normal(POOL, np.float32)
        self.rms = float(np.sqrt(np.mean(nvfp4.E2M1**2) * np.mean(self.scales[:4096].astype(np.float32) ** 2)))
        self.start = 0

    def take(self, pool: np.ndarray, count: int) -> Iterator[np.ndarray]:
        while count:
            self.start = (self.start + 1_000_003) % (POOL // 2)
            part = pool[self.start : self.start + min(count, POOL // 2)]
            count -= len(part)
            yield part

    def tensors(self, weight: Weight, folder: str) -> Iterator[tuple[str, tuple]]:
        """What the checkpoint holds for one weight, as write_safetensors wants it: bfloat16, or NVFP4 codes and scales."""
        name, size = weight.name.removeprefix(f"{folder}."), int(np.prod(weight.shape))
        if folder == "root" or not name.endswith("_proj.weight"):
            yield (
                name,
                (
                    DTYPE,
                    weight.shape,
                    (v * np.float32(weight.std) + np.float32(weight.mean) for v in self.take(self.normal, size)),
                ),
            )
            return
        *outer, width = weight.shape
        yield name, (np.uint8, (*outer, width // 2), self.take(self.bytes, size // 2))
        blocks = width // nvfp4.BLOCK
        yield f"{name}_scale", (ml_dtypes.float8_e4m3fn, (*outer, blocks), self.take(self.scales, size // nvfp4.BLOCK))
        yield f"{name}_scale_2", (np.float32, (), iter([np.array(weight.std / self.rms, np.float32)]))
        yield f"{name.removesuffix('weight')}input_scale", (np.float32, (), iter([np.array(1 / 2688, np.float32)]))
