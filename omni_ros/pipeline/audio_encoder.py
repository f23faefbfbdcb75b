"""Mel features of any number of clips -> Thinker embeddings, window by window (transformers `Qwen3OmniMoeAudioEncoder`)."""

import numpy as np

from omni_ros.engines.engine import Engine
from omni_ros.errors import InputError


class AudioEncoder:
    """Calls the audio engine on batches of equal attention windows, so that cost is linear in the clip's length."""

    def __init__(self, engine: Engine):
        self.engine = engine
        model = engine.config["model"]
        self.mel_bins, self.hidden_size = model["mel_bins"], model["hidden_size"]
        self.chunk_frames, self.chunk_tokens = model["chunk_frames"], model["chunk_tokens"]
        self.window_chunks = model["window_chunks"]
        self.max_chunks = engine.config["limits"]["max_chunks"]

    def token_count(self, frames: int) -> int:
        """How many Thinker tokens a clip of `frames` mel frames becomes (`_get_feat_extract_output_lengths`)."""
        full, rest = divmod(frames, self.chunk_frames)
        return full * self.chunk_tokens + _after_convolutions(rest)

    def __call__(self, mels: list[np.ndarray]) -> list[np.ndarray]:
        """The clips of one request, each float32 [mel_bins, frames] -> float32 [token_count(frames), hidden].

        Chunks are zero-padded to the longest chunk of the request, as transformers does. This matters to clips
        below one second, whose last token sees the padding; a lone short clip is therefore not padded at all.
        """
        for mel in mels:
            if mel.ndim != 2 or mel.shape[0] != self.mel_bins or mel.shape[1] == 0:
                raise InputError(f"mel features must be [{self.mel_bins}, frames > 0], got {list(mel.shape)}")
        longest = max((mel.shape[1] for mel in mels), default=0)
        width = min(longest, self.chunk_frames)
        embeds = []
        for mel in mels:
            span = self.window_chunks * self.chunk_frames
            full = mel.shape[1] // span  # windows without any padding: equal, so they can share a run
            parts = [self._full_windows(mel[:, : full * span], full)] if full else []
            if mel.shape[1] % span:
                parts.append(self._run(mel[:, full * span :], 1, width))
            embeds.append(np.concatenate(parts))
        return embeds

    def _full_windows(self, mel: np.ndarray, windows: int) -> np.ndarray:
        span = self.window_chunks * self.chunk_frames
        step = self.max_chunks // self.window_chunks
        return np.concatenate(
            [
                self._run(mel[:, i * span : (i + step) * span], min(step, windows - i), self.chunk_frames)
                for i in range(0, windows, step)
            ]
        )

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
