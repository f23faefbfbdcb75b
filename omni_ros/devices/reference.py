"""What the loudspeaker plays, laid beside what the microphone hears: frame by frame, however messages are late and clocks differ."""

import numpy as np

from omni_ros.devices.resampler import Resampler

PLAYED_RATE, RATE = 24000, 16000
# Seconds of played sound that are kept ahead, for messages that come late. The loudspeaker's own buffer holds more than that
# (player.LATENCY), so that an echo is never earlier than what it is an echo of.
AHEAD = 0.04
LOST = 0.25  # seconds without a message after which the loudspeaker is taken for gone
WINDOW = 2.0  # seconds over which both clocks are observed: what comes late says nothing, what comes early is the clock
SLOWEST = 0.04  # per second: the gain of the drift's control loop after a while; its first observations count for more
MOST = 1e-3  # of drift: sound cards are within 100 ppm of each other
STEP = 0.05  # seconds by which the streams may be apart before they are laid out anew: somebody's clock has jumped


class Reference:
    """`put` what is played, as it comes; `take` as much as the microphone has heard, float32 at 16 kHz.

    The played stream has to be unbroken, silence included, at the pace of the loudspeaker's clock: its samples are the time. A
    message that comes too late for its place is left out, so that later ones are in theirs. `at` is the time of the call in
    seconds, by any clock that is the same for both.
    """

    def __init__(self) -> None:
        self.drift = 0.0  # how much faster the loudspeaker's clock runs than the microphone's
        self._forget()

    def _forget(self) -> None:
        self._resampler = Resampler(PLAYED_RATE, RATE)
        self._resampler.drift = self.drift
        self._waiting: np.ndarray = np.zeros(0, np.float32)
        self._missed = 0  # samples that were taken before they came
        self._put = self._taken = 0  # samples; the difference is what waits
        self._earliest = [-np.inf, -np.inf]  # of put and taken: how far they were ahead of the time, in samples
        self._observed_from: float | None = None
        self._steps = 0
        self.in_step = False

    def put(self, played: np.ndarray, at: float) -> None:
        """float32 [n] at 24 kHz."""
        pcm = self._resampler(played)
        late = min(self._missed, pcm.size)
        self._missed -= late
        self._waiting = np.concatenate([self._waiting, pcm[late:]])
        self._put += pcm.size
        self._earliest[0] = max(self._earliest[0], self._put - at * RATE)

    def take(self, samples: int, at: float) -> np.ndarray:
        """The next float32 [samples]; zeros where there is nothing."""
        self._taken += samples
        self._earliest[1] = max(self._earliest[1], self._taken - at * RATE)
        if self.in_step:
            taken, self._waiting = self._waiting[:samples], self._waiting[samples:]
            self._missed += samples - taken.size
        else:
            taken = self._waiting[:0]
        if self._missed > LOST * RATE:
            self._forget()
        elif self._put:
            self._observe(at)
        return np.concatenate([taken, np.zeros(samples - taken.size, np.float32)])

    def _observe(self, at: float) -> None:
        if self._observed_from is None:
            self._observed_from = at
        if at - self._observed_from < WINDOW:
            return
        error = (self._earliest[0] - self._earliest[1]) / RATE - AHEAD
        self._earliest, self._observed_from = [-np.inf, -np.inf], at
        if not self.in_step:
            self._lay_out(round(error * RATE))
        elif abs(error) > STEP:
            self._forget()
        else:
            self._steer(error)

    def _lay_out(self, excess: int) -> None:
        """Begin: so many samples more wait than are to be kept ahead."""
        ahead = self._put - self._taken - excess
        if 0 <= ahead <= self._waiting.size:
            self._waiting = self._waiting[self._waiting.size - ahead :]
            self._put, self._taken = ahead, 0
            self.in_step = True

    def _steer(self, error: float) -> None:
        """Critically damped: the position is corrected at `rate`, the drift at a quarter of its square."""
        self._steps += 1
        rate = max(SLOWEST, 1.0 / (self._steps * WINDOW))
        self.drift = float(np.clip(self.drift + rate * rate / 4 * error * WINDOW, -MOST, MOST))
        self._resampler.drift = float(np.clip(self.drift + rate * error, -MOST, MOST))
