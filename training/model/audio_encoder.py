"""The audio encoder: three convolutions over a second of mel features, then attention over the clip. Names as in transformers'
Qwen3OmniMoeAudioEncoder."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EncoderAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, s, w = x.shape
        q, k, v = (p(x).view(b, s, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, s, w))


class AudioLayer(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.self_attn = EncoderAttention(c["d_model"], c["encoder_attention_heads"])
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(c["d_model"]), nn.LayerNorm(c["d_model"])
        self.fc1, self.fc2 = nn.Linear(c["d_model"], c["encoder_ffn_dim"]), nn.Linear(c["encoder_ffn_dim"], c["d_model"])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class AudioEncoder(nn.Module):
    """mel [N, 128, 100 * chunks] -> [N, 13 * chunks, H]; `valid` [N, 13 * chunks] marks real rows. A clip must be shorter
    than 8 s (one attention window) and at least 1 s (chunks are padded to 100 frames here)."""

    def __init__(self, c: dict):
        super().__init__()
        ch, d = c["downsample_hidden_size"], c["d_model"]
        self.conv2d1, self.conv2d2, self.conv2d3 = (nn.Conv2d(i, ch, 3, 2, padding=1) for i in (1, ch, ch))
        self.conv_out = nn.Linear(ch * 16, d, bias=False)
        self.layers = nn.ModuleList(AudioLayer(c) for _ in range(c["encoder_layers"]))
        self.ln_post, self.proj1, self.proj2 = nn.LayerNorm(d), nn.Linear(d, d), nn.Linear(d, c["output_dim"])
        increment = math.log(10000) / (d // 2 - 1)
        time = torch.arange(13)[:, None] * torch.exp(-increment * torch.arange(d // 2).float())
        self.register_buffer("positions", torch.cat([time.sin(), time.cos()], 1), persistent=False)

    def forward(self, mel: Tensor, valid: Tensor) -> Tensor:
        n, _, t = mel.shape
        x = mel.unflatten(2, (t // 100, 100)).transpose(1, 2).reshape(n * (t // 100), 1, 128, 100)
        for conv in (self.conv2d1, self.conv2d2, self.conv2d3):
            x = F.gelu(conv(x))
        x = self.conv_out(x.permute(0, 3, 1, 2).flatten(2)) + self.positions
        x = x.reshape(n, -1, x.shape[-1])
        mask = valid[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return self.proj2(F.gelu(self.proj1(self.ln_post(x))))
