"""Mel features of a clip -> Thinker embeddings, window by window (transformers `Qwen3OmniMoeAudioEncoder`)."""

import numpy as np

from omni_ros.engines.config import AudioConfig
from omni_ros.engines.engine import Engine
from omni_ros.errors import InputError


class AudioEncoder:
    """Calls the audio engine on one attention window at a time: nothing in a window depends on another, so its embeddings are
    the same to the last bit in whatever clip it comes."""

    def __init__(self, engine: Engine):
        self.engine = engine
        config: AudioConfig = engine.config.model
        self.mel_bins, self.hidden_size = config.mel_bins, config.hidden_size
        self.chunk_frames, self.chunk_tokens = config.chunk_frames, config.chunk_tokens
        self.window_chunks = config.window_chunks

    def token_count(self, frames: int) -> int:
        """How many Thinker tokens a clip of `frames` mel frames becomes (`_get_feat_extract_output_lengths`)."""
        full, rest = divmod(frames, self.chunk_frames)
        return full * self.chunk_tokens + _after_convolutions(rest)

    def windows(self, mel: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """One clip, float32 [mel_bins, frames] -> its windows as the engine takes them, [chunks, mel_bins, width], and how many
        tokens each becomes.

        A clip is never padded to another one, as transformers does within a request, so its rows are the same whatever it
        is asked with; equal to transformers when it gets one clip at a time.
        """
        if mel.ndim != 2 or mel.shape[0] != self.mel_bins or mel.shape[1] == 0:
            raise InputError(f"mel features must be [{self.mel_bins}, frames > 0], got {list(mel.shape)}")
        width = min(mel.shape[1], self.chunk_frames)  # a clip below one second is not padded at all
        span = self.window_chunks * self.chunk_frames
        windows = []
        for start in range(0, mel.shape[1], span):
            window = mel[:, start : start + span]
            padded = np.pad(window, ((0, 0), (0, -window.shape[1] % width))).reshape(self.mel_bins, -1, width)
            windows.append((np.ascontiguousarray(padded.swapaxes(0, 1)), self.token_count(window.shape[1])))
        return windows

    def __call__(self, window: np.ndarray, tokens: int) -> np.ndarray:
        """One of `windows` -> float32 [tokens, hidden]."""
        valid = np.arange(tokens)  # only the last chunk is short: its padding comes last
        positions = valid % _after_convolutions(window.shape[2])
        outputs = self.engine.run({"mel": window[None], "valid_indices": valid, "positions": positions})
        return outputs["embeds"].astype(np.float32, copy=False)


def _after_convolutions(frames: int) -> int:
    """Columns left of `frames` by three convolutions of kernel 3, stride 2, padding 1."""
    for _ in range(3):
        frames = (frames + 1) // 2
    return frames
