"""Code2Wav, codec codes -> 24 kHz PCM, as one graph that streams (transformers `Qwen3OmniMoeCode2Wav`).

transformers decodes a whole reply at once. Here every layer keeps, as engine state, what it needs of earlier calls,
so that the outputs of any chunking, joined, are the waveform of the full decode:

* sliding-window attention: the last window - 1 keys and values (RoPE at absolute positions);
* causal convolution: the last (kernel - 1) * dilation columns, zeros at first = transformers' left padding;
* transposed convolution: the last column. With kernel 2r and stride r, block j of r samples is made from columns
  j - 1 and j, and transformers trims block 0 (made from column 0 alone). So the first call, and only that one, yields
  one block less per layer: in total `lookahead_samples` less than frames * `samples_per_frame`.

Convolution activations are [1, channels, columns]; elsewhere [rows, channels].
"""

from dataclasses import dataclass, fields
from math import prod
from pathlib import Path

import numpy as np

from omni_ros.errors import CheckpointError

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.rope import read_rope
from .builder import GraphBuilder

SAMPLE_RATE = 24000
END = np.iinfo(np.int64).max  # Slice: to the end


@dataclass(frozen=True)
class Code2WavConfig:
    """The fields, and their defaults, of transformers' class of the same name that shape the graph."""

    codebook_size: int = 2048
    num_quantizers: int = 16
    hidden_size: int = 1024
    num_hidden_layers: int = 8
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    attention_bias: bool = False
    sliding_window: int = 72
    intermediate_size: int = 3072
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    upsample_rates: tuple[int, ...] = (8, 5, 4, 3)
    upsampling_ratios: tuple[int, ...] = (2, 2)
    decoder_dim: int = 1536

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def samples_per_frame(self) -> int:
        return prod(self.upsampling_ratios) * prod(self.upsample_rates)

    @property
    def lookahead_samples(self) -> int:
        """What is still to come of a frame's samples after the call that decoded it."""
        return self.samples_per_frame - self.first_frame_samples

    @property
    def first_frame_samples(self) -> int:
        columns = prod(self.upsampling_ratios)
        for rate in self.upsample_rates:
            columns = (columns - 1) * rate
        return columns


def read_config(checkpoint: Checkpoint) -> Code2WavConfig:
    where = checkpoint.directory / "config.json"
    if "code2wav_config" not in checkpoint.config:
        raise CheckpointError(f"{where}: no code2wav_config; this checkpoint has no speech output")
    values = dict(checkpoint.config["code2wav_config"])
    values["rope_theta"] = read_rope(values, f"{where}: code2wav_config").theta
    config = Code2WavConfig(**{f.name: values[f.name] for f in fields(Code2WavConfig) if f.name in values})
    for ok, problem in (
        (config.hidden_act == "silu", f"hidden_act {config.hidden_act}"),
        (config.sliding_window > 1, f"sliding_window {config.sliding_window}"),
        (values.get("head_dim", config.head_dim) == config.head_dim, "head_dim other than hidden_size / heads"),
        (config.first_frame_samples > 0, "one frame leaves no samples after the trims of upsample_rates"),
    ):
        if not ok:
            raise CheckpointError(f"{where}: code2wav_config is not supported: {problem}")
    return config


def export(checkpoint: Checkpoint, directory: Path, dtype: np.dtype) -> None:
    """Write model.onnx, model.onnx.data, config.json.

    codes int64 [num_quantizers, frames] (frames >= 1) -> pcm float32 [samples], in [-1, 1].
    """
    c = read_config(checkpoint)
    g = GraphBuilder(directory, checkpoint, "code2wav.", dtype)
    codes = g.input("codes", [c.num_quantizers, "frames"], np.int64)
    past_length = g.input("past_length", [1], np.int64)  # frames of earlier calls
    first_call = g.cast(g.op("Equal", past_length, g.const([0])), np.int64)  # [1], 1 or 0

    x = pre_transformer(g, c, embed(g, c, codes), past_length)  # [frames, hidden]
    x = g.op("Unsqueeze", g.transpose(x, [1, 0]), g.const([0]))  # [1, hidden, frames]
    for i, ratio in enumerate(c.upsampling_ratios):
        x = upsample(g, c, x, f"upsample.{i}.0.conv", ratio)
        x = convnext(g, c, x, f"upsample.{i}.1")
    dim, last = c.decoder_dim, len(c.upsample_rates) + 1
    x = causal_conv(g, x, "decoder.0.conv", c.hidden_size, dim, kernel=7)
    for i, rate in enumerate(c.upsample_rates, start=1):
        x = snake(g, x, f"decoder.{i}.block.0", dim)
        x = transposed_conv(g, x, f"decoder.{i}.block.1.conv", dim, dim // 2, rate, first_call)
        dim //= 2
        for unit, dilation in enumerate((1, 3, 9), start=2):
            x = residual_unit(g, x, f"decoder.{i}.block.{unit}", dim, dilation)
    x = causal_conv(g, snake(g, x, f"decoder.{last}", dim), f"decoder.{last + 1}.conv", dim, 1, kernel=7)
    pcm = g.reshape(g.op("Clip", x, g.const(-1.0), g.const(1.0)), [-1])
    g.output("pcm", g.cast(pcm, np.float32), ["samples"], np.float32)
    g.save(
        {
            "engine": "code2wav",
            "model": {
                "sample_rate": SAMPLE_RATE,
                "num_quantizers": c.num_quantizers,
                "codebook_size": c.codebook_size,
                "samples_per_frame": c.samples_per_frame,
                "lookahead_samples": c.lookahead_samples,
            },
            "limits": {},
            "position": {"input": "past_length", "counts": "codes", "axis": 1},
        }
    )


# ---- codes -> hidden ----------------------------------------------------------------------------------------------
def embed(g: GraphBuilder, c: Code2WavConfig, codes: str) -> str:
    """Mean of the frame's embeddings; quantizer q uses rows q * codebook_size and up of one shared table."""
    table = g.weight("code_embedding.weight", (c.num_quantizers * c.codebook_size, c.hidden_size))
    rows = g.op("Add", codes, g.const(np.arange(c.num_quantizers)[:, None] * c.codebook_size))
    return g.op("ReduceMean", g.op("Gather", table, rows), g.const([0]), keepdims=0)  # [frames, hidden]


def pre_transformer(g: GraphBuilder, c: Code2WavConfig, x: str, past_length: str) -> str:
    """`Qwen3OmniMoeCode2WavTransformerModel`: x [frames, hidden] -> [frames, hidden]."""
    frames = g.op("Shape", x, start=0, end=1)
    steps = g.op("Range", g.const(0), g.op("Squeeze", frames), g.const(1))  # [frames]
    rope = rope_tables(g, c, g.op("Add", steps, past_length))
    mask = window_mask(g, c, steps, frames, past_length)
    for i in range(c.num_hidden_layers):
        key = f"pre_transformer.layers.{i}"
        y = attention(g, c, g.rms_norm(x, f"{key}.input_layernorm", c.rms_norm_eps), f"{key}.self_attn", i, rope, mask)
        x = g.op("Add", x, g.op("Mul", y, g.weight(f"{key}.self_attn_layer_scale.scale")))
        y = g.swiglu(g.rms_norm(x, f"{key}.post_attention_layernorm", c.rms_norm_eps), f"{key}.mlp")
        x = g.op("Add", x, g.op("Mul", y, g.weight(f"{key}.mlp_layer_scale.scale")))
    return g.rms_norm(x, "pre_transformer.norm", c.rms_norm_eps)


def rope_tables(g: GraphBuilder, c: Code2WavConfig, positions: str) -> tuple[str, str]:
    """cos and sin [1, frames, head_dim / 2] of the positions' angles, which need float32 whatever the graph's dtype."""
    inv_freq = c.rope_theta ** (-np.arange(0, c.head_dim, 2, dtype=np.float32) / c.head_dim)
    angles = g.op(
        "Mul", g.op("Unsqueeze", g.cast(positions, np.float32), g.const([0, 2])), g.const(inv_freq.astype(np.float32), np.float32)
    )
    return g.cast(g.op("Cos", angles), g.dtype), g.cast(g.op("Sin", angles), g.dtype)


def window_mask(g: GraphBuilder, c: Code2WavConfig, steps: str, frames: str, past_length: str) -> str:
    """Boolean [frames, past + frames], past = window - 1: query i sees itself and the window - 1 keys before it.

    Query i is key past + i, so it sees keys i..past + i (`create_sliding_window_causal_mask`), of which the first
    past - past_length are still the zeros of an unfilled state.
    """
    past = c.sliding_window - 1
    keys = g.op("Range", g.const(0), g.op("Squeeze", g.op("Add", frames, g.const([past]))), g.const(1))
    queries = g.op("Unsqueeze", steps, g.const([1]))
    oldest = g.op("Max", queries, g.op("Sub", g.const([past]), past_length))
    newest = g.op("Add", queries, g.const(past))
    return g.op("And", g.op("GreaterOrEqual", keys, oldest), g.op("LessOrEqual", keys, newest))


def attention(g: GraphBuilder, c: Code2WavConfig, x: str, key: str, layer: int, rope: tuple[str, str], mask: str) -> str:
    """`Qwen3OmniMoeCode2WavAttention`: x [frames, hidden] -> [frames, hidden]; rope and mask serve all layers."""

    def heads(name: str, count: int) -> str:  # [1, count, frames, head_dim]
        y = g.reshape(g.linear(x, f"{key}.{name}", bias=c.attention_bias), [1, -1, count, c.head_dim])
        return g.transpose(y, [0, 2, 1, 3])

    kv_shape = [1, c.num_key_value_heads, c.sliding_window - 1, c.head_dim]
    q = g.op("RotaryEmbedding", heads("q_proj", c.num_attention_heads), *rope)
    k = with_past(g, g.op("RotaryEmbedding", heads("k_proj", c.num_key_value_heads), *rope), f"key_{layer}", kv_shape)
    v = with_past(g, heads("v_proj", c.num_key_value_heads), f"value_{layer}", kv_shape)
    y = g.op("Attention", q, k, v, mask, softmax_precision=1)  # 1: float32
    y = g.reshape(g.transpose(y, [0, 2, 1, 3]), [-1, c.num_attention_heads * c.head_dim])
    return g.linear(y, f"{key}.o_proj", bias=c.attention_bias)


def with_past(g: GraphBuilder, x: str, name: str, shape: list[int]) -> str:
    """State `name` and x joined along axis 2; the state becomes the last shape[2] columns of that."""
    joined = g.op("Concat", g.state(name, shape), x, axis=2)
    g.set_state(name, g.op("Slice", joined, g.const([-shape[2]]), g.const([END]), g.const([2])))
    return joined


# ---- hidden -> samples --------------------------------------------------------------------------------------------
def causal_conv(g: GraphBuilder, x: str, key: str, inner: int, outer: int, kernel: int, dilation: int = 1, group: int = 1) -> str:
    """`Qwen3OmniMoeCausalConvNet` at stride 1, from `inner` to `outer` channels."""
    if kernel > 1:
        x = with_past(g, x, key, [1, inner, (kernel - 1) * dilation])
    weight = g.weight(f"{key}.weight", (outer, inner // group, kernel))
    return g.op("Conv", x, weight, g.weight(f"{key}.bias"), dilations=[dilation], group=group)


def upsample(g: GraphBuilder, c: Code2WavConfig, x: str, key: str, ratio: int) -> str:
    """`Qwen3OmniMoeCausalTransConvNet` with kernel = stride: nothing overlaps, nothing is trimmed."""
    weight = g.weight(f"{key}.weight", (c.hidden_size, c.hidden_size, ratio))
    return g.op("ConvTranspose", x, weight, g.weight(f"{key}.bias"), strides=[ratio])


def transposed_conv(g: GraphBuilder, x: str, key: str, inner: int, outer: int, rate: int, first_call: str) -> str:
    """`Qwen3OmniMoeCausalTransConvNet` with kernel 2 * rate; the first call has no past column to join."""
    joined = with_past(g, x, key, [1, inner, 1])
    joined = g.op("Slice", joined, first_call, g.const([END]), g.const([2]))
    weight = g.weight(f"{key}.weight", (inner, outer, 2 * rate))
    return g.op("ConvTranspose", joined, weight, g.weight(f"{key}.bias"), strides=[rate], pads=[rate, rate])


def convnext(g: GraphBuilder, c: Code2WavConfig, x: str, key: str) -> str:
    """`Qwen3OmniMoeConvNeXtBlock`."""
    y = causal_conv(g, x, f"{key}.dwconv.conv", c.hidden_size, c.hidden_size, kernel=7, group=c.hidden_size)
    y = g.layer_norm(g.transpose(g.op("Squeeze", y, g.const([0])), [1, 0]), f"{key}.norm", 1e-6)
    y = g.linear(g.op("Gelu", g.linear(y, f"{key}.pwconv1", bias=True)), f"{key}.pwconv2", bias=True)
    y = g.op("Mul", y, g.weight(f"{key}.gamma"))
    return g.op("Add", x, g.op("Unsqueeze", g.transpose(y, [1, 0]), g.const([0])))


def residual_unit(g: GraphBuilder, x: str, key: str, channels: int, dilation: int) -> str:
    """`Qwen3OmniMoeCode2WavDecoderResidualUnit`."""
    y = causal_conv(g, snake(g, x, f"{key}.act1", channels), f"{key}.conv1.conv", channels, channels, 7, dilation)
    y = causal_conv(g, snake(g, y, f"{key}.act2", channels), f"{key}.conv2.conv", channels, channels, kernel=1)
    return g.op("Add", x, y)


def snake(g: GraphBuilder, x: str, key: str, channels: int) -> str:
    """`Qwen3OmniMoeSnakeBeta`, x + sin(alpha x)^2 / beta, with alpha and beta stored as logarithms."""
    log_alpha, log_beta = (
        g.checkpoint.read(f"{g.prefix}{key}.{n}", (channels,)).astype(np.float32)[:, None] for n in ("alpha", "beta")
    )
    alpha = g.tensor(f"{key}.alpha", np.exp(log_alpha).astype(g.dtype))
    inverse_beta = g.tensor(f"{key}.inverse_beta", (1 / (np.exp(log_beta) + 1e-9)).astype(g.dtype))
    sine = g.op("Sin", g.op("Mul", x, alpha))
    return g.op("Add", x, g.op("Mul", g.op("Mul", sine, sine), inverse_beta))
