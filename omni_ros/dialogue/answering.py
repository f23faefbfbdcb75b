"""How one turn is answered: passes of the model, the tools that it calls between them, and what is told and remembered."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from omni_ros.dialogue.clock import Clock
from omni_ros.dialogue.heard import TOKENS_PER_SECOND, Answer
from omni_ros.dialogue.history import History
from omni_ros.dialogue.latency import Latency
from omni_ros.dialogue.say import say_request
from omni_ros.dialogue.speech_pacer import SpeechPacer
from omni_ros.dialogue.tools import Tools, ToolTurn
from omni_ros.dialogue.turn import Outcome, UserTurn, content, describe
from omni_ros.errors import PromptTooLongError, RunawayError
from omni_ros.pipeline.request import AudioChunk, Event, Finished, Request, TextDelta, TextFinished, ToolCall


@dataclass
class Progress:
    """What is known of an answer while it is made."""

    tools: ToolTurn
    content: list[dict[str, Any]] = field(default_factory=list)  # the parts of the user's message
    answer: Answer = field(default_factory=Answer)
    calls: list[ToolCall] = field(default_factory=list)  # of the pass that runs
    ended: str = ""  # why its text did
    before: int = 0  # characters of the answer before it
    audio_reasons: list[str] = field(default_factory=list)  # of each pass
    began: float | None = None  # the conversation was asked
    first_text: float | None = None
    first_audio: float | None = None
    ran_away: bool = False  # the model, in mid-answer: what it said before is remembered

    def text(self, delta: str) -> str:
        """More text; what the passes say does not run together."""
        first = self.before and len(self.answer.text) == self.before
        return " " + delta if first and delta and not delta[0].isspace() else delta

    @property
    def audio_reason(self) -> str:
        """Why the speech ended: of one that was cut short, why it was."""
        reasons = [reason for reason in self.audio_reasons if reason != "none"]
        return next((reason for reason in reasons if reason != "stop"), reasons[0] if reasons else "none")


class Answering:
    """Answers turns, one at a time, on the worker's thread."""

    def __init__(
        self,
        conversation,
        speech: SpeechPacer,
        history: History,
        *,
        changed: Any,  # the worker's lock: it guards the history, and cancel() is called inside it
        is_closed: Callable[[UserTurn], bool],  # waits until the turn is, or was withdrawn
        may_tell: Callable[[UserTurn], bool],  # as is_closed, and it stays so
        system_prompt: Callable[[], str],
        options: Callable[[], dict[str, Any]],  # Request's generation arguments
        tools: Tools,
        on_text: Callable[[str], None],
        on_response: Callable[[str, str], None],  # the whole text, once it is written, and why it ended
        on_outcome: Callable[[Outcome], None],  # before the speech was heard to its end
        clock: Clock,
    ) -> None:
        self._conversation = conversation
        self._speech = speech
        self._history = history
        self._changed = changed
        self._is_closed = is_closed
        self._may_tell = may_tell
        self._system_prompt = system_prompt
        self._options = options
        self._tools = tools
        self._on_text = on_text
        self._on_response = on_response
        self._on_outcome = on_outcome
        self._clock = clock
        self._tokens_per_second = TOKENS_PER_SECOND

    def run(self, turn: UserTurn) -> bool:
        """From its beginning until its speech was heard or stopped; whether the history has it now."""
        progress = Progress(self._tools.turn())
        outcome = self._answer(turn, progress)
        if not self._may_tell(turn):
            return False
        turn.answered = True
        self._on_outcome(outcome)
        heard = self._speech.end(turn.response)
        # What was done or said must not be forgotten, whatever failed after it.
        if not outcome.error or progress.ran_away or progress.tools.steps:
            return self._remember(turn, progress, heard, failed=bool(outcome.error))
        return False

    def _remember(self, turn: UserTurn, progress: Progress, heard: int, failed: bool) -> bool:
        content, answer, tools = progress.content, progress.answer, progress.tools
        if answer.whole and not turn.cancelled and (voice := answer.voice(answer.samples)):
            spoken = sum(count for _, count in answer.pieces) / voice
            self._tokens_per_second += 0.5 * (spoken - self._tokens_per_second)
        with self._changed:
            if turn.forgotten:
                return False
            stopped = turn.cancelled or failed
            words = answer.heard(heard, self._tokens_per_second) if stopped else answer.text
            if stopped := stopped and not (answer.whole and words == answer.text.rstrip()):
                self._history.add_interrupted(content, words, tools.steps)
            else:
                self._history.add(content, answer.text[len(tools.said) :].lstrip() if tools.said else answer.text, tools.steps)
            self._tools.turn_over(tools, heard=not stopped)
            return True

    def _answer(self, turn: UserTurn, progress: Progress) -> Outcome:
        answer = progress.answer
        try:
            progress.content = [*content(turn.picture, turn.said), *filter(None, [turn.context()])]
            finished = self._generate(turn, progress)
        except Exception as error:  # noqa: BLE001 - a defect must cost this turn, not the robot's voice
            self._speech.cancel()
            if isinstance(error, RunawayError):
                progress.ran_away = True
                answer.drop_last(error.repeated)
            return Outcome(
                "error",
                text=answer.text,
                error=describe(error),
                first_text=progress.first_text,
                first_audio=progress.first_audio,
                latency=self._latency(turn, progress, {}),
            )
        if finished is None:
            return Outcome("cancelled")
        answer.whole = progress.audio_reason == "stop" or (not answer.spoken and finished.reason != "cancelled")
        reason = "cancelled" if turn.cancelled else finished.reason
        return Outcome(
            reason,
            progress.audio_reason,
            progress.answer.text if progress.tools.steps else finished.text,
            latency=self._latency(turn, progress, finished.metrics),
            first_text=progress.first_text,
            first_audio=progress.first_audio,
            metrics=finished.metrics
            | progress.tools.metrics
            | ({"eager_s": turn.closed_at - turn.opened_at} if turn.opened_at is not None else {}),
        )

    def _latency(self, turn: UserTurn, progress: Progress, metrics: dict[str, Any]) -> Latency:
        played_at = self._speech.first_played()
        spoken_until = turn.closed_at if turn.spoken_until is None else turn.spoken_until
        return Latency.measure(spoken_until, turn.closed_at, progress.began, metrics, played_at)

    def _generate(self, turn: UserTurn, progress: Progress) -> Finished | None:
        """The answer: passes of the model, between which its tool calls are carried out."""
        while True:
            progress.before, progress.calls = len(progress.answer.text), []
            finished = self._pass(turn, progress)
            if finished is None or not progress.calls:
                return finished
            take = progress.tools.take
            if not (self._may_act(turn) and take(progress.answer.text, progress.calls, lambda: turn.cancelled)):
                if not turn.cancelled:
                    self._on_response(progress.answer.text, progress.ended)
                return finished

    def _may_act(self, turn: UserTurn) -> bool:
        """Whether what the model asks for in this turn may be done: never before it is certain that the user has ended."""
        return self._may_tell(turn) and not turn.cancelled

    def _pass(self, turn: UserTurn, progress: Progress) -> Finished | None:
        """One pass of the model, with as much of the history as there is room for."""
        dropped = 0
        while True:
            with self._changed:
                remembered = len(self._history)
                messages = self._history.messages(self._system_prompt(), progress.content, skip=dropped) + progress.tools.steps
            # what people say and type is data: no word of theirs is a command to the chat template
            options = {"tools": self._tools.offer, **self._options()}
            request = say_request(turn.say, messages, options) if turn.say else Request(messages, special_tokens=False, **options)
            progress.answer.spoken = request.audio_output
            progress.began = self._clock.now()
            try:
                finished = self._play(turn, request, progress)
            except PromptTooLongError:
                if dropped >= remembered:  # the new turn alone is too long; the history is not to blame
                    raise
                dropped += 1
            else:
                with self._changed:
                    self._history.drop(0 if turn.open else dropped)
                return finished

    def _play(self, turn: UserTurn, request: Request, progress: Progress) -> Finished | None:
        """Hand on what the conversation makes, as it is made; None for a turn that was cancelled before it began."""
        with self._changed:  # no cancel() can fall between the look at the turn and the conversation's hearing of it
            events = None if turn.cancelled else self._conversation.generate(request)
        if events is None:
            return None
        finished: Finished | None = None
        with closing(events):  # whatever is raised here, the conversation must not stay busy
            for event, at in self._told(turn, request, events):
                since = at - turn.closed_at
                if isinstance(event, Finished):
                    finished = event
                    progress.audio_reasons.append(event.audio_reason)
                elif turn.cancelled:
                    continue  # it was made before the conversation heard of it
                elif isinstance(event, TextDelta):
                    progress.first_text = since if progress.first_text is None else progress.first_text
                    text = progress.text(event.text)
                    progress.answer.pieces.append((text, len(event.token_ids)))
                    if not turn.say:
                        self._on_text(text)
                elif isinstance(event, ToolCall):
                    progress.calls.append(event)
                elif isinstance(event, TextFinished):
                    progress.ended = event.reason
                    if not (progress.calls or turn.say):
                        self._on_response(progress.answer.text, event.reason)
                elif isinstance(event, AudioChunk) and event.pcm.size:
                    progress.first_audio = since if progress.first_audio is None else progress.first_audio
                    progress.answer.hear(event.pcm)
                    self._speech.push(turn.response, event.pcm)
        return finished

    def _told(self, turn: UserTurn, request: Request, events: Iterable[Event]) -> Iterator[tuple[Event, float]]:
        """The events of a closed turn, and when they were made. The words before the first sound come with it: who goes on until
        then has not been interrupted, and the turn can still be taken back."""
        early: list[tuple[Event, float]] = []
        spoken = turn.said is not None and turn.said["type"] == "audio" and request.audio_output
        for event in events:
            self._is_closed(turn)
            early.append((event, self._clock.now()))
            if not (turn.told or (spoken and isinstance(event, TextDelta))):
                self._may_tell(turn)
            if turn.told or turn.cancelled:
                yield from early
                early = []
        yield from early
