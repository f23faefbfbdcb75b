"""Pictures of scenes drawn in batches on the GPU, as the training sees them: never twice the same."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training import domain, scenes
from training.model.visual_encoder import block_order

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Painter:
    def __init__(self, device: torch.device, height: int = 128, width: int = 160):
        self.h, self.w, self.device = height, width, device
        self.rgb = torch.tensor([scenes.RGB[c] for c in domain.COLOURS], device=device).float() / 255
        self.y, self.x = torch.meshgrid(
            torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
        )
        self.order = block_order(height // 16, width // 16).to(device)
        self.mean, self.std = torch.tensor(MEAN, device=device)[:, None, None], torch.tensor(STD, device=device)[:, None, None]

    def __call__(self, figures: Tensor, crowds: Tensor) -> tuple[Tensor, Tensor]:
        """figures [B, 9, 7] as scenes.describe makes them, crowds int64 [K]: pictures that may have more than three (some may be
        named twice) -> patches [B, 80, 1536], pictures [B, 3, H, W] in 0..1"""
        b, dev = len(figures), self.device
        r = lambda *s: torch.rand(*s, device=dev)  # noqa: E731
        grey = 0.3 + 0.42 * r(b, 1, 1, 1)
        picture = grey + 0.10 * (r(b, 3, 1, 1) - 0.5)
        u, v = self.x / self.w - 0.5, self.y / self.h - 0.5
        picture = picture + (0.3 * (r(b, 1, 1, 1) - 0.5)) * u + (0.3 * (r(b, 1, 1, 1) - 0.5)) * v
        blobs = F.interpolate(torch.randn(b, 1, 5, 6, device=dev), (self.h, self.w), mode="bilinear")
        picture = (picture + 0.05 * r(b, 1, 1, 1) * blobs).expand(b, 3, self.h, self.w)
        for i in range(3):
            picture = self.add(picture, figures[:, i])
        if len(crowds):
            some = picture[crowds]
            for i in range(3, 9):
                some = self.add(some, figures[crowds, i])
            picture = picture.index_copy(0, crowds, some)
        soft = F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, 1)
        picture = torch.lerp(picture, soft, r(b, 1, 1, 1))
        cast = (1 + 0.14 * (r(b, 3, 1, 1) - 0.5)) * (0.85 + 0.3 * r(b, 1, 1, 1))
        picture = (picture * cast + 0.06 * r(b, 1, 1, 1) * torch.randn(b, 3, self.h, self.w, device=dev)).clamp(0, 1)
        picture = picture ** (0.85 + 0.35 * r(b, 1, 1, 1))
        p = (picture - self.mean) / self.std
        p = p.view(b, 3, self.h // 16, 16, self.w // 16, 16).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 3, 256)
        return p[:, self.order][:, :, :, None].expand(-1, -1, -1, 2, -1).reshape(b, -1, 1536), picture

    def add(self, picture: Tensor, figure: Tensor) -> Tensor:
        """One figure [B, 7] on each picture."""
        b, dev = len(figure), self.device
        r = lambda *s: torch.rand(*s, device=dev)  # noqa: E731
        used, colour, shape, cx, cy, radius, turn = figure.t()[:, :, None, None]
        dx, dy = self.x - cx * self.w, self.y - cy * self.h
        angle = torch.atan2(dx, -dy) - turn  # 0 is up
        dist = (dx * dx + dy * dy + 1e-6).sqrt()

        def regular(n, first):
            t = torch.remainder(angle - first, 2 * math.pi / n) - math.pi / n
            return math.cos(math.pi / n) / torch.cos(t)

        inner, alpha = 0.45, math.pi / 5
        t = (torch.remainder(angle + math.pi / 5, 2 * math.pi / 5) - math.pi / 5).abs()
        star = inner * math.sin(alpha) / (inner * math.sin(alpha) * torch.cos(t) + (1 - inner * math.cos(alpha)) * torch.sin(t))
        edge = torch.where(shape == 2, regular(3, 0.0) * 1.15, star * 1.15)
        edge = torch.where(shape == 0, 0.9, torch.where(shape == 1, regular(4, math.pi / 4) * 1.1, edge)) * radius * self.w
        cover = ((edge - dist) * 0.9 + 0.5).clamp(0, 1)[:, None] * used[:, None]
        paint = self.rgb[colour[:, 0, 0].long()] + 0.12 * (r(b, 3) - 0.5)
        v = self.y / self.h - 0.5
        paint = (paint * (0.85 + 0.25 * r(b, 1)))[:, :, None, None] * (1 + 0.2 * (r(b, 1, 1, 1) - 0.5) * v)
        return picture * (1 - cover) + paint * cover
