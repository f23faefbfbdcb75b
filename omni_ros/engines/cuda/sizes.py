"""Sizes of a decoder that the kernels can take: asked when an engine is built, and again when it is opened."""

from pathlib import Path

from omni_ros.engines.agreement import FP8
from omni_ros.engines.config import DecoderConfig, EngineConfig
from omni_ros.errors import EngineError


def decoder_sizes(directory: Path, config: EngineConfig) -> DecoderConfig:
    """Raises EngineError unless the kernels can divide by them; that the weights have them is checked as they are used."""
    path, c = directory / "config.json", config.decoder
    if c is None:
        raise EngineError(f"{path}: lacks decoder; build the engine again")
    for wrong, what in (
        (not all((c.vocab_size, c.hidden_size, c.num_layers, c.num_heads, c.num_kv_heads)), "a size of 0"),
        (c.top_k > c.num_experts, f"top_k {c.top_k} of {c.num_experts} experts"),
        (len(c.mrope_section) != 3 or sum(c.mrope_section) > c.head_dim // 2, f"mrope_section {c.mrope_section}"),
        (c.accept_hidden_layer > c.num_layers, f"accept_hidden_layer {c.accept_hidden_layer} of {c.num_layers}"),
    ):
        if wrong:
            raise EngineError(f"{path}: decoder has {what}; build the engine again")
    if problem := beyond_kernels(c):
        raise EngineError(f"{path}: decoder has {problem}; build the engine again")
    return c


def cache_form(directory: Path, config: EngineConfig, layers: int) -> tuple[bool, list[tuple[float, float]]]:
    """Whether the KV cache is kept in FP8, and each layer's scales of keys and values. Raises EngineError for half a cache."""
    path, states = directory / "config.json", {s.input: s for s in config.state}
    missing = [n for i in range(layers) for n in (f"past_key_{i}", f"past_value_{i}") if n not in states]
    if missing:
        raise EngineError(f"{path}: lacks state {missing[0]}; build the engine again")
    pairs = [(states[f"past_key_{i}"], states[f"past_value_{i}"]) for i in range(layers)]
    fp8 = {s.dtype == FP8 for pair in pairs for s in pair}
    if len(fp8) > 1:
        raise EngineError(f"{path}: keeps some keys and values in {FP8} and some not; build the engine again")
    return fp8.pop(), [(k.fp8_scale, v.fp8_scale) if k.dtype == FP8 else (1.0, 1.0) for k, v in pairs]


def beyond_kernels(c: DecoderConfig) -> str | None:
    """What of a model the kernels cannot take, and what they can; None: they can take it."""
    if c.head_dim % 32 or not 32 <= c.head_dim <= 256:  # each lane of a warp gets the same number of a head's channels
        return f"head_dim {c.head_dim}; GPU kernels take a multiple of 32 up to 256"
    for name, value, largest in (
        ("rows of", max(c.hidden_size, c.num_heads * c.head_dim), 4096),
        ("experts", c.num_experts, 256),
        ("experts per token", c.top_k, 15),
        ("inner values per token", c.top_k * c.moe_intermediate_size + c.shared_intermediate_size, 9728),
        ("codes", c.vocab_size if c.num_code_groups else 0, 4096),
    ):
        if value > largest:
            return f"{name} {value}; GPU kernels take at most {largest}"
    group, rest = divmod(c.num_heads, c.num_kv_heads)
    if rest:
        return f"num_heads {c.num_heads} for {c.num_kv_heads} key heads; GPU kernels take a multiple"
    if c.head_dim // 8 % group:  # attention gives each thread the same share of a tile
        return f"{group} query heads share a key head of {c.head_dim} channels; GPU kernels take a divisor of {c.head_dim // 8}"
    return None
