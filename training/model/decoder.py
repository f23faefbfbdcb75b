"""The decoder layers of Thinker, Talker, CodePredictor and Code2Wav as plain, batched PyTorch.

Parameter names equal those of transformers' Qwen3OmniMoe classes (experts fused), so that a trained state dict loads there;
test/test_training.py holds both against each other. Sequences are padded at their end: causal attention needs no mask then.
Every shape is fixed, so that a whole training step can be one CUDA graph. A config is the section of config.json, a dict.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def look_up(embedding: nn.Embedding, index: Tensor) -> Tensor:
    """The same as embedding(index); its gradient needs no sort, which a CUDA graph could not hold."""
    return embedding.weight.index_select(0, index.flatten()).view(*index.shape, -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, heads, S, D]; cos, sin [B or 1, 1, S, D]"""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def rope(positions: Tensor, dim: int, theta: float, section: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """positions [3, B, S] (mRoPE, interleaved) or [B, S] -> cos, sin [B, 1, S, dim]"""
    inv = 1.0 / theta ** (torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    freqs = positions[..., None].float() * inv
    if section is not None:
        index = torch.arange(dim // 2, device=positions.device)
        high = torch.where((index % 3 == 2) & (index < 3 * section[2]), freqs[2], freqs[0])
        freqs = torch.where((index % 3 == 1) & (index < 3 * section[1]), freqs[1], high)
    freqs = torch.cat((freqs, freqs), -1)[:, None]
    return freqs.cos(), freqs.sin()


class Attention(nn.Module):
    """Causal, grouped queries; `qk_norm` everywhere but in Code2Wav."""

    def __init__(self, c: dict, qk_norm: bool = True):
        super().__init__()
        self.dim = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
        heads, kv, hidden = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"]
        self.groups, self.qk_norm = heads // kv, qk_norm
        self.q_proj, self.o_proj = (nn.Linear(*io, bias=False) for io in ((hidden, heads * self.dim), (heads * self.dim, hidden)))
        self.k_proj, self.v_proj = (nn.Linear(hidden, kv * self.dim, bias=False) for _ in range(2))
        if qk_norm:
            self.q_norm, self.k_norm = RMSNorm(self.dim), RMSNorm(self.dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (p(x).view(b, s, -1, self.dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        v = v.transpose(1, 2)
        q, k = (rotate(t.transpose(1, 2), cos, sin).to(v.dtype) for t in (q, k))
        k, v = k.repeat_interleave(self.groups, 1), v.repeat_interleave(self.groups, 1)
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, -1))


class SwiGLU(nn.Module):
    def __init__(self, hidden: int, inner: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(hidden, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    def __init__(self, experts: int, hidden: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, hidden) * 0.02)


class Experts(nn.Module):
    def __init__(self, experts: int, hidden: int, inner: int):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * inner, hidden) / math.sqrt(hidden))
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, inner) / math.sqrt(inner))


class MoE(nn.Module):
    """Every expert computes every row and the router's weights, zero but for the top k, pick: simple, fast for few experts.

    `balance` is the load-balance loss of the last call, 1 when experts are used evenly.
    """

    def __init__(self, c: dict, shared: bool = False):
        super().__init__()
        self.n, self.k = c["num_experts"], c["num_experts_per_tok"]
        self.gate, self.experts = Router(self.n, c["hidden_size"]), Experts(self.n, c["hidden_size"], c["moe_intermediate_size"])
        if shared:
            self.shared_expert = SwiGLU(c["hidden_size"], c["shared_expert_intermediate_size"])
            self.shared_expert_gate = nn.Linear(c["hidden_size"], 1, bias=False)
        self.shared, self.balance = shared, None

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            p = F.softmax(x.float() @ self.gate.weight.t(), -1)
            top, index = p.topk(self.k, -1)
            chosen = torch.zeros_like(p).scatter(-1, index, top / top.sum(-1, keepdim=True))
        flat_p, flat_c = p.flatten(0, -2), (chosen > 0).float().flatten(0, -2)
        self.balance = self.n * (flat_p.mean(0) * flat_c.mean(0)).sum() / self.k
        inner = self.experts.down_proj.shape[-1]
        gate_up = F.linear(x, self.experts.gate_up_proj.flatten(0, 1)).unflatten(-1, (self.n, 2 * inner))
        h = F.silu(gate_up[..., :inner]) * gate_up[..., inner:] * chosen[..., None].to(gate_up.dtype)
        y = F.linear(h.flatten(-2), self.experts.down_proj.permute(1, 0, 2).flatten(1))
        if self.shared:
            y = y + torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)
        return y


class DecoderLayer(nn.Module):
    def __init__(self, c: dict, mlp: nn.Module):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), mlp
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(c["hidden_size"]), RMSNorm(c["hidden_size"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class MoEDecoder(nn.Module):
    """Body of Thinker and Talker."""

    def __init__(self, c: dict, shared: bool):
        super().__init__()
        self.c = c
        self.layers = nn.ModuleList(DecoderLayer(c, MoE(c, shared)) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"])

    def forward(self, x: Tensor, positions: Tensor, deepstack: list[Tensor] = (), accept: int | None = None):
        """x [B, S, H], positions [3, B, S], deepstack: [B, S, H] to add after each of the first layers -> [B, S, H];
        with `accept`, also the hidden states that the Talker sees: what layer `accept` reads"""
        rope_parameters = self.c["rope_parameters"]
        cos, sin = rope(positions, self.c["head_dim"], rope_parameters["rope_theta"], rope_parameters["mrope_section"])
        accepted = None
        for i, layer in enumerate(self.layers):
            if i == accept:
                accepted = x
            x = layer(x, cos, sin)
            if i < len(deepstack):
                x = x + deepstack[i]
        x = self.norm(x)
        return x if accept is None else (x, accepted)

    def balance(self) -> Tensor:
        """Load-balance loss of the last call; asked once, since what a tensor remembers would keep old gradients' nodes alive."""
        total = sum(layer.mlp.balance for layer in self.layers) / len(self.layers)
        for layer in self.layers:
            layer.mlp.balance = None
        return total
