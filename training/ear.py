"""What the Thinker hears: Whisper's log-mel, clips as a microphone hears them, and sounds that are no speech. On the GPU."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.layout import CLIP_SAMPLES


def mel_filters(bins: int, n_fft: int, rate: int, high: float) -> Tensor:
    """Slaney's filters float32 [n_fft // 2 + 1, bins], each of equal area."""

    def mel(hz):
        return np.where(hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1) / 1000) * 27 / np.log(6.4))

    def hertz(m):
        return np.where(m < 15, 200 / 3 * m, 1000 * np.exp(np.log(6.4) / 27 * (m - 15)))

    edges = hertz(np.linspace(0, mel(np.array(high)), bins + 2))
    f = np.linspace(0, rate / 2, n_fft // 2 + 1)[:, None]
    rising, falling = (f - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - f) / np.diff(edges)[1:]
    return torch.tensor(np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2])), dtype=torch.float32)


class Ear:
    """Whisper's log-mel of clips of one length, of which `frames` are real."""

    def __init__(self, device: torch.device):
        self.filters, self.window = mel_filters(128, 400, 16000, 8000.0).to(device), torch.hann_window(400, device=device)

    def __call__(self, pcm: Tensor, frames: Tensor, tilt: Tensor | None = None) -> Tensor:
        """pcm [N, samples], frames [N], tilt [N, 128, 1] (added to the log) -> [N, 128, samples // 160]"""
        power = (
            torch.stft(pcm, 400, 160, window=self.window, center=True, pad_mode="reflect", return_complex=True)[..., :-1].abs()
            ** 2
        )
        log = torch.log10((power.transpose(1, 2) @ self.filters).clamp(min=1e-10)).transpose(1, 2)
        if tilt is not None:
            log = log + tilt
        real = (torch.arange(log.shape[-1], device=log.device)[None] < frames[:, None])[:, None]
        top = torch.where(real, log, -100.0).amax((1, 2), keepdim=True)
        return torch.where(real, (torch.maximum(log, top - 8) + 4) / 4, 0.0)


def placed(bank: Tensor, lengths: Tensor, index: Tensor, start: Tensor, ratio: Tensor, backwards: Tensor) -> Tensor:
    """Clips of the bank, int16 [clips, samples], as float32 [N, CLIP_SAMPLES] from sample `start` on, `ratio` times as fast."""
    long = lengths[index][:, None]
    t = (torch.arange(CLIP_SAMPLES, device=bank.device)[None] - start[:, None]) * ratio[:, None]
    inside = (t >= 0) & (t < long - 1)
    t = torch.where(backwards[:, None], long - 2 - t, t).clamp(0, bank.shape[1] - 2)
    low = t.long()
    pcm = bank[index]
    x, y = pcm.gather(1, low).float(), pcm.gather(1, low + 1).float()
    return torch.where(inside, x + (y - x) * (t - low), 0.0) / 32768


def sounds(n: int, device: torch.device) -> Tensor:
    """float32 [n, CLIP_SAMPLES]: tones, sweeps, bursts of noise, knocks, and silence; no speech."""
    r = lambda *s: torch.rand(*s, device=device)  # noqa: E731
    t = torch.arange(CLIP_SAMPLES, device=device)[None] / 16000
    note = 2 ** (torch.randint(0, 36, (n, 40), device=device) / 12) * 110  # of 0.125 to 1 s each
    step = (t / (0.125 * 2 ** torch.randint(0, 4, (n, 1), device=device))).long().clamp(max=39)
    pitch = note.gather(1, step) * (1 + 0.3 * r(n, 1).round() * torch.sin(2 * np.pi * t * (0.3 + 3 * r(n, 1))))
    phase = 2 * np.pi * torch.cumsum(pitch, 1) / 16000
    tones = sum(torch.sin(k * phase) * r(n, 1) / k for k in (1, 2, 3, 5))
    noise = torch.randn(n, CLIP_SAMPLES, device=device)
    low = F.avg_pool1d(F.pad(noise, (8, 8), mode="reflect")[:, None], 17, 1)[:, 0] * 3
    bursts = (
        torch.where(r(n, 1) < 0.5, noise, low)
        * (torch.sin(2 * np.pi * (t * (0.3 + 6 * r(n, 1)) + r(n, 1))) > 0.5 * r(n, 1)).float()
    )
    beat = 0.15 + 0.8 * r(n, 1)
    knocks = noise * torch.exp(-torch.remainder(t + r(n, 1), beat) * (20 + 150 * r(n, 1)))
    kind = torch.randint(0, 4, (n, 1), device=device)
    x = torch.where(kind == 0, tones, torch.where(kind == 1, bursts, torch.where(kind == 2, knocks, torch.zeros_like(tones))))
    begin = 2 * r(n, 1)
    return 0.1 * x * ((t > begin) & (t < begin + 0.3 + 4 * r(n, 1)))


def microphone(x: Tensor, long: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [N, CLIP_SAMPLES] of which `long` [N] samples are speech -> the same in a room, with noise of 5 to 45 dB below the
    speech, quieter, and a tilt of the spectrum [N, 128, 1]."""
    n, size, device = *x.shape, x.device
    r = lambda *s: torch.rand(*s, device=device)  # noqa: E731
    g = lambda *s: torch.randn(*s, device=device)  # noqa: E731
    room = r(n, 1) < 0.4  # decaying noise after the direct sound
    decay = torch.exp(-torch.arange(4800, device=device)[None] / (400 + 1600 * r(n, 1)))
    impulse = g(n, 4800) * decay * 0.12 * r(n, 1)
    impulse[:, 0] = 1
    padded = size + 4800
    wet = torch.fft.irfft(torch.fft.rfft(x, padded) * torch.fft.rfft(impulse, padded), padded)[:, :size]
    x = torch.where(room, wet, x)
    level = x.square().sum(1, keepdim=True).div(long[:, None]).sqrt().clamp(min=1e-3)
    white = g(n, size)
    pink = torch.fft.irfft(torch.fft.rfft(white) / torch.arange(1, size // 2 + 2, device=device).sqrt() * 30, size)
    noise = torch.where(r(n, 1) < 0.5, white, pink)
    x = x + noise / noise.std(1, keepdim=True) * level * 10 ** (-(5 + 40 * r(n, 1)) / 20)
    x = x * 10 ** (-20 * r(n, 1) / 20) + 1e-4 * g(n, size) * r(n, 1)
    tilt = F.interpolate(g(n, 1, 6) * 0.35, 128, mode="linear", align_corners=True).transpose(1, 2)
    return x, tilt
