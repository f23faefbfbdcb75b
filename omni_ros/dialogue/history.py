"""The conversation so far, as the messages of the next request."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from omni_ros.dialogue.heard import INTERRUPTED

Message = dict[str, Any]


class History:
    """System prompt and the last `turns` exchanges. Messages have the form of a request file's `messages`.

    A past exchange keeps the user's words and speech but not the pictures: a camera frame costs hundreds of tokens
    and shows what the robot no longer sees. Sound stays the same array, by which a conversation knows it again.
    """

    def __init__(self, turns: int) -> None:
        self._exchanges: deque[list[Message]] = deque(maxlen=turns)

    def __len__(self) -> int:
        """Exchanges."""
        return len(self._exchanges)

    @property
    def last_answer(self) -> str:
        """As it is remembered: of one that was cut off, the words that were heard."""
        exchange = [message for exchange in list(self._exchanges)[-1:] for message in exchange]
        return " ".join(text for message in exchange[1:] if message["role"] == "assistant" and (text := _text(message)))

    def messages(self, system_prompt: str, content: list[dict] | None = None, skip: int = 0) -> list[Message]:
        """What is remembered without the `skip` oldest exchanges, and a new user turn of `content`, if there is one."""
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        past = [message for exchange in list(self._exchanges)[skip:] for message in exchange]
        return [*system, *past, *([{"role": "user", "content": content}] if content else [])]

    def add(self, content: list[dict], answer: str, steps: Sequence[Message] = ()) -> None:
        """Remember a finished turn; `steps` are the tool calls before the end of its answer, and their results."""
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        self._exchanges.append([_without_pictures(content), *steps, reply])

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
        else:
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


def _without_pictures(content: list[dict]) -> Message:
    return {"role": "user", "content": [part for part in content if part["type"] in ("text", "audio")]}
