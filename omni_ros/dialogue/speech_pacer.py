"""Hands out speech at the pace of playback, so that a stop is heard soon and the pipeline never waits for it."""

from collections.abc import Callable

import numpy as np

from omni_ros.dialogue.clock import Clock, keep_running
from omni_ros.dialogue.heard import SAMPLE_RATE

SLACK = 0.02  # seconds before playback runs dry at which a part of a chunk is sent: more than a thread's wake-up takes
DUCKED = 0.2  # gain: 14 dB down, so that the user is heard over the robot
SETTLE = 0.02  # seconds by which a gain of 1 precedes speech after silence: they travel on two topics


class SpeechPacer:
    """Gives out one response at a time in chunks, from its own thread, never more than `lead` seconds ahead of the
    moment they are heard; what stays here can still be dropped.

    Every call names its response: pieces of one that was cancelled arrive late and are ignored. What `publish` raises is
    reported, and ends that response only.

    What was published can be recalled only by the loudspeaker. `on_gain` tells it how loud to be from now on, 0 being to drop
    what it has and what still arrives, and returns whether a loudspeaker obeys: where none does, what was published is heard.
    """

    def __init__(
        self,
        publish: Callable[[np.ndarray], None],  # float32 [n] at 24 kHz
        on_speaking: Callable[[bool], None],
        on_gain: Callable[[float], bool],
        on_failure: Callable[[Exception], None],
        *,
        chunk: float,  # seconds per message
        lead: float,  # seconds
        clock: Clock,
    ) -> None:
        self._publish = publish
        self._on_speaking = on_speaking
        self._on_gain = on_gain
        self._on_failure = on_failure
        self._chunk = round(chunk * SAMPLE_RATE)
        self._lead = lead
        self._recallable = round((lead + 2 * chunk) * SAMPLE_RATE)  # samples: more than can be published and unheard
        self._clock = clock
        # Publishing happens inside the lock: once cancel() has returned, no chunk of that response can follow.
        self._changed = clock.condition()
        self._response: int | None = None
        self._heard = 0  # samples of the last response that were played when it ended
        self._first_at: float | None = None  # when its first sample was published
        self._closed = False
        self._held = False
        self._was_held = False  # since the last chunk: the silence behind it was meant
        self._gain = 1.0
        self._settled_at = float("-inf")  # when the loudspeaker will know that it may be heard
        self.speaking = False
        self.silent_since = float("-inf")  # when the last published sample had been played
        self.gaps = 0  # times that playback ran dry inside a response: speech was made slower than real time
        self._waiting: np.ndarray
        self._forget()
        self._thread = clock.start(lambda: keep_running(self._run, self._fail), "speech")

    @property
    def backlog(self) -> float:
        """Seconds of speech that wait to be published."""
        return self._waiting.size / SAMPLE_RATE

    @property
    def left(self) -> float:
        """Seconds until the response will have been heard; inf while more of it may come."""
        with self._changed:
            return self._unheard + self.backlog if self._ended or self._response is None else float("inf")

    def begin(self, response: int) -> None:
        with self._changed:
            self._forget()
            self._heard = 0
            self._first_at = None
            self._response = response

    def push(self, response: int, pcm: np.ndarray) -> None:
        """More speech, float32 [n] at 24 kHz."""
        with self._changed:
            if response == self._response:
                self._waiting = np.concatenate([self._waiting, pcm])
                self._changed.notify_all()

    def end(self, response: int) -> int:
        """No more speech will come; returns once all of it was heard or it was cancelled: how many samples were heard.

        `response` is the one that began last. Heard means published, and played by a loudspeaker that started at once.
        """
        with self._changed:
            if response == self._response:
                self._ended = True
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._response != response)
            return self._heard

    def first_played(self) -> float | None:
        """When the first sample of the response that began last was published: the loudspeaker can play it from then on. Waits
        for one that is due; None where there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._first_at is not None or self._response is None or not self._waiting.size)
            return self._first_at

    def cancel(self) -> None:
        """Stop now: what was not published never is."""
        with self._changed:
            self._stop()

    def duck(self) -> None:
        """Be quieter, since the user may have begun to speak."""
        with self._changed:
            if self.speaking and self._gain == 1.0:
                self._set_gain(DUCKED)

    def hold(self) -> None:
        """Be silent until go_on(), this response or the next: what was published and can be recalled is kept for then."""
        with self._changed:
            if self._held:
                return
            self._held = True
            if recalled := self._recall():
                self._waiting = np.concatenate([self._recent[-recalled:], self._waiting])
                self._published -= recalled

    def go_on(self) -> None:
        """Speak at full loudness again, from where a hold() stopped it."""
        with self._changed:
            self._was_held |= self._held
            self._held = False
            if self._gain == DUCKED:
                self._set_gain(1.0)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._stop()
        self._thread.join()

    def _forget(self) -> None:
        self._waiting = self._recent = np.zeros(0, np.float32)  # recent: the last that was published
        self._published = 0  # samples
        self._ended = False
        self._heard_at = float("-inf")  # when the last published sample will have been heard

    def _stop(self) -> None:
        if self._response is not None:
            self._heard = self._published - self._recall()
            self.silent_since = max(self.silent_since, self._heard_at)
            if self._gain == DUCKED:
                self._set_gain(1.0)
        self._response = None
        self._forget()
        self._changed.notify_all()
        self._set_speaking(False)

    def _fail(self, error: Exception) -> None:
        self._on_failure(error)
        self.cancel()

    def _set_speaking(self, speaking: bool) -> None:
        if speaking != self.speaking:
            self.speaking = speaking
            try:
                self._on_speaking(speaking)
            except Exception as error:  # noqa: BLE001 - whoever stops the speech is not to blame for what listens to it
                self._on_failure(error)

    @property
    def _unheard(self) -> float:
        """Seconds of speech that were published and not played yet."""
        return max(0.0, self._heard_at - self._clock.now())

    def _recall(self) -> int:
        """Silence the loudspeaker; returns how many of the published samples will not be played."""
        unheard = min(round(self._unheard * SAMPLE_RATE), self._recent.size)
        if not unheard or not self._set_gain(0.0):
            return 0
        self._heard_at = self._clock.now()
        return unheard

    def _set_gain(self, gain: float) -> bool:
        """Whether a loudspeaker obeys."""
        rises, self._gain = gain > 0 and not self._gain, gain
        try:
            obeyed = self._on_gain(gain)
        except Exception as error:  # noqa: BLE001 - as in _set_speaking
            self._on_failure(error)
            return False
        if rises and obeyed:
            self._settled_at = self._clock.now() + SETTLE
        return obeyed

    def _run(self) -> bool:
        with self._changed:
            if not self._closed:
                self._changed.wait(self._step())
            return not self._closed

    def _step(self) -> float | None:
        """Publish what is due and return the seconds until there may be more to do (None: until notified)."""
        while self._response is not None:
            now = self._clock.now()
            ahead = self._heard_at - now
            # A part of a chunk goes out alone only when waiting for the rest would be heard as silence.
            dry = ahead <= SLACK
            due = self._waiting.size >= self._chunk or (self._waiting.size > 0 and (self._ended or dry))
            if self._held and self._waiting.size:
                return None
            if due and ahead >= self._lead:
                return ahead - self._lead + 1e-3
            if due and not self._gain:
                self._set_gain(1.0)
            if due and now < self._settled_at:
                return self._settled_at - now + 1e-3
            if due:
                chunk, self._waiting = np.split(self._waiting, [self._chunk])
                self._recent = np.concatenate([self._recent, chunk])[-self._recallable :]
                self.gaps += self.speaking and ahead < 0 and not self._was_held
                self._was_held = False
                self._set_speaking(True)
                self._publish(chunk)
                self._heard_at = max(self._heard_at, now) + chunk.size / SAMPLE_RATE
                self._published += chunk.size
                if self._first_at is None:
                    self._first_at = now
                    self._changed.notify_all()
            elif self._waiting.size:
                return ahead - SLACK + 1e-3
            elif not self._ended:
                return None
            elif ahead > 0:
                return ahead + 1e-3
            else:
                self._stop()
        return None
