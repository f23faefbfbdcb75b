"""A reply, token by token, split into what is said and the tool calls in it, which nobody may hear or read.

The model was trained on whole replies, calls included, and transformers speaks them as they are: how a reply with a call
sounds is not defined anywhere. Here the Talker is given the reply as if its calls, and the white space around them, had
never been written: the Thinker's own tokens, and where a token lies partly inside a call (with a tokenizer that has tokens
for the marks none does), the tokens of the part outside. The Thinker itself goes on from all that it has written.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from omni_ros.pipeline.request import ToolCall

OPEN, CLOSE = MARKS = ("<tool_call>", "</tool_call>")  # Qwen3's
_MARK = re.compile("|".join(MARKS))


@dataclass(frozen=True)
class Piece:
    """Some of what is said: its text, the reply's tokens it came from, and the tokens that the Talker reads for it."""

    text: str
    token_ids: list[int]
    spoken: list[int]


class CallFilter:
    """What may be the beginning of a mark waits until it is known to be none, as does white space, which may stand before a
    mark. A reply without marks comes out as it went in, token for token."""

    def __init__(self, encode: Callable[[str], list[int]]):
        self._encode = encode
        self._held: list[Piece] = []  # what waits
        self._call: str | None = None  # what stands in the call that is open
        self._gap = False  # a mark was the last thing
        self._said = False  # something but white space

    def __call__(self, piece: Piece) -> list[Piece | ToolCall]:
        """The next token, with the text that it adds -> what is known to be said, or to be a call, by now."""
        out: list[Piece | ToolCall] = []
        rest: Piece | None = piece
        while rest is not None:
            rest = self._outside(rest, out) if self._call is None else self._inside(rest, out)
        return out

    @property
    def inside(self) -> bool:
        """Whether the reply is in the middle of a call."""
        return self._call is not None

    def end(self) -> list[Piece | ToolCall]:
        """The reply is over."""
        if self._call is not None:
            return [ToolCall(self._call, whole=False)]
        out: list[Piece | ToolCall] = []
        held, self._held = self._held, []
        if not self._gap or any(not piece.text.isspace() for piece in held):
            self._say(held, out)
        return out

    def _outside(self, piece: Piece, out: list[Piece | ToolCall]) -> Piece | None:
        self._held.append(piece)
        text = "".join(held.text for held in self._held)
        mark = _MARK.search(text)
        if mark is None:
            self._say(self._take(_settled(text)), out)
            return None
        before = len(text[: mark.start()].rstrip())
        whole = self._take(before)
        self._say(whole, out)
        before -= sum(len(p.text) for p in whole)
        if before:
            self._say([self._part(self._held[0], self._held[0].text[:before])], out)
        self._held, self._gap = [], True
        self._call = "" if mark[0] == OPEN else None  # a closing mark that closes nothing is left out
        return self._part(piece, text[mark.end() :]) if mark.end() < len(text) else None

    def _inside(self, piece: Piece, out: list[Piece | ToolCall]) -> Piece | None:
        assert self._call is not None
        known = max(0, len(self._call) - len(CLOSE))
        self._call += piece.text
        end = self._call.find(CLOSE, known)
        if end < 0:
            return None
        out.append(ToolCall(self._call[:end], whole=True))
        rest, self._call, self._gap = self._call[end + len(CLOSE) :], None, True
        return self._part(piece, rest) if rest else None

    def _part(self, piece: Piece, text: str) -> Piece:
        return Piece(text, piece.token_ids, self._encode(text) if piece.spoken else [])

    def _take(self, length: int) -> list[Piece]:
        """The held pieces that end within the first `length` characters."""
        taken, end = [], 0
        while self._held and (end := end + len(self._held[0].text)) <= length:
            taken.append(self._held.pop(0))
        return taken

    def _say(self, pieces: list[Piece], out: list[Piece | ToolCall]) -> None:
        for piece in pieces:
            if self._gap:
                text = piece.text if self._said else piece.text.lstrip()
                if not text and piece.text:
                    continue
                if self._said and text and not text[0].isspace():
                    text = " " + text  # or what stood around a call would become one word, a mark even
                piece = piece if text == piece.text else self._part(piece, text)
                self._gap = not text
            self._said = self._said or bool(piece.text.strip())
            out.append(piece)


def _settled(text: str) -> int:
    """How much of `text` cannot belong to a mark or to the white space before one."""
    begun = max(n for mark in MARKS for n in range(len(mark)) if text.endswith(mark[:n]))
    return len(text[: len(text) - begun].rstrip())
