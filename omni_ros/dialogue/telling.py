"""What a dialogue tells its face, beside words and sound as they come: its state, how turns ended, replies for programs."""

from collections.abc import Callable

from omni_ros.dialogue.clock import Clock
from omni_ros.dialogue.face import Face
from omni_ros.dialogue.structured import ResponseSchema
from omni_ros.dialogue.tools import ToolReport
from omni_ros.dialogue.turn import Outcome
from omni_ros.errors import InputError


class Telling:
    """Called from all of the dialogue's threads."""

    def __init__(self, face: Face, schema: ResponseSchema | None, state: Callable[[], str], clock: Clock) -> None:
        self._face = face
        self._schema = schema
        self._state_now = state
        self._state = ""
        self._lock = clock.condition()  # the state changes on many threads; what is told must keep its order
        self.last_failed = False  # the newest turn

    def state(self) -> None:
        """Something happened that may have changed it."""
        with self._lock:
            if (state := self._state_now()) != self._state:
                self._state = state
                self._face.state(state)

    def speaking(self, speaking: bool) -> None:
        self._face.speaking(speaking)
        self.state()

    def response(self, text: str, ended: str) -> None:
        self._face.response(text)
        if self._schema is not None:
            try:
                line = self._schema.read(text, ended)
            except InputError as error:
                self._face.bad_input("response_json", error)
            else:
                self._face.response_json(line)

    def tool(self, report: ToolReport) -> None:
        try:
            self._face.tool(report)
        except Exception as error:  # noqa: BLE001 - what the tool did is not to be forgotten for it
            self._face.failed(error)

    def outcome(self, outcome: Outcome) -> None:
        if outcome.reason != "dropped":
            self.last_failed = bool(outcome.error)
        self._face.outcome(outcome)
