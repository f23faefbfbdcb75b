"""Resampling of a live microphone stream to the model's 16 kHz."""

import av
import numpy as np

from omni_ros.dialogue.endpoint import SAMPLE_RATE


class Resampler:
    """Mono float32 at `rate` Hz in, mono float32 at 16 kHz out; keeps its filter's state from chunk to chunk."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._filter = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)

    def __call__(self, pcm: np.ndarray) -> np.ndarray:  # float32 [n] -> float32 [m]
        if self._rate == SAMPLE_RATE:
            return pcm
        frame = av.AudioFrame.from_ndarray(pcm[None], format="flt", layout="mono")
        frame.sample_rate = self._rate
        pieces = [out.to_ndarray()[0] for out in self._filter.resample(frame)]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
