"""What the robot is told to say: words of its program in its own voice, which the model only speaks."""

from collections import deque
from typing import Any

from omni_ros.dialogue.history import Message
from omni_ros.dialogue.turn import UserTurn
from omni_ros.errors import InputError
from omni_ros.pipeline.request import Request

MOST_WAITING = 16  # texts
LONGEST = 10_000  # letters, some ten minutes of speech


class SayQueue:
    """Texts that wait to be said, oldest first. Whoever has it guards it by a lock."""

    def __init__(self) -> None:
        self._turns: deque[UserTurn] = deque()
        self._urgent = False  # the first of them waits for nobody
        self.held = False  # the user speaks: only what is urgent is said

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def ready(self) -> bool:
        return bool(self._turns) and (self._urgent or not self.held)

    def add(self, turn: UserTurn, *, urgent: bool) -> None:
        """An urgent text takes the place of all that wait. Raises InputError when too many do."""
        if urgent:
            self.clear()
        elif len(self._turns) >= MOST_WAITING:
            raise InputError(f"{MOST_WAITING} texts wait to be said already: publish fewer, or join them")
        self._turns.append(turn)
        self._urgent = self._urgent or urgent

    def take(self, user_waits: bool) -> UserTurn | None:
        """The next text to say; whom the user waits for goes first, unless it is urgent."""
        if not self.ready or (user_waits and not self._urgent):
            return None
        self._urgent = False
        return self._turns.popleft()

    def clear(self) -> None:
        self._turns.clear()
        self._urgent = False


def say_turn(text: str, now: float) -> UserTurn:
    """Raises InputError for a text that cannot be said."""
    if not (text := text.strip()):
        raise InputError("the text is empty")
    if len(text) > LONGEST:
        raise InputError(f"a text of {len(text)} letters is too long to be said, the limit is {LONGEST}: say it in pieces")
    return UserTurn(None, None, closed_at=now, say=text)


def say_request(text: str, history: list[Message], options: dict[str, Any]) -> Request:
    """The robot goes on speaking where the history ends. The model was never taught to speak to nobody: where no user has
    spoken yet, one has said nothing."""
    nobody = [] if any(message["role"] == "user" for message in history) else [{"role": "user", "content": ""}]
    return Request([*history, *nobody], special_tokens=False, **{**options, "audio_output": True, "say": text})
