"""The microphone's side of a dialogue: sound in, utterances out."""

from collections import deque
from collections.abc import Callable

import numpy as np

from omni_ros.dialogue.clock import Clock, keep_running
from omni_ros.dialogue.endpoint import (
    FRAME,
    SAMPLE_RATE,
    SpeechEnd,
    SpeechEvent,
    SpeechGoesOn,
    SpeechPause,
    SpeechSoFar,
    SpeechStart,
)
from omni_ros.dialogue.turn_start import Ears
from omni_ros.errors import InputError

MOST_WAITING = 64 << 20  # bytes of sound that may wait to be listened to: half an hour of a microphone

Pcm = np.ndarray  # float32 [n], 16 kHz mono, in [-1, 1]


class Listener:
    """Finds utterances on its own thread: voice activity detection of one huge message must hold up nobody.

    An utterance whose sound stops coming for `timeout` seconds is closed as it is, or dropped.
    """

    def __init__(
        self,
        endpointer: Ears,
        *,
        on_start: Callable[[], None],
        on_voice: Callable[[float], None],  # inside an utterance, with every frame: its seconds of voice so far
        on_pause: Callable[[Pcm], None],  # the utterance may be over
        on_goes_on: Callable[[bool], None],  # it was not; whether it was taken for the end
        on_so_far: Callable[[Pcm], None],  # of a long one with every second: what was said by now
        on_end: Callable[[Pcm | None], None],  # after a pause its very array; None: the utterance was dropped
        on_bad: Callable[[InputError], None],
        on_lost: Callable[[float, bool], None],  # no sound for so many seconds inside an utterance; it is dropped
        on_failure: Callable[[Exception], None],
        timeout: float,
        drop: bool,  # an utterance whose sound stops is dropped instead of closed
        clock: Clock,
    ) -> None:
        self._endpointer = endpointer
        self._on_start = on_start
        self._on_voice = on_voice
        self._on_pause = on_pause
        self._on_goes_on = on_goes_on
        self._on_so_far = on_so_far
        self._on_end = on_end
        self._on_bad = on_bad
        self._on_lost = on_lost
        self._timeout = timeout
        self._drop = drop
        self._clock = clock
        self.in_speech = False
        self._soundless = 0.0  # seconds at the end of an utterance for which nothing came
        self._changed = clock.condition()  # guards all below
        self._arrived: deque[tuple[Callable[[], Pcm], int, bool]] = deque()
        self._arrived_bytes = 0
        self._lost_at = 0.0  # when the microphone counts as lost unless more sound comes
        self._resets = 0  # counted, so that what was heard before one is not told after it
        self._applied_resets = 0
        self._closed = False
        self._thread = clock.start(lambda: keep_running(self._step, on_failure), "ears")

    @property
    def vad_name(self) -> str:
        return self._endpointer.vad_name

    @property
    def silence(self) -> float:
        """For the callbacks: seconds since the last voice of the utterance that they are about."""
        return self._endpointer.silence + self._soundless

    def hear(self, read: Callable[[], Pcm], size: int, muted: bool) -> None:
        """More of the stream: `read` makes the samples, on the listener's thread, or raises InputError; `size` is how many
        bytes it keeps until then. Of `muted` sound only the length counts."""
        with self._changed:
            if fits := self._arrived_bytes + size <= MOST_WAITING or not self._arrived:
                self._arrived.append((read, size, muted))
                self._arrived_bytes += size
                self._changed.notify_all()
        if not fits:
            self._on_bad(InputError("sound arrives faster than it can be listened to"))

    def reset(self) -> None:
        """Drop the utterance in progress and all sound that waits."""
        with self._changed:
            self._arrived.clear()
            self._arrived_bytes = 0
            self._resets += 1
            self.in_speech = False
            self._changed.notify_all()

    def close(self, timeout: float) -> None:
        with self._changed:
            self._closed = True
            self.reset()
        self._thread.join(timeout)

    def _step(self) -> bool:
        """One piece of sound, or the end of waiting for it."""
        with self._changed:
            patience = max(0.0, self._lost_at - self._clock.now()) if self.in_speech else None
            self._changed.wait_for(lambda: self._arrived or self._closed or self._resets != self._applied_resets, patience)
            if self._closed:
                return False
            if self._resets != self._applied_resets:
                self._applied_resets = self._resets
                self._endpointer.reset()
            read, size, muted = self._arrived.popleft() if self._arrived else (None, 0, False)
            self._arrived_bytes -= size
        if read is not None:
            self._listen(read, muted)
        elif self.in_speech:
            self._lose()
        return True

    def _listen(self, read: Callable[[], Pcm], muted: bool) -> None:
        try:
            pcm = read()
        except InputError as error:
            self._on_bad(error)
            return
        with self._changed:  # a driver that sends long pieces is silent for as long between them
            self._lost_at = self._clock.now() + self._timeout + pcm.size / SAMPLE_RATE
        for start in range(
            0, pcm.size, FRAME
        ):  # as it would come from a microphone: what follows from a frame comes before the next
            piece = pcm[start : start + FRAME]
            for event in self._endpointer.skip(piece.size) if muted else self._endpointer.feed(piece):
                if self._still_wanted(in_speech=not isinstance(event, SpeechEnd)):
                    self._tell(event)
            if self.in_speech:
                self._on_voice(self._endpointer.voiced_seconds)
            if self._resets != self._applied_resets or self._closed:
                return

    def _tell(self, event: SpeechEvent) -> None:
        match event:
            case SpeechStart():
                self._on_start()
            case SpeechPause(pcm):
                self._on_pause(pcm)
            case SpeechGoesOn(after_end):
                self._on_goes_on(after_end)
            case SpeechSoFar(pcm):
                self._on_so_far(pcm)
            case SpeechEnd(pcm):
                self._on_end(pcm)

    def _lose(self) -> None:
        said = self._endpointer.close()
        if self._still_wanted(in_speech=False):
            self._on_lost(self._timeout, self._drop)
            self._soundless = self._timeout
            self._on_end(None if self._drop else said.pcm)
            self._soundless = 0.0

    def _still_wanted(self, in_speech: bool) -> bool:
        """Note what was heard, unless somebody has called reset() since."""
        with self._changed:
            if self._resets != self._applied_resets:
                return False
            self.in_speech = in_speech
            return True
