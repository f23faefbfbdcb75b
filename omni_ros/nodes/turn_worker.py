"""Answers turns on its own thread, one at a time, so that ROS callbacks only hand them over."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from omni_ros.dialogue.history import History
from omni_ros.errors import OmniError, PromptTooLongError
from omni_ros.nodes.speech_publisher import SpeechPublisher
from omni_ros.pipeline.request import AudioChunk, Finished, Request, TextDelta, TextFinished


@dataclass
class UserTurn:
    """One user turn. `content` is called on the worker's thread: decoding a picture is too slow for a callback."""

    content: Callable[[], list[dict[str, Any]]]  # the parts of the user's message
    closed_at: float = field(default_factory=time.monotonic)  # when the user had finished
    response: int = 0
    cancelled: bool = False
    answered: bool = False  # the pipeline is done with it; its speech may still be heard


@dataclass
class Outcome:
    """How a turn went. Times are seconds since the user had finished."""

    reason: str  # stop | length | kv_cache_full | cancelled | error
    text: str = ""
    error: str = ""
    first_text: float | None = None
    first_audio: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)  # the pipeline's


def describe(error: Exception) -> str:
    """Our own errors explain themselves; of others the type is half of the message."""
    return str(error) if isinstance(error, OmniError) else f"{type(error).__name__}: {error}"


class TurnWorker:
    """Runs the newest submitted turn; at most one more waits. A turn lasts until its speech was heard."""

    def __init__(
        self,
        pipeline,
        speech: SpeechPublisher,
        history: History,
        *,
        system_prompt: Callable[[], str],
        options: Callable[[], dict[str, Any]],  # Request's generation arguments
        on_text: Callable[[str], None],
        on_response: Callable[[str], None],  # the whole text, once it is written
        on_outcome: Callable[[Outcome], None],  # before the speech was heard to its end
        on_change: Callable[[], None],  # a turn began or ended
    ) -> None:
        self._pipeline = pipeline
        self._speech = speech
        self._history = history
        self._system_prompt = system_prompt
        self._options = options
        self._on_text = on_text
        self._on_response = on_response
        self._on_outcome = on_outcome
        self._on_change = on_change
        # Guards the four below and the history. Pipeline.cancel() is called inside it, to hit no turn but its own.
        self._changed = threading.Condition()
        self._waiting: UserTurn | None = None
        self._current: UserTurn | None = None
        self._responses = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="turns", daemon=True)
        self._thread.start()

    @property
    def thinking(self) -> bool:
        """Whether a turn waits for its answer or is being answered."""
        current = self._current
        return self._waiting is not None or (current is not None and not current.answered)

    @property
    def waiting(self) -> int:
        return int(self._waiting is not None)

    def submit(self, turn: UserTurn, *, preempt: bool) -> None:
        """Answer `turn` next, in place of any that still waits; `preempt` stops the one in progress."""
        with self._changed:
            self._waiting = turn
            if preempt:
                self._cancel_current()
            self._changed.notify_all()

    def cancel(self) -> bool:
        """Stop the answer in progress and drop the waiting turn; False when there was neither."""
        with self._changed:
            stopped = self._current is not None or self._waiting is not None
            self._waiting = None
            self._cancel_current()
            return stopped

    def forget(self) -> None:
        """Stop, and forget the conversation."""
        with self._changed:
            self.cancel()
            self._history.clear()

    def close(self, timeout: float) -> bool:
        """Stop for good; False when the turn in progress did not reach its next decode step in time."""
        with self._changed:
            self._closed = True
            self.cancel()
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _cancel_current(self) -> None:
        if self._current is not None and not self._current.cancelled:
            self._current.cancelled = True
            self._pipeline.cancel()
            self._speech.cancel()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                if self._closed:
                    return
                turn, self._waiting = self._waiting, None
                self._current = turn
                self._responses += 1
                turn.response = self._responses
                self._speech.begin(turn.response)
            self._on_change()
            outcome = self._answer(turn)
            turn.answered = True
            self._on_outcome(outcome)
            self._speech.end(turn.response)
            with self._changed:
                self._current = None
            self._on_change()

    def _answer(self, turn: UserTurn) -> Outcome:
        outcome = Outcome("error")
        try:
            content = turn.content()
            finished = self._generate(turn, content, outcome)
        except Exception as error:  # noqa: BLE001 - a defect must cost this turn, not the robot's voice
            outcome.error = describe(error)
        else:
            outcome.reason = "cancelled" if turn.cancelled else finished.reason
            outcome.text, outcome.metrics = finished.text, finished.metrics
            with self._changed:
                if not turn.cancelled:
                    self._history.add(content, finished.text)
        if outcome.error:
            self._speech.cancel()
        return outcome

    def _generate(self, turn: UserTurn, content: list[dict[str, Any]], outcome: Outcome) -> Finished:
        while True:
            with self._changed:
                messages = self._history.messages(self._system_prompt(), content)
            try:
                return self._stream(turn, Request(messages, **self._options()), outcome)
            except PromptTooLongError:
                with self._changed:
                    if not self._history.drop_oldest():  # the new turn alone is too long
                        raise

    def _stream(self, turn: UserTurn, request: Request, outcome: Outcome) -> Finished:
        for event in self._pipeline.generate(request):
            since = time.monotonic() - turn.closed_at
            if isinstance(event, Finished):
                finished = event
            elif turn.cancelled:  # before generate() had begun, so that its cancel() had nothing to stop
                self._pipeline.cancel()
            elif isinstance(event, TextDelta):
                outcome.first_text = outcome.first_text or since
                self._on_text(event.text)
            elif isinstance(event, TextFinished):
                self._on_response(event.text)
            elif isinstance(event, AudioChunk) and event.pcm.size:
                outcome.first_audio = outcome.first_audio or since
                self._speech.push(turn.response, event.pcm)
        return finished  # always the last event
