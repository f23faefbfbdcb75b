"""A loudspeaker on a dialogue's clock: plays what it gets in real time, obeys gains, and keeps what was heard of it."""

import numpy as np

RATE = 24000


class SimulatedSpeaker:
    """With `obeys` False it knows no gain, as a loudspeaker of somebody else, and plays whatever it got."""

    def __init__(self, clock, obeys: bool = True) -> None:
        self._clock = clock
        self.obeys = obeys
        self.gain_now = 1.0
        self.gains: list[tuple[float, float]] = []
        self.sounds: list[tuple[float, np.ndarray]] = []  # when it begins to be played, and what

    def speech(self, pcm: np.ndarray) -> None:
        if self.gain_now:
            self.sounds.append((max(self._clock.now(), self._free_at()), pcm))

    def gain(self, gain: float) -> bool:
        self.gains.append((round(self._clock.now(), 6), gain))
        if not self.obeys:
            return False
        self.gain_now = gain
        if gain == 0:
            now = self._clock.now()
            kept = [(at, pcm[: round(max(0.0, now - at) * RATE)]) for at, pcm in self.sounds]
            self.sounds = [(at, pcm) for at, pcm in kept if pcm.size]
        return True

    def _free_at(self) -> float:
        return max((at + pcm.size / RATE for at, pcm in self.sounds[-1:]), default=0.0)

    def played(self, value: float | None = None, until: float = float("inf")) -> np.ndarray:
        """The samples that were played, of sound with this first sample only."""
        chosen = [(at, pcm) for at, pcm in self.sounds if value is None or round(float(pcm[0]), 4) == value]
        return np.concatenate(
            [np.zeros(0, np.float32), *(pcm[: round(max(0.0, min(until - at, 1e6)) * RATE)] for at, pcm in chosen)]
        )

    def silent_from(self, value: float) -> float:
        """When the last sample of that sound had been played."""
        return max(at + pcm.size / RATE for at, pcm in self.sounds if round(float(pcm[0]), 4) == value)
