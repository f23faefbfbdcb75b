"""The conversation so far, as the messages of the next request."""

from collections import deque
from typing import Any

from omni_ros.dialogue.heard import INTERRUPTED

Message = dict[str, Any]


class History:
    """System prompt and the last `turns` exchanges. Messages have the form of a request file's `messages`.

    A past exchange keeps the user's words and speech but not the pictures: a camera frame costs hundreds of tokens
    and shows what the robot no longer sees. Nor does it keep texts that are marked as passing, as facts with an age are.
    Sound stays the same array, by which a conversation knows it again.
    """

    MOST_SAID = 8  # answers and announcements that one exchange is remembered with: a robot may talk all day to nobody

    def __init__(self, turns: int) -> None:
        self._exchanges: deque[list[Message]] = deque(maxlen=turns)

    def __len__(self) -> int:
        """Exchanges."""
        return len(self._exchanges)

    @property
    def last_answer(self) -> str:
        """As it is remembered: of one that was cut off, the words that were heard."""
        said = [message for exchange in list(self._exchanges)[-1:] for message in exchange if message["role"] == "assistant"]
        return said[-1]["content"][0]["text"] if said else ""

    def messages(self, system_prompt: str, content: list[dict] | None = None, skip: int = 0) -> list[Message]:
        """What is remembered without the `skip` oldest exchanges, and a new user turn of `content`, if there is one."""
        system = [{"role": "system", "content": [{"type": "text", "text": system_prompt}]}] if system_prompt else []
        past = [message for exchange in list(self._exchanges)[skip:] for message in exchange]
        return [*system, *past, *([{"role": "user", "content": content}] if content else [])]

    def add(self, content: list[dict], answer: str) -> None:
        """Remember a finished turn; one without `content`, of which the robot spoke by itself, goes with the exchange before."""
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        if content:
            self._exchanges.append([_without_pictures(content), reply])
            return
        last = self._exchanges.pop() if self._exchanges else []
        said = [message for message in last if message["role"] == "assistant"][1 - self.MOST_SAID :]
        self._exchanges.append([*(message for message in last if message["role"] == "user"), *said, reply])

    def add_interrupted(self, content: list[dict], heard: str) -> None:
        """Remember a turn whose answer was cut off after the words `heard`; of one that began no word, the question."""
        if heard:
            self.add(content, heard + INTERRUPTED)
        elif content:
            self._exchanges.append([_without_pictures(content)])

    def drop(self, count: int) -> None:
        """Forget the `count` oldest exchanges."""
        for _ in range(min(count, len(self._exchanges))):
            self._exchanges.popleft()

    def clear(self) -> None:
        self._exchanges.clear()


def _lasts(part: dict) -> bool:
    return part["type"] in ("text", "audio") and not part.get("passing")


def _without_pictures(content: list[dict]) -> Message:
    return {"role": "user", "content": [part for part in content if _lasts(part)]}
