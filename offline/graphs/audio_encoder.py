"""Audio encoder graph: log-mel -> Thinker embeddings (transformers `Qwen3OmniMoeAudioEncoder`).

The encoder cuts a clip into chunks of 100 mel frames, sends each through three strided convolutions
(13 tokens per full chunk), and lets tokens attend to each other only inside a window of 8 chunks (8 s).
Windows are therefore independent: the graph takes a batch of windows of equal size, so attention needs no
mask and its cost is linear in the length of the clip.

inputs   mel            [windows, chunks, mel_bins, frames]  frames <= 100; zero-padded where a chunk is shorter
         valid_indices  [tokens] int64   which of the chunks * tokens_per_chunk rows of a window are real
         positions      [tokens] int64   place of each of them inside its chunk
output   embeds         [windows * tokens, hidden]
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from omni_ros.errors import CheckpointError

from ..checkpoints.checkpoint import Checkpoint
from .builder import GraphBuilder

CHUNK_TOKENS = 13  # rows that three stride-2 convolutions make of 100 frames; fixed in transformers
NORM_EPS = 1e-5  # nn.LayerNorm's default


@dataclass(frozen=True)
class AudioEncoderConfig:
    """The fields, and their defaults, of transformers' `Qwen3OmniMoeAudioEncoderConfig` that shape the graph."""

    num_mel_bins: int = 128
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    d_model: int = 1280
    activation_function: str = "gelu"
    scale_embedding: bool = False
    n_window: int = 50
    n_window_infer: int = 800
    output_dim: int = 3584
    downsample_hidden_size: int = 480


def read_config(checkpoint: Checkpoint) -> AudioEncoderConfig:
    where = checkpoint.directory / "config.json"
    values = checkpoint.config.get("thinker_config", {}).get("audio_config")
    if values is None:
        raise CheckpointError(f"{where}: no thinker_config.audio_config; this checkpoint has no audio encoder")
    c = AudioEncoderConfig(**{f.name: values[f.name] for f in fields(AudioEncoderConfig) if f.name in values})
    for ok, problem in (
        (c.activation_function == "gelu", f"activation_function {c.activation_function} (only gelu)"),
        (not c.scale_embedding, "scale_embedding"),
        (c.n_window == 50, f"n_window {c.n_window} (only 50: transformers counts 13 tokens a chunk)"),
        (c.n_window_infer > 0 and c.n_window_infer % 100 == 0, f"n_window_infer {c.n_window_infer} (only n * 100)"),
        (c.d_model % (2 * c.encoder_attention_heads) == 0, f"d_model {c.d_model} with {c.encoder_attention_heads} heads"),
    ):
        if not ok:
            raise CheckpointError(f"{where}: thinker_config.audio_config is not supported: {problem}")
    return c


def export(checkpoint: Checkpoint, directory: Path, dtype: np.dtype) -> None:
    """Write model.onnx, model.onnx.data and config.json of the audio encoder into `directory`."""
    c = read_config(checkpoint)
    hidden, channels, bins = c.d_model, c.downsample_hidden_size, c.num_mel_bins
    g = GraphBuilder(directory, checkpoint, "thinker.audio_tower.", dtype)

    mel = g.input("mel", ["windows", "chunks", bins, "frames"])
    valid = g.input("valid_indices", ["tokens"], np.int64)
    positions = g.input("positions", ["tokens"], np.int64)

    # Chunks are the batch of the convolutions: [windows * chunks, 1, mel_bins, frames].
    frames = g.op("Shape", mel, start=3, end=4)
    x = g.op("Reshape", mel, g.op("Concat", g.const([-1, 1, bins]), frames, axis=0))
    for i, n_in in enumerate((1, channels, channels), start=1):
        weight = g.weight(f"conv2d{i}.weight", (channels, n_in, 3, 3))
        x = g.op(
            "Conv", x, weight, g.weight(f"conv2d{i}.bias", (channels,)), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
        )
        x = g.op("Gelu", x)
        bins = (bins + 1) // 2
    # [chunks, channels, bins, t] -> rows of channels * bins, one per token, gathered into [windows, tokens, hidden].
    x = g.op(
        "Gemm",
        g.reshape(g.transpose(x, [0, 3, 1, 2]), [-1, channels * bins]),
        g.weight("conv_out.weight", (hidden, channels * bins)),
        transB=1,
    )
    windows = g.op("Shape", mel, start=0, end=1)
    x = g.op("Reshape", x, g.op("Concat", windows, g.const([-1, hidden]), axis=0))
    x = g.op("Gather", x, valid, axis=1)
    table = g.tensor("positional_embedding", sinusoids(CHUNK_TOKENS, hidden).astype(g.dtype))
    x = g.op("Add", x, g.op("Gather", table, positions, axis=0))

    by_window = g.op("Shape", x)  # [windows, tokens, hidden]
    x = g.reshape(x, [-1, hidden])
    for i in range(c.encoder_layers):
        x = layer(g, c, x, f"layers.{i}", by_window)
    x = g.layer_norm(x, "ln_post", NORM_EPS)
    x = g.linear(g.op("Gelu", g.linear(x, "proj1", bias=True)), "proj2", bias=True)
    g.output("embeds", x, ["windows * tokens", c.output_dim])
    window_chunks = c.n_window_infer // (2 * c.n_window)
    g.save(
        {
            "engine": "audio",
            "model": {
                "mel_bins": c.num_mel_bins,
                "hidden_size": c.output_dim,
                "chunk_frames": 2 * c.n_window,
                "chunk_tokens": CHUNK_TOKENS,
                "window_chunks": window_chunks,
            },
            "limits": {"max_chunks": window_chunks},
        }
    )


def layer(g: GraphBuilder, c: AudioEncoderConfig, x: str, key: str, by_window: str) -> str:
    """One pre-norm transformer layer; x [windows * tokens, hidden]."""
    heads, head_dim = c.encoder_attention_heads, c.d_model // c.encoder_attention_heads
    normed = g.layer_norm(x, f"{key}.self_attn_layer_norm", NORM_EPS)
    q, k, v = (g.op("Reshape", g.linear(normed, f"{key}.self_attn.{name}_proj", bias=True), by_window) for name in "qkv")
    attended = g.op("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads, scale=head_dim**-0.5)
    attended = g.linear(g.reshape(attended, [-1, c.d_model]), f"{key}.self_attn.out_proj", bias=True)
    x = g.op("Add", x, attended)
    normed = g.layer_norm(x, f"{key}.final_layer_norm", NORM_EPS)
    inner = g.op("Gelu", g.linear(normed, f"{key}.fc1", bias=True))
    x = g.op("Add", x, g.linear(inner, f"{key}.fc2", bias=True))
    if g.dtype == np.float16:  # transformers clamps here too: the residual stream of this encoder overflows half
        x = g.op("Clip", x, g.const(-64504.0), g.const(64504.0))
    return x


def sinusoids(length: int, channels: int) -> np.ndarray:
    """Positional table [length, channels] float32 (transformers `SinusoidsPositionEmbedding`): sines, then cosines."""
    half = channels // 2
    timescales = np.exp(-np.float32(np.log(10000) / (half - 1)) * np.arange(half, dtype=np.float32))
    angles = np.arange(length, dtype=np.float32)[:, None] * timescales
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
