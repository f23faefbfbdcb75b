"""A stand-in for the model: answers that are written and spoken at a given pace, on a dialogue's clock."""

import re
from collections.abc import Iterator

import numpy as np

from omni_ros.errors import PromptTooLongError
from omni_ros.pipeline.request import AudioChunk, Event, Finished, Request, TextDelta, TextFinished, ToolCall

CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|$)", re.DOTALL)
FRAME = 1920  # samples of one codec frame
PREFILL = 0.1  # seconds
PER_TOKEN = 0.05
PER_FRAME = 0.04


class ScriptedModel:
    """As a Conversation: generate, feed, cancel, reset. The n-th answer is `answers[n]`, `frames_per_word` long; every sample
    of its speech is n + 1 hundredths, by which it is known again. Answers are counted, or numbered by `number`. Tool calls in an
    answer are made after its words."""

    def __init__(self, clock, answers: list[str], frames_per_word: int = 4, room: int = 10**9) -> None:
        self.clock = clock
        self.answers = answers
        self.frames_per_word = frames_per_word
        self.room = room  # messages that fit into a prompt
        self.requests: list[Request] = []
        self.fed: list[tuple[float, list[dict], bool]] = []  # when it began, what, and whether it was finished
        self.resets = 0
        self.feeding = 0.3  # seconds
        self.fault: Exception | None = None
        self.number = lambda request: len(self.requests)
        self.fault_after = 0  # words; 0: before the first
        self._changed = clock.condition()
        self._cancelled = False

    def generate(self, request: Request) -> Iterator[Event]:
        self._cancelled = False
        return self._play(request)

    def _play(self, request: Request) -> Iterator[Event]:
        if len(request.messages) > self.room:
            raise PromptTooLongError(f"{len(request.messages)} messages")
        fault, self.fault = self.fault, None
        if fault is not None and not self.fault_after:
            raise fault
        number = self.number(request)
        self.requests.append(request)
        answer = request.say or self.answers[number % len(self.answers)]
        calls = [ToolCall(call, end != "") for call, end in CALL.findall(answer)] if request.tools is not None else []
        text = CALL.sub("", answer).strip()
        words = [word + " " for word in text.split()] or [""]
        words[-1] = words[-1].rstrip()
        frames = len(words) * self.frames_per_word if request.audio_output and text else 0
        timeline = [(PREFILL + i * PER_TOKEN, 0, word) for i, word in enumerate(words)]
        timeline += [(PREFILL + i * PER_FRAME + PER_TOKEN, 1, i) for i in range(frames)]
        began, written = self.clock.now(), []
        if not words:
            self._wait(began + PREFILL)
            yield TextFinished("", [], "stop")
        for at, kind, what in sorted(timeline):
            if self._wait(began + at):
                yield Finished("".join(written), [], np.zeros((16, 0)), "cancelled", "cancelled")
                return
            if kind == 0:
                written.append(what)
                if what:
                    yield TextDelta(what, [len(written)])
                if fault is not None and len(written) == self.fault_after:
                    yield TextFinished("".join(written), [], "runaway")
                    raise fault
                if len(written) == len(words):
                    yield from calls
                    yield TextFinished(text, [], "stop")
            else:
                yield AudioChunk(np.full(FRAME, (number + 1) / 100, np.float32), False)
        yield Finished(text, [], np.zeros((16, frames)), "stop", "stop" if frames else "none", {"reply_tokens": len(words)})

    def feed(self, messages: list[dict], special_tokens: bool = True, tools: list | None = None) -> None:
        if len(messages) > self.room:
            raise PromptTooLongError(f"{len(messages)} messages")
        self._cancelled = False
        began = self.clock.now()
        self.fed.append((began, messages, not self._wait(began + self.feeding)))

    def cancel(self) -> None:
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def reset(self) -> None:
        self.resets += 1

    def _wait(self, until: float) -> bool:
        """Whether cancel() came first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._cancelled, until - self.clock.now())
