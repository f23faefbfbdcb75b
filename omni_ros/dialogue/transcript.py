"""The user's words in writing: a second, short pass of the Thinker over sound that it has read already."""

from typing import Any

from omni_ros.dialogue.history import Message
from omni_ros.pipeline.request import Request

PROMPT = "Write down word for word what I just said, and nothing else."
LONGEST = 256  # tokens


def transcript_request(history: list[Message], tools: list[dict[str, Any]] | None = None) -> Request | None:
    """What to ask after the turn that `history` ends with, `tools` being on offer; None when nothing was spoken in it.

    It begins as the history does, up to the sound, whose rows are in the Thinker's cache or will be needed there: the next
    turn begins so, too.
    """
    # What tools have answered has the user's role, too, and is a string.
    asked = [i for i, message in enumerate(history) if message["role"] == "user" and isinstance(message["content"], list)]
    if not asked or not any(part["type"] == "audio" for part in history[asked[-1]]["content"]):
        return None
    last = history[asked[-1]]
    question = {**last, "content": [*last["content"], {"type": "text", "text": PROMPT}]}
    messages = [*history[: asked[-1]], question]
    return Request(messages, max_generate_length=LONGEST, audio_output=False, temperature=0, special_tokens=False, tools=tools)
