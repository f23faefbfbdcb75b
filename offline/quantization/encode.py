"""`nvfp4.encode` in torch, bit for bit, for whole stacks of matrices on a GPU; and one matrix in FP8."""

import torch

from .nvfp4 import BLOCK

E2M1_MAX, E4M3_MAX, E4M3_MIN = 6.0, 448.0, 2.0**-9
AT_ONCE = 1 << 26  # values that are in memory as float32 together


def nvfp4(weights: torch.Tensor, scale_2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weights [n, O, K], scale_2 float32 [n] -> codes uint8 [n, O, K/2], block scales float8_e4m3fn [n, O, K/16]."""
    step = max(1, AT_ONCE // weights[0].numel())
    parts = [_nvfp4(weights[i : i + step], scale_2[i : i + step]) for i in range(0, len(weights), step)]
    codes, scales = zip(*parts)
    return torch.cat(codes), torch.cat([s.view(torch.uint8) for s in scales]).view(torch.float8_e4m3fn)


def _nvfp4(weights: torch.Tensor, scale_2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale_2 = scale_2[:, None, None]
    blocks = weights.float().unflatten(-1, (-1, BLOCK))
    exact = blocks.abs().amax(-1) / (E2M1_MAX * scale_2)
    scale = torch.where(exact == 0, 1.0, exact).clamp(E4M3_MIN, E4M3_MAX).to(torch.float8_e4m3fn)
    scaled = blocks / (scale.float() * scale_2)[..., None]
    size = scaled.abs()
    codes = torch.zeros_like(size, dtype=torch.uint8)
    for i, middle in enumerate((0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)):  # between neighbours; a tie goes to the even code
        codes += size >= middle if i % 2 else size > middle
    codes |= (scaled < 0).to(torch.uint8) << 3
    codes = codes.flatten(-2)
    return codes[..., 0::2] | codes[..., 1::2] << 4, scale


def fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [O, K] -> float8_e4m3fn [O, K] and one float32 scale, as ModelOpt's FP8 has them: the largest becomes 448."""
    weight = weight.float()
    scale = weight.abs().amax() / E4M3_MAX
    scale = torch.where(scale == 0, 1.0, scale)
    return (weight / scale).to(torch.float8_e4m3fn), scale
