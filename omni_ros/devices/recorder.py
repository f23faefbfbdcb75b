"""A microphone: a device of any rate and number of channels in, 16 kHz mono without the robot's own voice out, on a thread."""

from collections.abc import Callable

import numpy as np

from omni_ros.devices.echo import RATE, TAIL, Echo, audible
from omni_ros.devices.kalman import FRAME
from omni_ros.devices.reconnect import irregular
from omni_ros.devices.reference import Reference
from omni_ros.devices.resampler import Resampler
from omni_ros.devices.sound_thread import SoundThread
from omni_ros.dialogue.clock import Clock

PATIENCE = 0.1  # seconds between two looks where there is none
MOST = 0.2  # seconds that are read at once: after a pause of the whole machine there is more


class Recorder:
    """`played` is to be called with what a loudspeaker plays, unless the echo is left as it is."""

    def __init__(
        self,
        open_source: Callable[[], object],
        echo: Echo,
        *,
        on_pcm: Callable[[np.ndarray], None],  # float32 [FRAME] at 16 kHz
        on_failure: Callable[[Exception], None],
        clock: Clock,
    ) -> None:
        self._echo = echo
        self._on_pcm = on_pcm
        self._clock = clock
        self._resampler: Resampler | None = None
        self._rest: np.ndarray = np.zeros(0, np.float32)  # 16 kHz samples that do not fill a frame yet
        self._changed = clock.condition()  # guards all below
        self._reference = Reference()
        self._played_at = self._audible_at = float("-inf")
        self._thread = SoundThread(
            "microphone", open_source, self._listen, on_opened=self._opened, on_failure=on_failure, clock=clock
        )
        self._device = self._thread.device
        self._thread.start()

    def played(self, pcm: np.ndarray) -> None:
        """float32 [n] at 24 kHz: what the loudspeaker was just given, silence included."""
        with self._changed:
            now = self._clock.now()
            self._reference.put(pcm, now)
            self._played_at = now
            if audible(pcm):
                self._audible_at = now

    def close(self) -> None:
        self._thread.close()

    @property
    def problem(self) -> str:
        """Why nothing is heard, or ""."""
        return self._device.problem

    @property
    def knows_what_is_played(self) -> bool:
        return self._clock.now() - self._played_at < 1.0

    def facts(self) -> dict[str, object]:
        source = self._device.device
        return {
            "device": f"{source.rate} Hz, {source.channels} channels" if source is not None else "none",
            "device opened": self._device.opened,
            "device overflows": self._device.irregular + irregular(source),
            "echo reference": ("in step" if self._reference.in_step else "waiting") if self.knows_what_is_played else "none",
            "echo canceller is learning": self._echo.learning,
            "loudspeaker's drift ppm": self._reference.drift * 1e6,
        }

    def _opened(self, source) -> None:
        self._resampler, self._rest = Resampler(source.rate, RATE), self._rest[:0]

    def _listen(self, source) -> float:
        """What the device has."""
        if source is None:
            return PATIENCE
        frame = FRAME * source.rate / RATE
        waiting = source.available()
        if waiting < frame:
            return self._thread.patience((frame - waiting) / source.rate)
        pcm = source.read(min(waiting, int(MOST * source.rate))).mean(axis=1, dtype=np.float32)
        self._device.moved()
        assert self._resampler is not None
        self._rest = np.concatenate([self._rest, self._resampler(pcm)])
        while self._rest.size >= FRAME:
            near, self._rest = self._rest[:FRAME], self._rest[FRAME:]
            self._on_pcm(self._clean(near))
        return 0.0

    def _clean(self, near: np.ndarray) -> np.ndarray:
        with self._changed:
            now = self._clock.now()
            before = self._reference.layouts
            far = self._reference.take(FRAME, now - self._rest.size / RATE)
            changed = self._reference.layouts != before
            blind = not self._reference.in_step and now - self._audible_at < TAIL
        if changed:
            self._echo.learn()
        return self._echo(near, far, blind)
