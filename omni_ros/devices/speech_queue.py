"""What a loudspeaker plays next: speech in order, silence between, and no click where it has to stop or runs dry."""

import numpy as np

RATE = 24000
RAMP = RATE // 200  # samples: 5 ms, in which a gain is reached
CONCEAL = RATE // 100  # samples: 10 ms, for which a voice that runs dry dies away
# Seconds by which an answer may have been played later than it was meant to be, and is still played to its end.
LATE = 0.5
PROMPT = 0.03  # seconds: how exact "it should have been played by now" is


class SpeechQueue:
    """No threads, no device: the caller says what time it is, in seconds of a clock that never jumps."""

    def __init__(self) -> None:
        self._waiting: np.ndarray = np.zeros(0, np.float32)
        self._last: np.ndarray = np.zeros(CONCEAL, np.float32)  # played, before gain
        self._gain = self._target = 1.0
        self._dying: np.ndarray = np.zeros(0, np.float32)  # the voice that ran dry, or was dropped
        self._since = 0.0  # when speech began that has come without a break ...
        self._samples = 0  # ... and how much it is
        self._dry = False  # it ran dry, and its end was not told
        self._answering = False  # speech has come, and its end was not told
        self._rise = 1.0  # of speech that follows a gap
        self.underruns = 0  # gaps inside an answer

    @property
    def seconds(self) -> float:
        """Of speech that waits."""
        return self._waiting.size / RATE

    @property
    def gain(self) -> float:
        return self._target

    def push(self, pcm: np.ndarray, now: float) -> None:
        """More speech, float32 [n]. While the gain is 0, it is dropped."""
        if self._target == 0.0 or not pcm.size:
            return
        if self._dry:
            self.underruns += self._target == 1.0  # an answer that is ducked may be held back on purpose
            self._rise = 0.0
        if self._dry or not self._answering:
            self._since, self._samples = now, 0
        self._dry, self._answering = False, True
        self._samples += pcm.size
        self._waiting = np.concatenate([self._waiting, pcm])

    def set_gain(self, gain: float) -> None:
        """Of everything from now on, what waits included; 0 drops what waits."""
        self._target = float(np.clip(gain, 0.0, 1.0))
        if self._target == 0.0:
            self._drop()

    def stop(self, now: float) -> None:
        """The answer is over. If by now all of it should have been played, what is left is its end, a little late, and is
        still played; else it was stopped, and what is left is dropped."""
        self._answering = self._dry = False
        due = self._since + self._samples / RATE
        if now < due - PROMPT or self.seconds > LATE:
            self._drop()

    def catch_up(self, now: float) -> None:
        """Where the loudspeaker was away, or takes less than it should, what would have been heard by now is not heard later."""
        late = self.seconds - max(0.0, self._since + self._samples / RATE - now)
        if late > LATE:
            self._skip(round(late * RATE))

    def _drop(self) -> None:
        self._skip(self._waiting.size)
        self._answering = self._dry = False

    def _skip(self, samples: int) -> None:
        if self._waiting.size:
            self._dying = self._waiting[:RAMP] * np.linspace(1, 0, RAMP, dtype=np.float32)[: self._waiting.size]
            self._waiting = self._waiting[samples:]
            self._rise = 0.0

    def take(self, samples: int) -> np.ndarray:
        """The next float32 [samples], with the gain applied."""
        if self._dying.size == 0:
            taken, self._waiting = self._risen(self._waiting[:samples]), self._waiting[samples:]
        else:
            taken = np.zeros(0, np.float32)
        rest = samples - taken.size
        if rest and self._answering and not self._dry and self._dying.size == 0:
            # It ends here, or comes late: its last 10 ms, mirrored and dying away, so that it does not break off.
            past = np.concatenate([self._last, taken])[-CONCEAL:]
            self._dying = past[::-1] * np.linspace(1, 0, CONCEAL, dtype=np.float32)
            self._dry = True
        dying, self._dying = self._dying[:rest], self._dying[rest:]
        pcm = np.concatenate([taken, dying, np.zeros(rest - dying.size, np.float32)])
        self._last = np.concatenate([self._last, pcm])[-CONCEAL:]
        return pcm * self._ramp(samples)

    def _risen(self, pcm: np.ndarray) -> np.ndarray:
        if self._rise == 1.0 or not pcm.size:
            return pcm
        rise = np.minimum(1.0, self._rise + np.arange(1, pcm.size + 1, dtype=np.float32) / RAMP)
        self._rise = float(rise[-1])
        return pcm * rise

    def _ramp(self, samples: int) -> np.ndarray | float:
        if self._gain == self._target:
            return self._gain or 1.0  # at 0 nothing is left but what dies away by itself
        way = np.sign(self._target - self._gain) * np.arange(1, samples + 1, dtype=np.float32) / RAMP
        gain = np.clip(self._gain + way, min(self._gain, self._target), max(self._gain, self._target))
        self._gain = float(gain[-1])
        return gain
