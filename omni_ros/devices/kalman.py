"""Echo path estimation by a Kalman filter in the frequency domain, in partitioned blocks.

Follows Enzner and Vary, "Frequency-domain adaptive Kalman filter for acoustic echo control in hands-free telephones" (Signal
Processing, 2006) and Kuech, Mabande and Enzner, "State-space architecture of the partitioned-block-based acoustic echo
controller" (ICASSP 2014). It weighs every frequency by how much of it is echo, so that a person who speaks at the same time does
not lead it astray, and needs no detector of double talk.
"""

import numpy as np

FRAME = 320  # samples: 20 ms at 16 kHz
PARTITIONS = 26  # of a frame each: delay of the echo and reverberation together, 0.52 s
FORGET = 0.9995  # how much of the echo path is left after a frame, in the model of a room that changes
SMOOTH = 0.8  # of the spectrum of what is not echo, from frame to frame
FIRST = 0.1  # uncertainty of the first partition at the beginning; ...
DECAY = 8.0  # ... later ones are expected to be weaker, by e in so many partitions
SILENT = 1e-7  # keeps the gain finite


class KalmanFilter:
    """Subtracts from the microphone what it predicts from the loudspeaker's signal. float32 [FRAME] each, at one rate."""

    def __init__(self) -> None:
        bins = FRAME + 1
        self._played: np.ndarray = np.zeros(2 * FRAME, np.float32)
        self._spectra: np.ndarray = np.zeros((PARTITIONS, bins), np.complex64)  # of the last PARTITIONS frames played
        self._path: np.ndarray = np.zeros((PARTITIONS, bins), np.complex64)
        self._quiet = PARTITIONS + 1  # frames since something was played
        self._noise: np.ndarray = np.full(bins, 1e-3, np.float32)  # power of what is not echo
        self.doubt()

    def doubt(self) -> None:
        """The echo's path may be another one from now on: learn as fast as at the beginning."""
        decay = np.exp(-np.arange(PARTITIONS, dtype=np.float32) / DECAY)
        self._uncertain: np.ndarray = np.tile(FIRST * decay[:, None], (1, FRAME + 1))  # variance of _path

    def __call__(self, near: np.ndarray, far: np.ndarray) -> np.ndarray:
        self._quiet = 0 if far.any() else self._quiet + 1
        if self._quiet > PARTITIONS + 1:  # nothing that is played can still be heard
            return near
        self._played = np.concatenate([self._played[FRAME:], far])
        self._spectra = np.roll(self._spectra, 1, axis=0)
        self._spectra[0] = np.fft.rfft(self._played)
        echo = np.fft.irfft((self._spectra * self._path).sum(axis=0))[FRAME:]
        error = (near - echo).astype(np.float32)
        self._learn(error)
        return error

    def _learn(self, error: np.ndarray) -> None:
        spectrum = np.fft.rfft(np.concatenate([np.zeros(FRAME, np.float32), error])).astype(np.complex64)
        self._noise = SMOOTH * self._noise + (1 - SMOOTH) * _power(spectrum)
        played = _power(self._spectra)
        # Half of what a frame's window shows of the echo is of the frame itself: the factor 0.5, as in Kuech et al.
        gain = self._uncertain / (0.5 * (self._uncertain * played).sum(axis=0) + self._noise + SILENT)
        step = np.fft.irfft(gain * self._spectra.conj() * spectrum, axis=1)
        step[:, FRAME:] = 0  # a partition is FRAME taps long
        self._path += np.fft.rfft(step, axis=1).astype(np.complex64)
        kept = FORGET**2
        self._uncertain = kept * (1 - 0.5 * gain * played) * self._uncertain + (1 - kept) * _power(self._path)


def _power(spectrum: np.ndarray) -> np.ndarray:
    return spectrum.real**2 + spectrum.imag**2
