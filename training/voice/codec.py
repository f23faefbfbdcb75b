"""The voice's codec: residual k-means (RVQ) over the principal components of a frame's features, 16 codebooks."""

import torch
from torch import Tensor

from training.voice.features import FRAME, CodecFeatures

BOOKS, COMPONENTS = 16, 96


def kmeans(x: Tensor, k: int, generator: torch.Generator, rounds: int = 30) -> Tensor:
    """x [N, d] -> centres [k, d]; one that no point is near starts anew at a random point."""
    centres = x[torch.randint(len(x), (k,), device=x.device, generator=generator)]
    for _ in range(rounds):
        near = torch.cdist(x, centres).argmin(1)
        total = torch.zeros_like(centres).index_add_(0, near, x)
        count = torch.zeros(k, device=x.device).index_add_(0, near, torch.ones(len(x), device=x.device))
        anew = x[torch.randint(len(x), (k,), device=x.device, generator=generator)]
        centres = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], anew)
    return centres


class Codec:
    """state: mean [D], basis [D, d], books [BOOKS, k, d]."""

    def __init__(self, state: dict[str, Tensor]):
        self.mean, self.basis, self.books = state["mean"], state["basis"], state["books"]

    @staticmethod
    def fit(x: Tensor, k: int, seed: int = 0) -> "Codec":
        """x float32 [frames, D], codebooks of k"""
        generator = torch.Generator(x.device).manual_seed(seed)
        mean = x.mean(0)
        values, vectors = torch.linalg.eigh((x - mean).t() @ (x - mean) / len(x))
        basis = vectors[:, -COMPONENTS:].clone()
        rest, books = (x - mean) @ basis, []
        power = rest.square().sum(1).mean()
        for i in range(BOOKS):
            books.append(kmeans(rest, k, generator))
            rest = rest - books[-1][torch.cdist(rest, books[-1]).argmin(1)]
            if i in (0, 1, 3, 7, BOOKS - 1):
                print(f"codec: {i + 1} books {10 * torch.log10(power / rest.square().sum(1).mean()):.1f} dB", flush=True)
        print(f"codec: {len(x)} frames, {COMPONENTS} components hold {values[-COMPONENTS:].sum() / values.sum():.4f}", flush=True)
        return Codec({"mean": mean, "basis": basis, "books": torch.stack(books)})

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean.cpu(), "basis": self.basis.cpu(), "books": self.books.cpu()}

    def encode(self, x: Tensor) -> Tensor:
        """[frames, D] -> int64 [frames, 16]"""
        rest, codes = (x - self.mean) @ self.basis, []
        for centres in self.books:
            codes.append(torch.cdist(rest, centres).argmin(1))
            rest = rest - centres[codes[-1]]
        return torch.stack(codes, 1)


def features_of(pcm: Tensor, frames: list[int]) -> Tensor:
    """Clips one after the other, float32 [all frames * 1920], each of so many frames -> [all frames, 656].

    Each is heard alone, silence around it: so its codes are the same wherever it is said."""
    features = CodecFeatures(pcm.device)
    return torch.cat([features(clip[None])[0] for clip in pcm.split([n * FRAME for n in frames])])
