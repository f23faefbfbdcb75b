"""Code2Wav's critics during training: discriminators of periods (HiFi-GAN, Kong et al. 2020) and of spectra (EnCodec, Défossez
et al. 2022), narrow, and the spectral distance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from training.ear import mel_filters

Judgement = tuple[Tensor, list[Tensor]]  # scores, feature maps


class PeriodJudge(nn.Module):
    """Sees samples one period apart beside each other."""

    def __init__(self, period: int, width: int = 16):
        super().__init__()
        self.period = period
        sizes = [1, width, 2 * width, 4 * width, 4 * width]
        self.convs = nn.ModuleList(weight_norm(nn.Conv2d(i, o, (5, 1), (3, 1), (2, 0))) for i, o in zip(sizes, sizes[1:]))
        self.last = weight_norm(nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor) -> Judgement:
        n = x.shape[1] // self.period * self.period
        x, maps = x[:, None, :n].unflatten(2, (-1, self.period)), []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        return self.last(x), maps


class SpectrumJudge(nn.Module):
    """Sees the complex spectrum."""

    def __init__(self, n_fft: int, width: int = 16):
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        shapes = ((2, width, (3, 7), (1, 2), (1, 3)), (width, width, (3, 7), (2, 2), (1, 3)),
                  (width, 2 * width, (3, 7), (2, 2), (1, 3)), (2 * width, 2 * width, 3, 1, 1))  # fmt: skip
        self.convs = nn.ModuleList(weight_norm(nn.Conv2d(*s)) for s in shapes)
        self.last = weight_norm(nn.Conv2d(2 * width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Judgement:
        with torch.autocast(x.device.type, enabled=False):
            s = torch.stft(x.float(), self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
            x, maps = torch.stack([s.real, s.imag], 1).transpose(2, 3) * (16 / self.n_fft**0.5), []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        return self.last(x), maps


class Judges(nn.Module):
    """x [B, n] -> the judgement of each"""

    def __init__(self):
        super().__init__()
        self.all = nn.ModuleList([PeriodJudge(p) for p in (2, 3, 5, 7, 11)] + [SpectrumJudge(n) for n in (1024, 256)])

    def forward(self, x: Tensor) -> list[Judgement]:
        return [judge(x) for judge in self.all]


class SpectralDistance(nn.Module):
    """Log-mel, log-magnitude and magnitude L1 of x and y [B, n] at five FFT sizes."""

    SIZES = (2048, 1024, 512, 256, 128)

    def __init__(self):
        super().__init__()
        for n in self.SIZES:
            self.register_buffer(f"window_{n}", torch.hann_window(n), persistent=False)
            self.register_buffer(f"mel_{n}", mel_filters(min(80, n // 8), n, 24000, 12000.0), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = 0.0
        for n in self.SIZES:
            window, mel = getattr(self, f"window_{n}"), getattr(self, f"mel_{n}")
            a, b = (torch.stft(v.float(), n, n // 4, window=window, return_complex=True).abs().transpose(1, 2) for v in (x, y))
            total = total + (torch.log((a @ mel).clamp(min=1e-4)) - torch.log((b @ mel).clamp(min=1e-4))).abs().mean()
            total = total + 0.5 * (torch.log(a.clamp(min=1e-3)) - torch.log(b.clamp(min=1e-3))).abs().mean()
            total = total + 0.5 * (a - b).abs().mean() / (b.mean() + 1e-4)
        return total / len(self.SIZES)


def sound_in_silence(x: Tensor, y: Tensor) -> Tensor:
    """Mean magnitude of x where y is exactly silent: hum and clicks in pauses, which a spectral distance hardly sees."""
    silent = (y == 0).float()
    return (x.abs() * silent).sum() / (silent.sum() + 1)
