"""The visual encoder over pictures of one size. Names as in transformers' Qwen3OmniMoeVisionEncoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.decoder import look_up, rotate


class VisionAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, s, w = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, w))


class VisionMLP(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.linear_fc1, self.linear_fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class VisionBlock(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(c["hidden_size"], eps=1e-6), nn.LayerNorm(c["hidden_size"], eps=1e-6)
        self.attn, self.mlp = (
            VisionAttention(c["hidden_size"], c["num_heads"]),
            VisionMLP(c["hidden_size"], c["intermediate_size"]),
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    def __init__(self, c: dict, after: bool):
        super().__init__()
        merged = 4 * c["hidden_size"]
        self.merged, self.after = merged, after
        self.ln_q = nn.LayerNorm(merged if after else c["hidden_size"], eps=1e-6)
        self.mlp = nn.ModuleList([nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, c["out_hidden_size"])])

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = self.ln_q(x.reshape(b, -1, self.merged)) if self.after else self.ln_q(x).reshape(b, -1, self.merged)
        return self.mlp[2](self.mlp[1](self.mlp[0](x)))


class PatchEmbed(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        kernel = (c["temporal_patch_size"], c["patch_size"], c["patch_size"])
        self.proj = nn.Conv3d(c["in_channels"], c["hidden_size"], kernel, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class VisionEncoder(nn.Module):
    """patches [B, h * w, 1536] of pictures of one size, in merge-block order -> rows [B, h * w / 4, H], deepstack rows"""

    def __init__(self, c: dict, h: int, w: int):
        super().__init__()
        self.deep = c["deepstack_visual_indexes"]
        self.patch_embed, self.pos_embed = PatchEmbed(c), nn.Embedding(c["num_position_embeddings"], c["hidden_size"])
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c["depth"]))
        self.merger, self.merger_list = Merger(c, False), nn.ModuleList(Merger(c, True) for _ in self.deep)
        side = int(c["num_position_embeddings"] ** 0.5)
        order = block_order(h, w)
        row, col = order // w, order % w
        self.register_buffer("taps", torch.zeros(4, h * w, dtype=torch.long), persistent=False)
        self.register_buffer("tap_weights", torch.zeros(4, h * w), persistent=False)
        y, x = row * (side - 1) / (h - 1), col * (side - 1) / (w - 1)  # bilinear, corners aligned
        y0, x0 = y.floor().long().clamp(max=side - 1), x.floor().long().clamp(max=side - 1)
        y1, x1 = (y0 + 1).clamp(max=side - 1), (x0 + 1).clamp(max=side - 1)
        fy, fx = y - y0, x - x0
        for i, (ys, xs, weight) in enumerate(
            ((y0, x0, (1 - fy) * (1 - fx)), (y0, x1, (1 - fy) * fx), (y1, x0, fy * (1 - fx)), (y1, x1, fy * fx))
        ):
            self.taps[i], self.tap_weights[i] = ys * side + xs, weight
        dim = c["hidden_size"] // c["num_heads"]
        inv = 1.0 / 10000 ** (torch.arange(0, dim // 2, 2).float() / (dim // 2))
        freqs = torch.cat([row[:, None] * inv, col[:, None] * inv], -1)
        freqs = torch.cat([freqs, freqs], -1)[None, None]
        self.register_buffer("cos", freqs.cos(), persistent=False)
        self.register_buffer("sin", freqs.sin(), persistent=False)

    def forward(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.patch_embed(patches) + (look_up(self.pos_embed, self.taps) * self.tap_weights[..., None]).sum(0)
        deepstack = []
        for i, block in enumerate(self.blocks):
            x = block(x, self.cos, self.sin)
            if i in self.deep:
                deepstack.append(self.merger_list[self.deep.index(i)](x))
        return self.merger(x), deepstack


def block_order(h: int, w: int) -> Tensor:
    """Raster index of each patch in merge-block order."""
    return torch.arange(h * w).view(h // 2, 2, w // 2, 2).permute(0, 2, 1, 3).flatten()
