"""CodePredictor: the 15 residual codes of one codec frame in ONE graph call.

Follows transformers' Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration.generate with 15 new tokens: a
two-row prefill [talker last hidden, embedding(code 0)], then 14 one-row steps; head g predicts code group g+1. The
steps are unrolled and share their weights, and the KV cache (at most 16 rows) is internal. Sampling is in the graph:
top-k 50, then top-p 0.8, then argmax(logit + noise). With Gumbel noise that is an exact draw from the distribution
(the Gumbel-max trick); with zeros it is greedy.

  last_hidden [1, H], code0_embed [1, H], noise float32 [15, k]
  codes int64 [15], embed_sum [1, H] (all 16 code embeddings summed: the audio half of the Talker's next input row)
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from omni_ros.errors import CheckpointError

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.rope import read_rope
from . import functions
from .builder import GraphBuilder

TOP_K, TOP_P = 50, 0.8  # transformers: Qwen3OmniMoeTalkerForConditionalGeneration.prepare_inputs_for_generation


@dataclass(frozen=True)
class CodePredictorConfig:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    num_code_groups: int
    rms_norm_eps: float
    rope_theta: float

    @classmethod
    def from_json(cls, c: dict) -> "CodePredictorConfig":
        rope = read_rope(c, "config.json: talker_config.code_predictor_config")
        try:
            config = cls(
                vocab_size=c["vocab_size"],
                hidden_size=c["hidden_size"],
                num_layers=c["num_hidden_layers"],
                num_heads=c["num_attention_heads"],
                num_kv_heads=c["num_key_value_heads"],
                head_dim=c["head_dim"],
                intermediate_size=c["intermediate_size"],
                num_code_groups=c["num_code_groups"],
                rms_norm_eps=c["rms_norm_eps"],
                rope_theta=rope.theta,
            )
        except KeyError as e:
            raise CheckpointError(f"config.json: talker_config.code_predictor_config lacks {e}") from e
        unsupported = {
            "hidden_act": c.get("hidden_act", "silu") != "silu",
            "attention_bias": c.get("attention_bias"),
            "sliding_window": (c.get("sliding_window") or 16) < 16,
        }
        for name, bad in unsupported.items():
            if bad:
                raise CheckpointError(f"config.json: talker_config.code_predictor_config.{name} = {c.get(name)} is not supported")
        return config


class CodePredictor:
    """Emits one autoregressive step at a time; `self.cache` holds each layer's keys and values so far."""

    def __init__(self, g: GraphBuilder, c: CodePredictorConfig):
        self.g, self.c = g, c
        self.cache: list[tuple[str, str] | None] = [None] * c.num_layers  # [1, kv_heads, rows, D] each
        self.position = 0

    def attention(self, x: str, layer: int, rows: int, cos: str, sin: str) -> str:
        g, c, key = self.g, self.c, f"model.layers.{layer}.self_attn"

        def heads(name: str, n: int, norm: str | None) -> str:  # -> [1, n, rows, D], normalised and rotated
            y = g.reshape(g.linear(x, f"{key}.{name}_proj"), [1, rows, n, c.head_dim])
            y = g.transpose(y, [0, 2, 1, 3])
            return g.op("RotaryEmbedding", g.rms_norm(y, f"{key}.{norm}", c.rms_norm_eps), cos, sin) if norm else y

        q = heads("q", c.num_heads, "q_norm")
        k, v = heads("k", c.num_kv_heads, "k_norm"), heads("v", c.num_kv_heads, None)
        if cached := self.cache[layer]:
            k, v = (g.op("Concat", past, new, axis=2) for past, new in zip(cached, (k, v)))
        self.cache[layer] = (k, v)
        y = g.op("Attention", q, k, v, is_causal=int(rows > 1))
        y = g.reshape(g.transpose(y, [0, 2, 1, 3]), [rows, c.num_heads * c.head_dim])
        return g.linear(y, f"{key}.o_proj")

    def step(self, x: str, rows: int) -> str:
        """x [rows, H] -> normed hidden of the last row [1, H]."""
        g, c = self.g, self.c
        inv_freq = 1.0 / c.rope_theta ** (np.arange(0, c.head_dim, 2, dtype=np.float32) / np.float32(c.head_dim))
        angle = np.arange(self.position, self.position + rows, dtype=np.float32)[None, :, None] * inv_freq
        cos, sin = g.const(np.cos(angle)), g.const(np.sin(angle))  # [1, rows, D/2]
        self.position += rows
        for i in range(c.num_layers):
            key = f"model.layers.{i}"
            y = g.rms_norm(x, f"{key}.input_layernorm", c.rms_norm_eps)
            x = g.op("Add", x, self.attention(y, i, rows, cos, sin))
            y = g.rms_norm(x, f"{key}.post_attention_layernorm", c.rms_norm_eps)
            x = g.op("Add", x, g.swiglu(y, f"{key}.mlp"))
        last = g.op("Slice", x, g.const([rows - 1]), g.const([rows]), g.const([0])) if rows > 1 else x
        return g.rms_norm(last, "model.norm", c.rms_norm_eps)


def sample(g: GraphBuilder, logits: str, noise: str, k: int) -> str:
    """logits [1, V], noise [1, k] -> id int64 [1]: top-k, top-p, argmax(logit + noise)."""
    top, index = g.ops("TopK", g.cast(logits, np.float32), g.const([k]), n_outputs=2, axis=-1)  # sorted, [1, k]
    before = g.op("CumSum", g.op("Softmax", top, axis=-1), g.const(1), exclusive=1)  # probability of better ids
    kept = g.op("Where", g.op("Less", before, g.const(TOP_P, np.float32)), top, g.const(-np.inf, np.float32))
    choice = g.op("ArgMax", g.op("Add", kept, noise), axis=-1, keepdims=1)  # [1, 1]
    return g.op("Squeeze", g.op("GatherElements", index, choice, axis=1), g.const([0]))


def export(checkpoint: Checkpoint, directory: Path, dtype: np.dtype, quantize_activations: bool) -> None:
    """`multimodal/code_predictor`: the frame graph and config.json."""
    c = CodePredictorConfig.from_json(checkpoint.config["talker_config"]["code_predictor_config"])
    quantize_activations &= any(n.startswith("talker.code_predictor.") and n.endswith("_scale") for n in checkpoint.tensors)
    g = GraphBuilder(directory, checkpoint, "talker.code_predictor.", dtype, quantize_activations)
    if quantize_activations:
        g.functions += [functions.nvfp4_quantize(), functions.fp8_quantize()]
    groups, k = c.num_code_groups - 1, min(TOP_K, c.vocab_size)
    last_hidden = g.input("last_hidden", [1, c.hidden_size])
    code0_embed = g.input("code0_embed", [1, c.hidden_size])
    noise = g.input("noise", [groups, k], np.float32)
    predictor = CodePredictor(g, c)
    x, rows, total, codes = g.op("Concat", last_hidden, code0_embed, axis=0), 2, code0_embed, []
    for group in range(groups):
        hidden = predictor.step(x, rows)
        row_noise = g.op("Slice", noise, g.const([group]), g.const([group + 1]), g.const([0]))
        codes.append(sample(g, g.linear(hidden, f"lm_head.{group}"), row_noise, k))
        x, rows = g.op("Gather", g.weight(f"model.codec_embedding.{group}.weight"), codes[-1], axis=0), 1
        total = g.op("Add", total, x)
    g.output("codes", g.op("Concat", *codes, axis=0), [groups], np.int64)
    g.output("embed_sum", g.cast(total, np.float32), [1, c.hidden_size], np.float32)
    g.save(
        {
            "engine": "code_predictor",
            "model": {"num_code_groups": c.num_code_groups, "vocab_size": c.vocab_size, "noise_width": k},
            "decoder": {**asdict(c), "shared_intermediate_size": c.intermediate_size, "top_p": TOP_P},
        }
    )
