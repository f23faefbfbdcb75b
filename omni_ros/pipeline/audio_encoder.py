"""Mel features of a clip -> Thinker embeddings, window by window (transformers `Qwen3OmniMoeAudioEncoder`)."""

from collections.abc import Callable

import numpy as np

from omni_ros.engines.config import AudioConfig
from omni_ros.engines.engine import Engine
from omni_ros.errors import InputError


class AudioEncoder:
    """Calls the audio engine on batches of equal attention windows, so that cost is linear in the clip's length."""

    def __init__(self, engine: Engine):
        self.engine = engine
        config: AudioConfig = engine.config.model
        self.mel_bins, self.hidden_size = config.mel_bins, config.hidden_size
        self.chunk_frames, self.chunk_tokens = config.chunk_frames, config.chunk_tokens
        self.window_chunks = config.window_chunks
        self.max_chunks: int = engine.config.limits.max_chunks

    def token_count(self, frames: int) -> int:
        """How many Thinker tokens a clip of `frames` mel frames becomes (`_get_feat_extract_output_lengths`)."""
        full, rest = divmod(frames, self.chunk_frames)
        return full * self.chunk_tokens + _after_convolutions(rest)

    def __call__(self, mel: np.ndarray, check: Callable[[], None] = lambda: None) -> np.ndarray:
        """One clip, float32 [mel_bins, frames] -> float32 [token_count(frames), hidden].

        A clip is never padded to another one, as transformers does within a request, so its rows are the same whatever it
        is asked with; equal to transformers when it gets one clip at a time. `check` is called between runs and may raise.
        """
        if mel.ndim != 2 or mel.shape[0] != self.mel_bins or mel.shape[1] == 0:
            raise InputError(f"mel features must be [{self.mel_bins}, frames > 0], got {list(mel.shape)}")
        width = min(mel.shape[1], self.chunk_frames)  # a clip below one second is not padded at all
        span = self.window_chunks * self.chunk_frames
        full = mel.shape[1] // span  # windows without any padding: equal, so they can share a run
        step = self.max_chunks // self.window_chunks
        parts = []
        for i in range(0, full, step):
            check()
            parts.append(self._run(mel[:, i * span : min(i + step, full) * span], min(step, full - i), self.chunk_frames))
        if mel.shape[1] % span:
            check()
            parts.append(self._run(mel[:, full * span :], 1, width))
        return np.concatenate(parts)

    def _run(self, mel: np.ndarray, windows: int, width: int) -> np.ndarray:
        """mel [mel_bins, frames], equal windows in a row (or one that ends early) -> [tokens, hidden]."""
        frames = mel.shape[1] // windows
        chunks = -(-frames // self.chunk_frames)
        padding = windows * chunks * width - mel.shape[1]
        mel = np.pad(mel, ((0, 0), (0, padding))).reshape(self.mel_bins, windows, chunks, width)
        per_chunk = _after_convolutions(width)
        valid = np.arange(self.token_count(frames))  # only the last chunk is short: its padding comes last
        outputs = self.engine.run({"mel": mel.transpose(1, 2, 0, 3), "valid_indices": valid, "positions": valid % per_chunk})
        return outputs["embeds"].astype(np.float32, copy=False)


def _after_convolutions(frames: int) -> int:
    """Columns left of `frames` by three convolutions of kernel 3, stride 2, padding 1."""
    for _ in range(3):
        frames = (frames + 1) // 2
    return frames
