"""Vision encoder graph: image patches -> Thinker embeddings + deepstack (transformers `Qwen3OmniMoeVisionEncoder`).

Patches attend to each other only inside their own image, or their own frame pair of a video. The graph takes a
batch of such frames with one grid size, so attention needs no mask and its cost is linear in their number.
Everything that depends on the grid (interpolation of the position table, rotary angles) is computed in numpy
outside and gathered or multiplied inside.

inputs   patches      [frames, n, channels * t * p * p]   n = h * w patches, in merge-block order
         pos_indices  [n, 4] int64                        bilinear taps into the square table of positions
         pos_weights  [n, 4]
         cos, sin     [frames, n, head_dim / 2]           axial rotary angles: row half, column half
outputs  embeds       [frames * n / merge^2, hidden]
         deepstack    [levels, frames * n / merge^2, hidden]
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from omni_ros.errors import CheckpointError
from omni_ros.preprocess.image import VisionConfig

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.rope import read_rope
from .builder import GraphBuilder

GELU = {"gelu": "none", "gelu_pytorch_tanh": "tanh"}  # hidden_act -> approximate of ONNX Gelu
MAX_PATCHES = 16384  # per run: one image of 2048 x 2048 pixels
NORM_EPS = 1e-6


@dataclass(frozen=True)
class VisualEncoderConfig:
    """The fields, and their defaults, of transformers' `Qwen3OmniMoeVisionEncoderConfig` that shape the graph."""

    depth: int = 27
    hidden_size: int = 1152
    hidden_act: str = "gelu_pytorch_tanh"
    intermediate_size: int = 4304
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    out_hidden_size: int = 3584
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def position_side(self) -> int:
        return int(self.num_position_embeddings**0.5)

    @property
    def patch_width(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


def read_config(checkpoint: Checkpoint, preprocess: VisionConfig) -> VisualEncoderConfig:
    """`preprocess` is the processor's own config, which must cut the patches that the encoder expects."""
    where = checkpoint.directory / "config.json"
    values = checkpoint.config.get("thinker_config", {}).get("vision_config")
    if values is None:
        raise CheckpointError(f"{where}: no thinker_config.vision_config; this checkpoint has no vision encoder")
    rope = read_rope(values, f"{where}: thinker_config.vision_config", ("axial", "default"), VisualEncoderConfig.rope_theta)
    values = {**values, "rope_theta": rope.theta}
    c = VisualEncoderConfig(**{f.name: values[f.name] for f in fields(VisualEncoderConfig) if f.name in values})
    cut = (preprocess.patch_size, preprocess.temporal_patch_size, preprocess.merge_size)
    for ok, problem in (
        (c.hidden_act in GELU, f"hidden_act {c.hidden_act} (only {', '.join(GELU)})"),
        (c.position_side**2 == c.num_position_embeddings, f"num_position_embeddings {c.num_position_embeddings} (not a square)"),
        (c.hidden_size % (4 * c.num_heads) == 0, f"hidden_size {c.hidden_size} with {c.num_heads} heads"),
        (
            c.deepstack_visual_indexes and all(0 <= i < c.depth for i in c.deepstack_visual_indexes),
            f"deepstack_visual_indexes {list(c.deepstack_visual_indexes)} with depth {c.depth}",
        ),
        (
            cut == (c.patch_size, c.temporal_patch_size, c.spatial_merge_size),
            f"patches are {(c.patch_size, c.temporal_patch_size, c.spatial_merge_size)}, the processor cuts {cut}",
        ),
    ):
        if not ok:
            raise CheckpointError(f"{where}: thinker_config.vision_config is not supported: {problem}")
    return c


def export(checkpoint: Checkpoint, directory: Path, dtype: np.dtype) -> None:
    """Write model.onnx, model.onnx.data and config.json of the vision encoder into `directory`."""
    c = read_config(checkpoint, VisionConfig.from_files(checkpoint.directory))
    hidden, out, levels = c.hidden_size, c.out_hidden_size, list(c.deepstack_visual_indexes)
    g = GraphBuilder(directory, checkpoint, "thinker.visual.", dtype)

    patches = g.input("patches", ["frames", "n", c.patch_width])
    pos_indices = g.input("pos_indices", ["n", 4], np.int64)
    pos_weights = g.input("pos_weights", ["n", 4])
    cos, sin = (g.input(name, ["frames", "n", c.head_dim // 2]) for name in ("cos", "sin"))

    # The patch embedding is a Conv3d whose stride is its kernel: one matrix product per patch.
    shape = (hidden, c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
    values = checkpoint.read(f"{g.prefix}patch_embed.proj.weight", shape).reshape(hidden, c.patch_width)
    kernel = g.tensor("patch_embed.proj.weight", values.astype(g.dtype))
    x = g.op("Gemm", g.reshape(patches, [-1, c.patch_width]), kernel, g.weight("patch_embed.proj.bias", (hidden,)), transB=1)
    table = g.weight("pos_embed.weight", (c.num_position_embeddings, hidden))
    taps = g.op("Gather", table, pos_indices, axis=0)  # [n, 4, hidden]
    pos = g.op("ReduceSum", g.op("Mul", taps, g.op("Unsqueeze", pos_weights, g.const([2]))), g.const([1]), keepdims=0)
    by_frame = g.op("Concat", g.op("Shape", patches, start=0, end=2), g.const([-1]), axis=0)  # [frames, n, -1]
    x = g.reshape(g.op("Add", g.op("Reshape", x, by_frame), pos), [-1, hidden])

    deepstack = []
    for i in range(c.depth):
        x = block(g, c, x, f"blocks.{i}", by_frame, cos, sin)
        if i in levels:
            feature = merge(g, c, x, f"merger_list.{levels.index(i)}", norm_after_merge=True)
            deepstack.append(g.op("Unsqueeze", feature, g.const([0])))
    g.output("embeds", merge(g, c, x, "merger", norm_after_merge=False), ["tokens", out])
    g.output("deepstack", g.op("Concat", *deepstack, axis=0), [len(levels), "tokens", out])
    g.save(
        {
            "engine": "visual",
            "model": {
                "hidden_size": out,
                "levels": len(levels),
                "patch_width": c.patch_width,
                "merge_size": c.spatial_merge_size,
                "position_side": c.position_side,
                "head_dim": c.head_dim,
                "rope_theta": c.rope_theta,
            },
            "limits": {"max_patches": MAX_PATCHES},
        }
    )


def block(g: GraphBuilder, c: VisualEncoderConfig, x: str, key: str, by_frame: str, cos: str, sin: str) -> str:
    """One pre-norm transformer block; x [frames * n, hidden]."""
    normed = g.layer_norm(x, f"{key}.norm1", NORM_EPS)
    qkv = g.op("Reshape", g.linear(normed, f"{key}.attn.qkv", bias=True), by_frame)  # [frames, n, 3 * hidden]
    q, k, v = g.ops("Split", qkv, n_outputs=3, axis=-1, num_outputs=3)
    q, k = (g.op("RotaryEmbedding", t, cos, sin, num_heads=c.num_heads) for t in (q, k))
    attended = g.op("Attention", q, k, v, q_num_heads=c.num_heads, kv_num_heads=c.num_heads, scale=c.head_dim**-0.5)
    x = g.op("Add", x, g.linear(g.reshape(attended, [-1, c.hidden_size]), f"{key}.attn.proj", bias=True))
    normed = g.layer_norm(x, f"{key}.norm2", NORM_EPS)
    inner = g.op("Gelu", g.linear(normed, f"{key}.mlp.linear_fc1", bias=True), approximate=GELU[c.hidden_act])
    return g.op("Add", x, g.linear(inner, f"{key}.mlp.linear_fc2", bias=True))


def merge(g: GraphBuilder, c: VisualEncoderConfig, x: str, key: str, norm_after_merge: bool) -> str:
    """merge x merge neighbours become one token: [n, hidden] -> [n / merge^2, out]; deepstack normalises after."""
    merged = c.hidden_size * c.spatial_merge_size**2
    if norm_after_merge:
        x = g.layer_norm(g.reshape(x, [-1, merged]), f"{key}.ln_q", NORM_EPS)
    else:
        x = g.reshape(g.layer_norm(x, f"{key}.ln_q", NORM_EPS), [-1, merged])
    return g.linear(g.op("Gelu", g.linear(x, f"{key}.mlp.0", bias=True)), f"{key}.mlp.2", bias=True)
