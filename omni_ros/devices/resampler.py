"""Resampling of a stream from any rate to any other, by a windowed sinc whose ratio may change while it runs."""

import numpy as np

ZERO_CROSSINGS = 16  # of the sinc on each side
PHASES = 256  # positions between two samples for which the filter is tabulated; between them it is interpolated linearly
KAISER = 9.0  # shape of the window: 90 dB of stop band
ROLL_OFF = 0.94  # of the lower rate's Nyquist frequency: where the pass band ends


class Resampler:
    """float32 [n] at `source` Hz in, float32 [m] at `target` Hz out; chunks of any size give the same samples as one chunk.

    `drift` is how much faster the source's clock runs than it says, as a fraction (1e-4: 100 ppm): such a source gives fewer
    output samples per input sample. It may be set between two calls, and nothing clicks.
    """

    def __init__(self, source: int, target: int) -> None:
        self._source, self._target = source, target
        self.drift = 0.0
        cutoff = ROLL_OFF * min(1.0, target / source)  # of the source's Nyquist frequency
        self._half = int(np.ceil(ZERO_CROSSINGS / cutoff))  # taps on each side
        taps = np.arange(-self._half + 1, self._half + 1)  # [2 half]
        at = taps[None] - np.arange(PHASES + 1)[:, None] / PHASES  # [PHASES + 1, 2 half], in source samples
        window = np.i0(KAISER * np.sqrt(np.clip(1 - (at / self._half) ** 2, 0, None))) / np.i0(KAISER)
        table = cutoff * np.sinc(cutoff * at) * window
        self._table = (table / table.sum(axis=1, keepdims=True)).astype(np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget the stream: what comes next is the beginning of another one."""
        self._kept: np.ndarray = np.zeros(self._half - 1, np.float32)  # source samples that later outputs still need
        self._next = float(self._half - 1)  # where in `_kept` the next output sample lies

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        if self._source == self._target and not self.drift and self._next == self._half - 1 == self._kept.size:
            return pcm  # nothing has ever been shifted
        samples = np.concatenate([self._kept, pcm])
        step = self._source / self._target * (1 + self.drift)
        count = max(0, int(np.ceil((samples.size - self._half - self._next) / step)))
        at = self._next + step * np.arange(count)  # float64 [m]
        whole = at.astype(np.int64)
        phase = (at - whole) * PHASES
        row = phase.astype(np.int64)
        between = (phase - row).astype(np.float32)[:, None]
        filters = (1 - between) * self._table[row] + between * self._table[row + 1]  # [m, 2 half]
        windows = np.lib.stride_tricks.sliding_window_view(samples, 2 * self._half)[whole - self._half + 1] if count else filters
        done = self._next + step * count
        unused = max(0, int(done) - self._half + 1)
        self._kept, self._next = samples[unused:], done - unused
        return np.einsum("mt,mt->m", windows, filters)
