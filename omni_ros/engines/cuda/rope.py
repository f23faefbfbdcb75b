"""The angles by which a position turns a head's channel pairs: interleaved mRoPE, or plain RoPE without sections."""

import numpy as np

from omni_ros.engines.config import DecoderConfig


class RopeTable:
    """Follows transformers' Qwen3OmniMoeThinkerTextRotaryEmbedding."""

    def __init__(self, config: DecoderConfig):
        self.axis = np.zeros(config.head_dim // 2, np.int64)  # of each pair: time, height or width
        for axis in (1, 2):
            self.axis[axis : config.mrope_section[axis] * 3 : 3] = axis
        exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        self.inv_freq = (1 / config.rope_theta**exponent).astype(np.float32)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """positions float32 [3, S] -> float32 [S, head_dim]: cosines, then sines."""
        angles = positions[self.axis].T * self.inv_freq
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
