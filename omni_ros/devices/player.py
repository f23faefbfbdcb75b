"""A loudspeaker: speech in at 24 kHz, played on a device of any rate and number of channels, on a thread of its own."""

from collections.abc import Callable
from typing import Any

import numpy as np

from omni_ros.devices.paced import PacedSink
from omni_ros.devices.reconnect import irregular
from omni_ros.devices.resampler import Resampler
from omni_ros.devices.sound_thread import SoundThread
from omni_ros.devices.speech_queue import RATE, SpeechQueue
from omni_ros.dialogue.clock import Clock

BLOCK = RATE // 50  # samples: 20 ms, taken from the queue at once: what comes later is played later


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
        self._on_played = on_played
        self._clock = clock
        self._nowhere: PacedSink | None = None  # in place of a device that is away
        self._resampler: Resampler | None = None
        self._changed = clock.condition()  # guards the queue
        self._queue = SpeechQueue()
        self._thread = SoundThread(
            "loudspeaker", open_sink, self._give, on_opened=self._opened, on_failure=on_failure, clock=clock
        )
        self._device = self._thread.device
        self._thread.start()

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
        self._thread.close()

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

    def _opened(self, sink) -> None:
        self._resampler = Resampler(RATE, sink.rate)

    def _give(self, sink) -> float:
        """One block, if the device takes one."""
        if sink is not None:
            self._nowhere = None
        elif self._nowhere is None:
            self._nowhere = PacedSink(None, RATE, 1, self._clock)
        where: Any = sink or self._nowhere
        block = BLOCK * where.rate // RATE + 2  # frames: as many as the resampler may make of a block
        missing = block - where.room()
        if missing > 0:
            return self._thread.patience(missing / where.rate)
        with self._changed:
            self._queue.catch_up(self._clock.now())
            pcm = self._queue.take(BLOCK)
        if sink is None:
            where.write(pcm[:, None])
            return 0.0
        assert self._resampler is not None
        sink.write(np.repeat(self._resampler(pcm)[:, None], sink.channels, axis=1))
        self._device.moved()
        self._on_played(pcm)
        return 0.0
