"""Thinker and Talker: one MoE decoder graph, built from the safetensors without torch.

Follows transformers' Qwen3OmniMoeThinkerTextModel and Qwen3OmniMoeTalkerModel (the latter adds a shared expert).
Token embeddings are not in the graph: the pipeline feeds embedding rows, because text, audio and image rows mix.

  inputs_embeds [S, H], position_ids float32 [3, S], past_length int64 [1]
  Thinker only: deepstack [D, S, H], added after layers 0..D-1 (zeros on text rows)
  logits float32 [1, V] of the last row
  Thinker: accept_hidden float32 [S, H], what the Talker sees of media rows
  Talker: last_hidden float32 [1, H] (after the final norm), what the CodePredictor starts from
  KV cache: state key_i, value_i [1, kv_heads, capacity, head_dim], in place
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from omni_ros.errors import CheckpointError

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.forms import read_scalar
from ..checkpoints.rope import read_rope
from . import functions
from .builder import DOMAIN, GraphBuilder


@dataclass(frozen=True)
class DecoderConfig:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    top_k: int
    moe_intermediate_size: int
    normalize_top_k: bool
    shared_intermediate_size: int  # 0: no shared expert
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]

    @classmethod
    def from_json(cls, c: dict, where: str) -> "DecoderConfig":
        """From `thinker_config.text_config` or `talker_config.text_config`; unsupported settings raise CheckpointError."""
        rope = read_rope(c, f"config.json: {where}")
        try:
            config = cls(
                vocab_size=c["vocab_size"],
                hidden_size=c["hidden_size"],
                num_layers=c["num_hidden_layers"],
                num_heads=c["num_attention_heads"],
                num_kv_heads=c["num_key_value_heads"],
                head_dim=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
                num_experts=c["num_experts"] if "num_experts" in c else c["num_local_experts"],
                top_k=c["num_experts_per_tok"],
                moe_intermediate_size=c["moe_intermediate_size"],
                normalize_top_k=c["norm_topk_prob"],
                shared_intermediate_size=c.get("shared_expert_intermediate_size") or 0,
                rms_norm_eps=c["rms_norm_eps"],
                rope_theta=rope.theta,
                mrope_section=rope.mrope_section,
            )
        except (KeyError, TypeError) as e:
            raise CheckpointError(f"config.json: {where} lacks {e}") from e
        unsupported = {
            "hidden_act": c.get("hidden_act", "silu") != "silu",
            "attention_bias": c.get("attention_bias"),
            "mlp_only_layers": c.get("mlp_only_layers"),
            "sliding_window": c.get("sliding_window"),
            "decoder_sparse_step": c.get("decoder_sparse_step", 1) != 1,
            "mrope_section": sum(config.mrope_section) != config.head_dim // 2,
        }
        for name, bad in unsupported.items():
            if bad:
                raise CheckpointError(f"config.json: {where}.{name} = {c.get(name, rope.mrope_section)} is not supported")
        return config


class Decoder:
    """Emits the layers of one decoder into a GraphBuilder."""

    def __init__(self, g: GraphBuilder, c: DecoderConfig):
        self.g, self.c = g, c
        self.quantized_experts = g.quantize_activations and g.is_nvfp4("layers.0.mlp.experts.0.down_proj.weight")
        g.functions += [
            functions.cached_attention(c.num_heads, c.num_kv_heads, c.head_dim),
            functions.moe(c.top_k, c.normalize_top_k, self.quantized_experts),
        ]
        if g.quantize_activations:
            g.functions.append(functions.nvfp4_quantize())

    def rope(self, position_ids: str) -> tuple[str, str]:
        """cos, sin [1, S, D/2] of the interleaved mRoPE: channel j turns with row t, h or w of position_ids [3, S]."""
        g, c = self.g, self.c
        channel_axis = np.zeros(c.head_dim // 2, np.int64)
        for axis in (1, 2):
            channel_axis[axis : c.mrope_section[axis] * 3 : 3] = axis
        inv_freq = 1.0 / c.rope_theta ** (np.arange(0, c.head_dim, 2, dtype=np.float32) / np.float32(c.head_dim))
        per_channel = g.transpose(g.op("Gather", position_ids, g.const(channel_axis), axis=0), [1, 0])  # [S, D/2]
        angle = g.op("Unsqueeze", g.op("Mul", per_channel, g.const(inv_freq, np.float32)), g.const([0]))
        return g.cast(g.op("Cos", angle), g.dtype), g.cast(g.op("Sin", angle), g.dtype)

    def mask(self, x: str) -> str:
        """bool [S, capacity]: row i may look at cache columns 0..past_length+i."""
        g = self.g
        dimension = lambda name, axis: g.op("Shape", name, start=axis, end=axis + 1)  # noqa: E731
        scalar = lambda v: g.op("Squeeze", v, g.const([0]))  # noqa: E731
        rows = g.op("Range", g.const(0), scalar(dimension(x, 0)), g.const(1))
        columns = g.op("Range", g.const(0), scalar(dimension("past_key_0", 2)), g.const(1))
        rows = g.op("Unsqueeze", g.op("Add", rows, "past_length"), g.const([1]))
        return g.op("LessOrEqual", columns, rows)

    def attention(self, x: str, layer: int, cos: str, sin: str, mask: str) -> str:
        g, c, key = self.g, self.c, f"layers.{layer}.self_attn"

        def heads(name: str, n: int, norm: str | None) -> str:  # -> [1, S, n*D], normalised and rotated
            y = g.linear(x, f"{key}.{name}_proj")
            if norm:
                y = g.rms_norm(g.reshape(y, [-1, n, c.head_dim]), f"{key}.{norm}", c.rms_norm_eps)
            y = g.reshape(y, [1, -1, n * c.head_dim])
            return g.op("RotaryEmbedding", y, cos, sin, num_heads=n) if norm else y

        q, k = heads("q", c.num_heads, "q_norm"), heads("k", c.num_kv_heads, "k_norm")
        v = heads("v", c.num_kv_heads, None)
        cache: list[int | str] = [1, c.num_kv_heads, "capacity", c.head_dim]
        past = [
            g.state(f"{n}_{layer}", cache, in_place=True, **self.fp8_scale(f"{key}.{n[0]}_proj.{n[0]}")) for n in ("key", "value")
        ]
        y = g.ops(
            "CachedAttention",
            q,
            k,
            v,
            *past,
            "past_length",
            mask,
            domain=DOMAIN,
            names=[f"attention_{layer}", f"present_key_{layer}", f"present_value_{layer}"],
            num_heads=c.num_heads,
            kv_num_heads=c.num_kv_heads,
        )[0]
        return g.linear(g.reshape(y, [-1, c.num_heads * c.head_dim]), f"{key}.o_proj")

    def fp8_scale(self, key: str) -> dict[str, float]:
        """Of a cache in FP8, where ModelOpt's calibration has found one: `key` is "...k_proj.k" or "...v_proj.v"."""
        name = f"{self.g.prefix}{key}_scale"
        if name not in self.g.checkpoint:
            return {}
        scale = float(read_scalar(self.g.checkpoint, name))
        if not 0 < scale < float("inf"):
            raise CheckpointError(f"{self.g.checkpoint.directory}: {name} is {scale}; quantise again")
        return {"fp8_scale": scale}

    def mlp(self, x: str, layer: int) -> str:
        g, c, key = self.g, self.c, f"layers.{layer}.mlp"
        up = (c.moe_intermediate_size, c.hidden_size)
        experts = [
            g.stack(
                f"{key}.experts.{name}_proj",
                [f"{key}.experts.{e}.{name}_proj.weight" for e in range(c.num_experts)],
                up if name != "down" else up[::-1],
            )
            for name in ("gate", "up", "down")
        ]
        router_logits = g.cast(g.linear(x, f"{key}.gate"), np.float32)
        if self.quantized_experts:  # one input scale for all experts of a layer, as ModelOpt exports them
            scales = [
                read_scalar(g.checkpoint, f"{g.prefix}{key}.experts.0.{name}_proj.input_scale") for name in ("gate", "down")
            ]
            experts += [g.const(float(scale), np.float32) for scale in scales]
        y = g.op("MoE", x, router_logits, *experts, domain=DOMAIN, top_k=c.top_k, normalize=int(c.normalize_top_k))
        if c.shared_intermediate_size:
            gate = g.op("Sigmoid", g.linear(x, f"{key}.shared_expert_gate"))
            y = g.op("Add", y, g.op("Mul", gate, g.swiglu(x, f"{key}.shared_expert")))
        return y

    def layer(self, x: str, layer: int, cos: str, sin: str, mask: str) -> str:
        g, key, eps = self.g, f"layers.{layer}", self.c.rms_norm_eps
        x = g.op("Add", x, self.attention(g.rms_norm(x, f"{key}.input_layernorm", eps), layer, cos, sin, mask))
        return g.op("Add", x, self.mlp(g.rms_norm(x, f"{key}.post_attention_layernorm", eps), layer))


def export_thinker(checkpoint: Checkpoint, directory: Path, dtype: np.dtype, quantize_activations: bool = False) -> None:
    """`thinker/llm`: the Thinker's graph and config.json."""
    thinker = checkpoint.config["thinker_config"]
    c = DecoderConfig.from_json(thinker["text_config"], "thinker_config.text_config")
    accept = checkpoint.config["talker_config"]["accept_hidden_layer"]
    if not 1 <= accept < c.num_layers:
        raise CheckpointError(f"config.json: talker_config.accept_hidden_layer = {accept} is outside 1..{c.num_layers - 1}")
    n_deepstack = len(thinker["vision_config"]["deepstack_visual_indexes"])
    g = GraphBuilder(directory, checkpoint, "thinker.model.", dtype, quantize_activations)
    x = g.input("inputs_embeds", ["S", c.hidden_size])
    position_ids = g.input("position_ids", [3, "S"], np.float32)
    deepstack = g.input("deepstack", [n_deepstack, "S", c.hidden_size])
    g.input("past_length", [1], np.int64)
    decoder = Decoder(g, c)
    (cos, sin), mask = decoder.rope(position_ids), decoder.mask(x)
    for i in range(c.num_layers):
        x = decoder.layer(x, i, cos, sin, mask)
        if i + 1 == accept:
            g.output("accept_hidden", g.cast(x, np.float32), ["S", c.hidden_size], np.float32)
        if i < n_deepstack:
            x = g.op("Add", x, g.op("Gather", deepstack, g.const(i), axis=0))
    _head(g, c, x, "thinker.lm_head")
    ids = {k: v for k, v in {**checkpoint.config, **thinker}.items() if k.endswith("_token_id")}
    g.save(
        {
            "engine": "thinker",
            "position": {"input": "past_length", "counts": "inputs_embeds", "axis": 0},
            "model": {
                "vocab_size": c.vocab_size,
                "hidden_size": c.hidden_size,
                "num_deepstack": n_deepstack,
                "position_id_per_seconds": thinker["position_id_per_seconds"],
                "spatial_merge_size": thinker["vision_config"]["spatial_merge_size"],
                "n_window": thinker["audio_config"]["n_window"],
                **ids,
            },
            "decoder": {**asdict(c), "accept_hidden_layer": accept},
        }
    )


def export_talker(checkpoint: Checkpoint, directory: Path, dtype: np.dtype, quantize_activations: bool = False) -> None:
    """`talker/llm`: the Talker's graph and config.json."""
    talker = checkpoint.config["talker_config"]
    c = DecoderConfig.from_json(talker["text_config"], "talker_config.text_config")
    g = GraphBuilder(directory, checkpoint, "talker.model.", dtype, quantize_activations)
    x = g.input("inputs_embeds", ["S", c.hidden_size])
    position_ids = g.input("position_ids", [3, "S"], np.float32)
    g.input("past_length", [1], np.int64)
    decoder = Decoder(g, c)
    (cos, sin), mask = decoder.rope(position_ids), decoder.mask(x)
    for i in range(c.num_layers):
        x = decoder.layer(x, i, cos, sin, mask)
    last_hidden = _head(g, c, x, "talker.codec_head")
    g.output("last_hidden", g.cast(last_hidden, np.float32), [1, c.hidden_size], np.float32)
    codec_ids = {k: v for k, v in talker.items() if k.startswith("codec_") and k.endswith("_id")}
    g.save(
        {
            "engine": "talker",
            "position": {"input": "past_length", "counts": "inputs_embeds", "axis": 0},
            "model": {
                "vocab_size": c.vocab_size,
                "hidden_size": c.hidden_size,
                "thinker_hidden_size": talker["thinker_hidden_size"],
                "position_id_per_seconds": talker["position_id_per_seconds"],
                "num_code_groups": talker["num_code_groups"],
                "speaker_id": talker["speaker_id"],
                **codec_ids,
            },
            "decoder": asdict(c),
        }
    )


def _head(g: GraphBuilder, c: DecoderConfig, x: str, head: str) -> str:
    """Final norm and vocabulary logits of the last row only; returns the normed row [1, H]."""
    last = g.rms_norm(g.op("Slice", x, g.const([-1]), g.const([2**31]), g.const([0])), "norm", c.rms_norm_eps)
    g.prefix = ""  # the head is stored beside the model, not in it: its key is the whole name
    key, shape = f"{head}.weight", (c.vocab_size, c.hidden_size)
    weight = g.nvfp4(head, [key], shape) if g.is_nvfp4(key) else g.tensor(head, g.checkpoint.read(key, shape).astype(g.dtype))
    logits = g.op("Gemm", g.activation(last, key), weight, transB=1)
    g.output("logits", g.cast(logits, np.float32), [1, c.vocab_size], np.float32)
    return last
