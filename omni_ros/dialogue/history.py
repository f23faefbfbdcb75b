"""The conversation so far, as the messages of the next request."""

from collections import deque
from collections.abc import Sequence
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
        exchange = [message for exchange in list(self._exchanges)[-1:] for message in exchange]
        if [message["role"] for message in exchange[-2:]] in (["assistant"], ["assistant", "assistant"]):
            return _text(exchange[-1])  # it spoke by itself
        return " ".join(text for message in exchange[1:] if message["role"] == "assistant" and (text := _text(message)))

    def messages(self, system_prompt: str, content: list[dict] | None = None, skip: int = 0) -> list[Message]:
        """What is remembered without the `skip` oldest exchanges, and a new user turn of `content`, if there is one."""
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        past = [message for exchange in list(self._exchanges)[skip:] for message in exchange]
        return [*system, *past, *([{"role": "user", "content": content}] if content else [])]

    def add(self, content: list[dict], answer: str, steps: Sequence[Message] = ()) -> None:
        """Remember a finished turn; `steps` are the tool calls before the end of its answer, and their results. A turn without
        `content`, of which the robot spoke by itself, goes with the exchange before."""
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        if content:
            self._exchanges.append([_without_pictures(content), *steps, reply])
            return
        last = self._exchanges.pop() if self._exchanges else []
        in_a_row = next((i for i, message in enumerate(reversed(last)) if message["role"] != "assistant"), len(last))
        if in_a_row >= self.MOST_SAID:
            del last[len(last) - in_a_row + (in_a_row < len(last))]  # the oldest, but for the answer to the user
        self._exchanges.append([*last, reply])

    def add_interrupted(self, content: list[dict], heard: str, steps: Sequence[Message] = ()) -> None:
        """Remember a turn whose answer was cut off after the words `heard`; of one that began no word, the question. What tools
        have done stays, whether or not a word about it was heard."""
        kept = []
        for step in steps:
            if (said := _text(step)) and step["role"] == "assistant":
                if whole := heard.startswith(said):
                    heard = heard[len(said) :].lstrip()
                step = {**step, "content": said if whole else heard + INTERRUPTED if heard else ""}
                heard = heard if whole else ""
            kept.append(step)
        if heard:
            self.add(content, heard + INTERRUPTED, kept)
        elif content:
            self._exchanges.append([_without_pictures(content), *kept])

    def drop(self, count: int) -> None:
        """Forget the `count` oldest exchanges."""
        for _ in range(min(count, len(self._exchanges))):
            self._exchanges.popleft()

    def clear(self) -> None:
        self._exchanges.clear()


def _text(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else content[0]["text"]


def _lasts(part: dict) -> bool:
    return part["type"] in ("text", "audio") and not part.get("passing")


def _without_pictures(content: list[dict]) -> Message:
    return {"role": "user", "content": [part for part in content if _lasts(part)]}
