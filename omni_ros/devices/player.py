"""A loudspeaker: speech in at 24 kHz, played on a device of any rate and number of channels, on a thread of its own."""

from collections.abc import Callable

import numpy as np

from omni_ros.devices.paced import PacedSink
from omni_ros.devices.reconnect import Reconnect, irregular
from omni_ros.devices.resampler import Resampler
from omni_ros.devices.speech_queue import RATE, SpeechQueue
from omni_ros.dialogue.clock import Clock, keep_running
from omni_ros.errors import DeviceError

BLOCK = RATE // 50  # samples: 20 ms, taken from the queue at once: what comes later is played later
SHORTEST = 0.002  # seconds between two looks at the device
STALLED = 2.0  # seconds after which a device that takes nothing is lost
CLOSE_WITHIN = 2.0  # seconds that a device is given to return from its driver


class Player:
    """Plays without a break, silence included, so that what it plays is also a clock (see reference.py).

    While there is no device, time passes all the same: what would have been played then is not played later.
    """

    def __init__(
        self,
        open_sink: Callable[[], object],
        *,
        on_played: Callable[[np.ndarray], None],  # float32 [BLOCK] at 24 kHz, as it is given to the device
        on_failure: Callable[[Exception], None],
        clock: Clock,
    ) -> None:
        self._device = Reconnect(open_sink, clock)
        self._on_played = on_played
        self._clock = clock
        self._nowhere = PacedSink(None, RATE, 1, clock)  # in place of a device that is away
        self._resampler: Resampler | None = None
        self._changed = clock.condition()  # guards the queue
        self._queue = SpeechQueue()
        self._closed = False
        self._thread = clock.start(lambda: keep_running(self._step, on_failure), "loudspeaker")

    def push(self, pcm: np.ndarray) -> None:
        """float32 [n] at 24 kHz: more speech."""
        with self._changed:
            self._queue.push(pcm, self._clock.now())

    def set_gain(self, gain: float) -> None:
        with self._changed:
            self._queue.set_gain(gain)

    def stop(self) -> None:
        """The answer is over, or was stopped: see SpeechQueue."""
        with self._changed:
            self._queue.stop(self._clock.now())

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_WITHIN)

    @property
    def problem(self) -> str:
        """Why nothing can be heard, or ""."""
        return self._device.problem

    def facts(self) -> dict[str, object]:
        sink = self._device.device
        return {
            "device": f"{sink.rate} Hz, {sink.channels} channels" if sink is not None else "none",
            "device opened": self._device.opened,
            "device underflows": self._device.irregular + irregular(sink),
            "speech underruns": self._queue.underruns,
            "speech waiting s": self._queue.seconds,
            "gain": self._queue.gain,
        }

    def _step(self) -> bool:
        """One block, or a look at whether the device takes one."""
        known = self._device.device
        sink = self._device.get()
        if sink is not None and sink is not known:
            self._resampler = Resampler(RATE, sink.rate)
        try:
            self._give(sink)
        except DeviceError as error:
            self._device.lost(error)
            self._nowhere = PacedSink(None, RATE, 1, self._clock)
        with self._changed:
            if not self._closed:
                return True
        self._device.close()
        return False

    def _give(self, sink) -> None:
        where = sink or self._nowhere
        block = BLOCK * where.rate // RATE + 2  # frames: as many as the resampler may make of a block
        missing = block - where.room()
        if missing > 0:
            if sink is not None and self._device.still_for > STALLED:
                raise DeviceError(f"the loudspeaker has taken nothing for {STALLED:g} s: was it unplugged?")
            with self._changed:
                self._changed.wait_for(lambda: self._closed, max(SHORTEST, missing / where.rate))
            return
        with self._changed:
            self._queue.catch_up(self._clock.now())
            pcm = self._queue.take(BLOCK)
        if sink is None:
            self._nowhere.write(pcm[:, None])
            return
        assert self._resampler is not None
        sink.write(np.repeat(self._resampler(pcm)[:, None], sink.channels, axis=1))
        self._device.moved()
        self._on_played(pcm)
