"""What the loudspeaker plays, laid beside what the microphone hears, however late messages are and whatever clocks differ."""

import numpy as np

from omni_ros.devices.resampler import Resampler

PLAYED_RATE, RATE = 24000, 16000
# Seconds of played sound that are kept ahead, for messages that come late. The loudspeaker's own buffer holds more than that
# (player.LATENCY), so that an echo is never earlier than what it is an echo of.
AHEAD = 0.04
LOST = 0.25  # seconds without a message after which the loudspeaker is taken for gone
WINDOW = 2.0  # seconds over which both clocks are observed: what comes late says nothing, what comes early is the clock
SLOWEST = 0.04  # per second: the gain of the drift's control loop after a while; its first observations count for more
FIRST = 5.0  # seconds: the inverse of that gain at the beginning
MOST = 3e-4  # of drift: sound cards are within 100 ppm of each other
STEP = 0.015  # seconds by which the streams may be apart before they are laid out anew: a device ran dry, or a clock has jumped
NOISE = 0.003  # seconds: an error larger than that is a busy machine's more than a clock's


class Reference:
    """`put` what is played, as it comes; `take` as much as the microphone has heard, float32 at 16 kHz.

    The played stream has to be unbroken, silence included, at the pace of the loudspeaker's clock: its samples are the time. A
    message that comes too late for its place is left out, so that later ones are in theirs. `at` is the time of the call in
    seconds, by any clock that is the same for both.
    """

    def __init__(self) -> None:
        self.drift = 0.0  # how much faster the loudspeaker's clock runs than the microphone's
        self.layouts = 0  # times that the two streams were laid beside each other
        self._steps = 0
        self._resampler = Resampler(PLAYED_RATE, RATE)
        self._forget()

    def _forget(self) -> None:
        self._waiting: np.ndarray = np.zeros(0, np.float32)
        self._missed = 0  # samples that were taken before they came
        self._put = self._taken = 0  # samples; the difference is what waits
        self._earliest = [-np.inf, -np.inf]  # of put and taken: how far they were ahead of the time, in samples
        self._observed_from: float | None = None
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
        if not self.in_step or abs(error) > STEP:
            self._lay_out(round(error * RATE))
        else:
            self._steer(error)

    def _lay_out(self, excess: int) -> None:
        """Begin, or begin anew: so many samples more wait than are to be kept ahead."""
        ahead = self._put - self._taken - excess
        self._waiting = np.concatenate([np.zeros(max(0, ahead), np.float32), self._waiting])
        self._waiting = self._waiting[self._waiting.size - max(0, ahead) :]
        self._put, self._taken, self._missed = ahead, 0, max(0, -ahead)
        self.layouts += 1
        self.in_step = True

    def _steer(self, error: float) -> None:
        """Critically damped: the position is corrected at `rate`, the drift at a quarter of its square."""
        self._steps += 1
        error = min(max(error, -NOISE), NOISE)
        rate = max(SLOWEST, 1.0 / (FIRST + self._steps * WINDOW))
        self.drift = float(np.clip(self.drift + rate * rate / 4 * error * WINDOW, -MOST, MOST))
        self._resampler.drift = float(np.clip(self.drift + rate * error, -MOST, MOST))
