"""What the codec hears of a frame of the voice: log-mel columns, pitch, voicing."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.ear import mel_filters

HOP, FRAME = 240, 1920  # samples at 24 kHz: a mel column, a codec frame
LOWEST = 2e-5  # of a mel bin: what is quieter is silence
LAGS = (70, 270)  # samples: pitches from 343 down to 89 Hz


class CodecFeatures:
    """24 kHz speech float32 [B, n * 1920] -> [B, n, 656]: of each frame 8 log-mel columns of 80 bins, 8 pitches, 8 voicings."""

    def __init__(self, device: torch.device):
        self.filters, self.window = mel_filters(80, 1024, 24000, 12000.0).to(device), torch.hann_window(1024, device=device)

    def mel(self, pcm: Tensor) -> Tensor:
        """-> [B, n * 8, 80], each column centred on its 10 ms"""
        left = 512 - HOP // 2
        x = F.pad(pcm, (left, 1024 - HOP - left))
        spectrum = torch.stft(x, 1024, HOP, window=self.window, center=False, return_complex=True).abs()
        return torch.log((spectrum.transpose(1, 2) @ self.filters).clamp(min=LOWEST))

    def pitch(self, pcm: Tensor) -> tuple[Tensor, Tensor]:
        """-> log2 of the pitch in Hz, voicing 0..1, [B, n * 8] each, by normalised autocorrelation of 40 ms"""
        frames = F.pad(pcm, (480 - HOP // 2, 1100)).unfold(1, 1500, HOP)[:, : pcm.shape[1] // HOP]
        base, lags = frames[..., :960], torch.arange(*LAGS, device=pcm.device)
        spectrum = torch.fft.rfft(base, 4096).conj() * torch.fft.rfft(frames, 4096)
        corr = torch.fft.irfft(spectrum, 4096)[..., lags]
        energy = F.pad(frames.square().cumsum(-1), (1, 0))
        norm = (energy[..., lags + 960] - energy[..., lags]) * energy[..., 960:961]
        score = corr / (norm + 1e-3).sqrt() - 0.0004 * (lags - LAGS[0])  # of equal ones the shortest lag
        best, where = score.max(-1)
        return torch.log2(24000 / lags[where].float()), best.clamp(0, 1)

    def __call__(self, pcm: Tensor) -> Tensor:
        n, b = pcm.shape[1] // FRAME, len(pcm)
        pitch, voicing = self.pitch(pcm)
        voiced = voicing > 0.5
        pitch = torch.where(voiced, pitch - 7.5, 0.0)
        mel = self.mel(pcm).view(b, n, 640)
        return torch.cat([mel / 2, pitch.view(b, n, 8) * 4, voiced.float().view(b, n, 8) * 1.5], -1)
