"""What the model does while nobody waits for an answer: it reads what the next turn will begin with, and writes down the last."""

from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from omni_ros.dialogue.history import History
from omni_ros.dialogue.tools import Tools
from omni_ros.dialogue.transcript import transcript_request
from omni_ros.dialogue.turn import Look, Part, content
from omni_ros.errors import PromptTooLongError
from omni_ros.pipeline.request import Finished

Spoken = tuple[Look | None, Part | None]  # picture and sound of the turn that the user is speaking, as far as they are known


class ReadAhead:
    """Its `run` is for the worker's thread; everything else is called under the worker's lock."""

    def __init__(
        self,
        conversation,
        history: History,
        tools: Tools,
        *,
        changed: Any,  # the worker's lock
        is_wanted: Callable[[], bool],  # a turn waits: nothing may begin any more
        system_prompt: Callable[[], str],
        transcribes: Callable[[], bool],  # whether on_transcript wants to know
        on_transcript: Callable[[str], None],  # the user's words, some time after the answer
    ) -> None:
        self._conversation = conversation
        self._history = history
        self._tools = tools
        self._changed = changed
        self._is_wanted = is_wanted
        self._system_prompt = system_prompt
        self._transcribes = transcribes
        self._on_transcript = on_transcript
        self.due = True  # there is more to read than when it last was
        self.untold = False  # the words of the last turn were not written down yet
        self._spoken: Spoken = (None, None)
        self._reading = False
        self._transcribing = False

    def prepare(self, picture: Look | None, said: Part | None) -> None:
        """What is known of the turn that the user is speaking; neither: there is none."""
        self._spoken = picture, said
        if picture or said:
            self.due = True
            if self._transcribing:  # the user who speaks goes first
                self._conversation.cancel()

    def stop(self) -> None:
        """A turn begins."""
        if self._reading:
            self._conversation.cancel()

    def stop_for_now(self) -> None:
        """One that may be withdrawn begins: then this is to be done again."""
        self.due |= self._reading
        self.stop()

    def begin(self) -> Spoken:
        """What is to be read now."""
        self._reading = True
        return self._spoken

    def run(self, spoken: Spoken) -> None:
        try:
            self._transcribe(wanted=not any(spoken))
        finally:
            self._feed(*spoken)

    def _transcribe(self, wanted: bool) -> None:
        """Write down what the user said, unless a new turn begins or comes: that cancels it as it cancels a feed."""
        untold, self.untold = self.untold, False
        if not (untold and wanted and self._transcribes()):
            return
        with self._changed:
            request = transcript_request(self._history.messages(self._system_prompt()), self._tools.offer)
            if request is None or self._is_wanted():
                return
            events, self._transcribing = self._conversation.generate(request), True
        try:
            with closing(events), suppress(PromptTooLongError):  # there is room for the history, but for no question more
                for event in events:
                    if isinstance(event, Finished) and event.reason != "cancelled" and event.text.strip():
                        self._on_transcript(event.text.strip())
        finally:
            with self._changed:
                self._transcribing = False

    def _feed(self, picture: Look | None, said: Part | None) -> None:
        """Compute ahead what the next turn will begin with, in a history as short as it will be; nobody waits for it then."""
        try:
            parts, skip = content(picture, said), 0
            while True:
                with self._changed:
                    remembered = len(self._history)
                    messages = self._history.messages(self._system_prompt(), parts, skip)
                if not messages and self._tools.offer:  # they stand ahead of everything
                    messages = [{"role": "user", "content": ""}]
                try:
                    if messages and not self._is_wanted():  # a cancel() from here on is the conversation's to hear
                        self._conversation.feed(messages, special_tokens=False, tools=self._tools.offer)
                    return
                except PromptTooLongError:
                    if skip >= remembered:
                        return
                    skip += 1
        finally:
            with self._changed:
                self._reading = False
