"""The tensors of a Qwen3-Omni checkpoint: names and shapes for a config.json, random values, and the files.

Names follow the published checkpoint, one tensor per expert. The scales keep activations near 1 through every
part, logits wide (greedy decoding has no near ties) and the waveform inside [-1, 1].
"""

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from .checkpoint import write_safetensors

DTYPE = ml_dtypes.bfloat16  # as published
LOUDNESS = 0.022  # of the last convolution: a waveform of 0.1 to 0.2 rms that hardly ever reaches 1


@dataclass(frozen=True)
class Weight:
    """One tensor of the checkpoint, drawn from a normal distribution."""

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPE).itemsize


def all_tensors(config: dict) -> Iterator[Weight]:
    """Every tensor of the checkpoint, in file order, by the names of the published checkpoint."""
    thinker, talker = config["thinker_config"], config["talker_config"]
    text = thinker["text_config"]
    yield Weight("thinker.model.embed_tokens.weight", (text["vocab_size"], text["hidden_size"]), 1.0)
    yield from moe_decoder("thinker.model", text)
    yield from linear("thinker.lm_head", text["hidden_size"], text["vocab_size"], bias=False, gain=3.0)
    yield from audio_encoder("thinker.audio_tower", thinker["audio_config"])
    yield from vision_encoder("thinker.visual", thinker["vision_config"])

    text = talker["text_config"]
    yield Weight("talker.model.codec_embedding.weight", (text["vocab_size"], text["hidden_size"]), 1.0)
    yield from moe_decoder("talker.model", text)
    yield from linear("talker.codec_head", text["hidden_size"], text["vocab_size"], bias=False, gain=3.0)
    for name in ("text_projection", "hidden_projection"):
        yield from linear(f"talker.{name}.linear_fc1", talker["thinker_hidden_size"], text["intermediate_size"])
        yield from linear(f"talker.{name}.linear_fc2", text["intermediate_size"], text["hidden_size"], gain=2.0)
    yield from code_predictor("talker.code_predictor", talker["code_predictor_config"])
    yield from code2wav("code2wav", config["code2wav_config"])


def linear(name: str, inputs: int, outputs: int, bias: bool = True, gain: float = 1.0) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (outputs, inputs), gain / math.sqrt(inputs))
    if bias:
        yield Weight(f"{name}.bias", (outputs,), 0.1)


def norm(name: str, size: int, bias: bool = False, mean: float = 1.0) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (size,), 0.1 * mean, mean)
    if bias:
        yield Weight(f"{name}.bias", (size,), 0.1)


def attention(name: str, c: dict, qk_norm: bool = True) -> Iterator[Weight]:
    hidden, head_dim = c["hidden_size"], c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    yield from linear(f"{name}.q_proj", hidden, c["num_attention_heads"] * head_dim, bias=False)
    yield from linear(f"{name}.k_proj", hidden, c["num_key_value_heads"] * head_dim, bias=False)
    yield from linear(f"{name}.v_proj", hidden, c["num_key_value_heads"] * head_dim, bias=False)
    yield from linear(f"{name}.o_proj", c["num_attention_heads"] * head_dim, hidden, bias=False, gain=2.0)
    if qk_norm:  # 1.5: attention picks few tokens, so that order and content of the context matter
        yield from norm(f"{name}.q_norm", head_dim, mean=1.5)
        yield from norm(f"{name}.k_norm", head_dim, mean=1.5)


def swiglu(name: str, hidden: int, inner: int) -> Iterator[Weight]:
    yield from linear(f"{name}.gate_proj", hidden, inner, bias=False)
    yield from linear(f"{name}.up_proj", hidden, inner, bias=False)
    yield from linear(f"{name}.down_proj", inner, hidden, bias=False, gain=2.0)


def moe_decoder(name: str, c: dict) -> Iterator[Weight]:
    """Thinker and Talker layers; only the Talker has a shared expert."""
    hidden, experts = c["hidden_size"], c["num_experts" if "num_experts" in c else "num_local_experts"]
    for i in range(c["num_hidden_layers"]):
        layer = f"{name}.layers.{i}"
        yield from norm(f"{layer}.input_layernorm", hidden)
        yield from attention(f"{layer}.self_attn", c)
        yield from norm(f"{layer}.post_attention_layernorm", hidden)
        yield from linear(f"{layer}.mlp.gate", hidden, experts, bias=False, gain=3.0)
        for e in range(experts):
            yield from swiglu(f"{layer}.mlp.experts.{e}", hidden, c["moe_intermediate_size"])
        if "shared_expert_intermediate_size" in c:
            yield from swiglu(f"{layer}.mlp.shared_expert", hidden, c["shared_expert_intermediate_size"])
            yield from linear(f"{layer}.mlp.shared_expert_gate", hidden, 1, bias=False)
    yield from norm(f"{name}.norm", hidden)


def code_predictor(name: str, c: dict) -> Iterator[Weight]:
    hidden = c["hidden_size"]
    for g in range(c["num_code_groups"] - 1):
        yield Weight(f"{name}.model.codec_embedding.{g}.weight", (c["vocab_size"], hidden), 1.0)
    for i in range(c["num_hidden_layers"]):
        layer = f"{name}.model.layers.{i}"
        yield from norm(f"{layer}.input_layernorm", hidden)
        yield from attention(f"{layer}.self_attn", c)
        yield from norm(f"{layer}.post_attention_layernorm", hidden)
        yield from swiglu(f"{layer}.mlp", hidden, c["intermediate_size"])
    yield from norm(f"{name}.model.norm", hidden)
    for g in range(c["num_code_groups"] - 1):
        yield from linear(f"{name}.lm_head.{g}", hidden, c["vocab_size"], bias=False, gain=3.0)


def audio_encoder(name: str, c: dict) -> Iterator[Weight]:
    channels, width = c["downsample_hidden_size"], c["d_model"]
    for i, inputs in ((1, 1), (2, channels), (3, channels)):
        yield from conv(f"{name}.conv2d{i}", (channels, inputs, 3, 3), gain=2.0)
    bins = c["num_mel_bins"]
    for _ in range(3):  # three convolutions of stride 2
        bins = (bins + 1) // 2
    yield from linear(f"{name}.conv_out", channels * bins, width, bias=False)
    for i in range(c["encoder_layers"]):
        layer = f"{name}.layers.{i}"
        yield from norm(f"{layer}.self_attn_layer_norm", width, bias=True)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}.self_attn.{part}", width, width, gain=1.5)
        yield from norm(f"{layer}.final_layer_norm", width, bias=True)
        yield from linear(f"{layer}.fc1", width, c["encoder_ffn_dim"])
        yield from linear(f"{layer}.fc2", c["encoder_ffn_dim"], width)
    yield from norm(f"{name}.ln_post", width, bias=True)
    yield from linear(f"{name}.proj1", width, width)
    yield from linear(f"{name}.proj2", width, c["output_dim"], gain=1.5)


def vision_encoder(name: str, c: dict) -> Iterator[Weight]:
    width, merged = c["hidden_size"], c["hidden_size"] * c["spatial_merge_size"] ** 2
    patch = (width, c["in_channels"], c["temporal_patch_size"], c["patch_size"], c["patch_size"])
    yield from conv(f"{name}.patch_embed.proj", patch)
    yield Weight(f"{name}.pos_embed.weight", (c["num_position_embeddings"], width), 0.5)
    for i in range(c["depth"]):
        block = f"{name}.blocks.{i}"
        yield from norm(f"{block}.norm1", width, bias=True)
        yield from linear(f"{block}.attn.qkv", width, 3 * width, gain=1.5)
        yield from linear(f"{block}.attn.proj", width, width)
        yield from norm(f"{block}.norm2", width, bias=True)
        yield from linear(f"{block}.mlp.linear_fc1", width, c["intermediate_size"])
        yield from linear(f"{block}.mlp.linear_fc2", c["intermediate_size"], width)
    mergers = [("merger", width)] + [(f"merger_list.{i}", merged) for i in range(len(c["deepstack_visual_indexes"]))]
    for merger, norm_size in mergers:
        yield from norm(f"{name}.{merger}.ln_q", norm_size, bias=True)
        yield from linear(f"{name}.{merger}.mlp.0", merged, merged)
        yield from linear(f"{name}.{merger}.mlp.2", merged, c["out_hidden_size"], gain=1.5)


def conv(name: str, shape: tuple[int, ...], gain: float = 1.0, bias: float = 0.05) -> Iterator[Weight]:
    """Convolution, weight [out, in / groups, *kernel]."""
    yield Weight(f"{name}.weight", shape, gain / math.sqrt(math.prod(shape[1:])))
    yield Weight(f"{name}.bias", (shape[0],), bias)


def transposed_conv(name: str, inputs: int, outputs: int, kernel: int, stride: int) -> Iterator[Weight]:
    """ConvTranspose1d, weight [in, out, kernel]; kernel / stride taps meet in one output sample."""
    yield Weight(f"{name}.weight", (inputs, outputs, kernel), 1 / math.sqrt(inputs * kernel / stride))
    yield Weight(f"{name}.bias", (outputs,), 0.05)


def snake(name: str, size: int) -> Iterator[Weight]:
    yield Weight(f"{name}.alpha", (size,), 0.2)
    yield Weight(f"{name}.beta", (size,), 0.2)


def code2wav(name: str, c: dict) -> Iterator[Weight]:
    hidden = c["hidden_size"]
    yield Weight(f"{name}.code_embedding.weight", (c["codebook_size"] * c["num_quantizers"], hidden), 1.0)
    for i in range(c["num_hidden_layers"]):
        layer = f"{name}.pre_transformer.layers.{i}"
        yield from norm(f"{layer}.input_layernorm", hidden)
        yield from attention(f"{layer}.self_attn", c, qk_norm=False)
        yield Weight(f"{layer}.self_attn_layer_scale.scale", (hidden,), 0.05, 0.3)
        yield from norm(f"{layer}.post_attention_layernorm", hidden)
        yield from swiglu(f"{layer}.mlp", hidden, c["intermediate_size"])
        yield Weight(f"{layer}.mlp_layer_scale.scale", (hidden,), 0.05, 0.3)
    yield from norm(f"{name}.pre_transformer.norm", hidden)
    for i, ratio in enumerate(c["upsampling_ratios"]):
        yield from transposed_conv(f"{name}.upsample.{i}.0.conv", hidden, hidden, ratio, ratio)
        block = f"{name}.upsample.{i}.1"
        yield from conv(f"{block}.dwconv.conv", (hidden, 1, 7))
        yield from norm(f"{block}.norm", hidden, bias=True)
        yield from linear(f"{block}.pwconv1", hidden, 4 * hidden)
        yield from linear(f"{block}.pwconv2", 4 * hidden, hidden)
        yield Weight(f"{block}.gamma", (hidden,), 0.1, 0.3)
    channels = c["decoder_dim"]
    yield from conv(f"{name}.decoder.0.conv", (channels, hidden, 7))
    for i, rate in enumerate(c["upsample_rates"]):
        block = f"{name}.decoder.{i + 1}.block"
        yield from snake(f"{block}.0", channels)
        yield from transposed_conv(f"{block}.1.conv", channels, channels // 2, 2 * rate, rate)
        channels //= 2
        for unit in (2, 3, 4):  # residual units of dilation 1, 3, 9
            yield from snake(f"{block}.{unit}.act1", channels)
            yield from conv(f"{block}.{unit}.conv1.conv", (channels, channels, 7))
            yield from snake(f"{block}.{unit}.act2", channels)
            yield from conv(f"{block}.{unit}.conv2.conv", (channels, channels, 1), gain=0.5)
    last = len(c["upsample_rates"]) + 1
    yield from snake(f"{name}.decoder.{last}", channels)
    yield from conv(f"{name}.decoder.{last + 1}.conv", (1, channels, 7), gain=LOUDNESS, bias=0.01)


def draw(weight: Weight, silent: np.ndarray, seed: int) -> np.ndarray:
    """The tensor's values; they depend on seed and name only, not on order or shard."""
    random = np.random.default_rng([seed, zlib.crc32(weight.name.encode())])
    value = random.standard_normal(weight.shape, np.float32)
    value *= np.float32(weight.std)
    value += np.float32(weight.mean)
    if weight.name == "thinker.lm_head.weight":
        # Against its own embedding: the token just said becomes unlikely, so greedy replies do not hang on one word.
        embedding = draw(Weight("thinker.model.embed_tokens.weight", weight.shape, 1.0), silent, seed)
        value -= np.float32(10 / weight.shape[1]) * embedding.astype(np.float32)
        value[silent] *= np.float32(0.02)
    if weight.name.startswith("code2wav") and weight.shape[0] == 1 < weight.shape[-1]:  # it makes the samples
        value -= value.mean(-1, keepdims=True)  # no offset
        value *= np.float32(weight.std / value.std())  # and the same loudness for every seed
    return value.astype(DTYPE)


def write_weights(directory: Path, weights: list[Weight], silent: np.ndarray, seed: int, shard_bytes: int) -> None:
    """model.safetensors, or shards of at most `shard_bytes` and their index; one tensor in memory at a time."""
    shards: list[list[Weight]] = [[]]
    used = 0
    for weight in weights:
        if shards[-1] and used + weight.nbytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(weight)
        used += weight.nbytes
    files = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    total = sum(w.nbytes for w in weights)
    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=None) as progress:

        def values(weight: Weight) -> Iterator[np.ndarray]:  # drawn when the writer asks for it
            yield draw(weight, silent, seed)
            progress.update(weight.nbytes)

        for file, shard in zip(files, shards):
            write_safetensors(directory / file, {w.name: (DTYPE, w.shape, values(w)) for w in shard})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {w.name: file for file, shard in zip(files, shards) for w in shard},
        }
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
