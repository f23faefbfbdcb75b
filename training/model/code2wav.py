"""Code2Wav: codec codes to waveform, causal. Names as in transformers; convolutions are [B, channels, time]."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.decoder import Attention, RMSNorm, SwiGLU, look_up, rope


class CausalConv(nn.Module):
    """Qwen3OmniMoeCausalConvNet"""

    def __init__(self, i: int, o: int, k: int, dilation: int = 1, groups: int = 1):
        super().__init__()
        self.conv, self.pad = nn.Conv1d(i, o, k, dilation=dilation, groups=groups), (k - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (self.pad, 0)))


class CausalTransConv(nn.Module):
    """Qwen3OmniMoeCausalTransConvNet: cut at both ends, so it looks k - stride samples ahead"""

    def __init__(self, i: int, o: int, k: int, stride: int):
        super().__init__()
        self.conv, self.cut = nn.ConvTranspose1d(i, o, k, stride), k - stride

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x[..., self.cut : x.shape[-1] - self.cut] if self.cut else x


class ConvNeXt(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dwconv, self.norm = CausalConv(dim, dim, 7, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).transpose(1, 2))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))).transpose(1, 2)


class Snake(nn.Module):
    """x + sin^2(a x) / b, a and b of each channel (SnakeBeta, BigVGAN)"""

    def __init__(self, dim: int):
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        return x + torch.sin(x * a).square() / (b + 1e-9)


class ResidualUnit(nn.Module):
    """Qwen3OmniMoeCode2WavDecoderResidualUnit"""

    def __init__(self, dim: int, dilation: int):
        super().__init__()
        self.act1, self.conv1 = Snake(dim), CausalConv(dim, dim, 7, dilation)
        self.act2, self.conv2 = Snake(dim), CausalConv(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act2(self.conv1(self.act1(x))))


class DecoderBlock(nn.Module):
    """`rate` times as many samples of half as many channels"""

    def __init__(self, dim: int, rate: int):
        super().__init__()
        self.block = nn.ModuleList(
            [Snake(dim), CausalTransConv(dim, dim // 2, 2 * rate, rate)] + [ResidualUnit(dim // 2, d) for d in (1, 3, 9)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for part in self.block:
            x = part(x)
        return x


class Scale(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), 0.1))


class WavLayer(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        h = c["hidden_size"]
        self.self_attn, self.mlp = Attention(c, qk_norm=False), SwiGLU(h, c["intermediate_size"])
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(h, c["rms_norm_eps"]), RMSNorm(h, c["rms_norm_eps"])
        self.self_attn_layer_scale, self.mlp_layer_scale = Scale(h), Scale(h)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn_layer_scale.scale * self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp_layer_scale.scale * self.mlp(self.post_attention_layernorm(x))


class WavTransformer(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.layers = nn.ModuleList(WavLayer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class Code2Wav(nn.Module):
    """codes [B, 16, T] -> [B, 1920 T - 555]; T at most the sliding window of 72 in training"""

    def __init__(self, c: dict):
        super().__init__()
        h, d = c["hidden_size"], c["decoder_dim"]
        self.c, self.pre_transformer = c, WavTransformer(c)
        self.code_embedding = nn.Embedding(c["codebook_size"] * c["num_quantizers"], h)
        self.register_buffer("offset", torch.arange(c["num_quantizers"])[None, :, None] * c["codebook_size"], persistent=False)
        self.upsample = nn.ModuleList(nn.ModuleList([CausalTransConv(h, h, r, r), ConvNeXt(h)]) for r in c["upsampling_ratios"])
        self.decoder = nn.ModuleList(
            [CausalConv(h, d, 7)]
            + [DecoderBlock(d >> i, r) for i, r in enumerate(c["upsample_rates"])]
            + [Snake(d >> len(c["upsample_rates"])), CausalConv(d >> len(c["upsample_rates"]), 1, 7)]
        )

    def forward(self, codes: Tensor, clamp: bool = True) -> Tensor:
        x = look_up(self.code_embedding, codes + self.offset).mean(1)
        dim = self.c["hidden_size"] // self.c["num_attention_heads"]
        cos, sin = rope(torch.arange(x.shape[1], device=x.device)[None], dim, self.c["rope_parameters"]["rope_theta"])
        for layer in self.pre_transformer.layers:
            x = layer(x, cos, sin)
        x = self.pre_transformer.norm(x).transpose(1, 2)
        for conv, block in self.upsample:
            x = block(conv(x))
        for part in self.decoder:
            x = part(x)
        x = x.squeeze(1).float()
        return x.clamp(-1, 1) if clamp else x
