"""The conversation so far, as the messages of the next request."""

from collections import deque


class History:
    """System prompt and the last `turns` exchanges. Messages have the form of a request file's `messages`.

    A past exchange keeps the user's words and speech but not the pictures: a camera frame costs hundreds of tokens
    and shows what the robot no longer sees.
    """

    def __init__(self, turns: int) -> None:
        self._exchanges: deque[list[dict]] = deque(maxlen=turns)

    def messages(self, system_prompt: str, content: list[dict]) -> list[dict]:
        """The request for a new user turn of `content`."""
        system = [{"role": "system", "content": [{"type": "text", "text": system_prompt}]}] if system_prompt else []
        past = [message for exchange in self._exchanges for message in exchange]
        return [*system, *past, {"role": "user", "content": content}]

    def add(self, content: list[dict], answer: str) -> None:
        """Remember a finished turn."""
        kept = [part for part in content if part["type"] in ("text", "audio")]
        reply = [{"type": "text", "text": answer}]
        self._exchanges.append([{"role": "user", "content": kept}, {"role": "assistant", "content": reply}])

    def drop_oldest(self) -> bool:
        """Forget the oldest exchange; False when there is none."""
        if not self._exchanges:
            return False
        self._exchanges.popleft()
        return True

    def clear(self) -> None:
        self._exchanges.clear()
