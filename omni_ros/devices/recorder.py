"""A microphone: a device of any rate and number of channels in, 16 kHz mono without the robot's own voice out, on a thread."""

from collections.abc import Callable

import numpy as np

from omni_ros.devices.echo import RATE, TAIL, Echo, audible
from omni_ros.devices.kalman import FRAME
from omni_ros.devices.reconnect import Reconnect, irregular
from omni_ros.devices.reference import Reference
from omni_ros.devices.resampler import Resampler
from omni_ros.dialogue.clock import Clock, keep_running
from omni_ros.errors import DeviceError

SHORTEST = 0.002  # seconds between two looks at the device
PATIENCE = 0.1  # seconds between two looks where there is none
STALLED = 2.0  # seconds after which a device that gives nothing is lost
CLOSE_WITHIN = 2.0  # seconds that a device is given to return from its driver
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
        self._device = Reconnect(open_source, clock)
        self._echo = echo
        self._on_pcm = on_pcm
        self._clock = clock
        self._resampler: Resampler | None = None
        self._rest: np.ndarray = np.zeros(0, np.float32)  # 16 kHz samples that do not fill a frame yet
        self._changed = clock.condition()  # guards all below
        self._reference = Reference()
        self._played_at = self._audible_at = float("-inf")
        self._closed = False
        self._thread = clock.start(lambda: keep_running(self._step, on_failure), "microphone")

    def played(self, pcm: np.ndarray) -> None:
        """float32 [n] at 24 kHz: what the loudspeaker was just given, silence included."""
        with self._changed:
            now = self._clock.now()
            self._reference.put(pcm, now)
            self._played_at = now
            if audible(pcm):
                self._audible_at = now

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_WITHIN)

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

    def _step(self) -> bool:
        """What the device has, or a look at whether it has something."""
        known = self._device.device
        source = self._device.get()
        if source is not None and source is not known:
            self._resampler, self._rest = Resampler(source.rate, RATE), self._rest[:0]
        try:
            wait = self._listen(source) if source is not None else PATIENCE
        except DeviceError as error:
            self._device.lost(error)
            wait = 0.0
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._closed, wait)
            if not self._closed:
                return True
        self._device.close()
        return False

    def _listen(self, source) -> float:
        """Returns the seconds until there may be more."""
        frame = FRAME * source.rate / RATE
        waiting = source.available()
        if waiting < frame:
            if self._device.still_for > STALLED:
                raise DeviceError(f"the microphone has given nothing for {STALLED:g} s: was it unplugged?")
            return max(SHORTEST, (frame - waiting) / source.rate)
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
