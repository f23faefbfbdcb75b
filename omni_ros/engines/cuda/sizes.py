"""Sizes of a decoder that the kernels can take; offline/cuda/weights.py says the same when an engine is built."""

from pathlib import Path

from omni_ros.engines.config import DecoderConfig, EngineConfig
from omni_ros.errors import EngineError


def decoder_sizes(directory: Path, config: EngineConfig) -> DecoderConfig:
    """Raises EngineError unless the kernels can divide by them; that the weights have them is checked as they are used."""
    path, c = directory / "config.json", config.decoder
    if c is None:
        raise EngineError(f"{path}: lacks decoder; build the engine again")
    for wrong, what in (
        (not all((c.vocab_size, c.hidden_size, c.num_layers, c.num_heads, c.num_kv_heads)), "a size of 0"),
        (c.head_dim % 32 or not 32 <= c.head_dim <= 256, f"head_dim {c.head_dim}"),
        (c.num_kv_heads and c.num_heads % c.num_kv_heads, f"num_heads {c.num_heads} for {c.num_kv_heads} key heads"),
        (c.top_k > min(c.num_experts, 15), f"top_k {c.top_k} of {c.num_experts} experts"),
        (len(c.mrope_section) != 3 or sum(c.mrope_section) > c.head_dim // 2, f"mrope_section {c.mrope_section}"),
        (c.accept_hidden_layer > c.num_layers, f"accept_hidden_layer {c.accept_hidden_layer} of {c.num_layers}"),
    ):
        if wrong:
            raise EngineError(f"{path}: decoder has {what}; build the engine again")
    return c
