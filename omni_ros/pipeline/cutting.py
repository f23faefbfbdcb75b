"""Text -> tokens a stretch at a time, so that a text too long for the prompt is refused before all of it was cut.

A megabyte takes the tokenizers package seconds and 400 MB, and everybody who talks to the robot can send one.
"""

import re
import unicodedata
from collections.abc import Iterator

from tokenizers import Tokenizer

from omni_ros.errors import InputError, PromptTooLongError

STRETCH = 4096  # letters
# Qwen2's pattern of words lets none reach over a space that follows something else, and NFC composes nothing with a space. So the
# tokens on both sides of it are the same whether or not the text is cut there.
END = re.compile(r"\S(?= )")


def stretches(text: str) -> Iterator[str]:
    """`text` in pieces of at least STRETCH letters that are cut into tokens each by itself."""
    start = 0
    while end := END.search(text, start + STRETCH - 1):
        yield text[start : end.end()]
        start = end.end()
    yield text[start:]


def add_tokens(ids: list[int], tokenizer: Tokenizer, text: str, most: float, longest: int) -> None:
    """Append the tokens of `text` to `ids`. `longest`: bytes that a token stands for at most.

    Raises PromptTooLongError when there are more than `most`, unless it is the last stretch that is too much, and InputError for
    text that is not valid Unicode.
    """
    for stretch in stretches(text):
        if len(ids) > most or _bytes(stretch) > longest * (most - len(ids)) + STRETCH:
            raise PromptTooLongError(f"more than {most} tokens")
        try:
            ids += tokenizer.encode(stretch, add_special_tokens=False).ids
        except TypeError as e:  # half a surrogate pair, as JSON can escape it, is no character
            raise InputError("the messages hold text that is not valid Unicode") from e


def _bytes(text: str) -> int:
    """As the tokenizer counts them, which composes letters with their marks first."""
    return len(text) if text.isascii() else len(unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass"))
