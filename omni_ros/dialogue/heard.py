"""Which words of an interrupted answer the user has heard."""

import re
from dataclasses import dataclass, field

SAMPLE_RATE = 24000
FRAME = 1920  # samples of one codec frame
INTERRUPTED = "—"  # how a written dialogue marks that somebody was cut off
# A token of ordinary speech takes about 0.29 s (150 English words a minute, 1.3 tokens each; other languages are near).
TOKENS_PER_SECOND = 3.5
# Scripts without spaces: every character ends where a word may end.
_UNSPACED = "\u0e00-\u0e7f\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
_WORD = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+)")


@dataclass
class Answer:
    """What was written and spoken of one answer, while it grows."""

    pieces: list[tuple[str, int]] = field(default_factory=list)  # text, and how many tokens it came from
    samples: int = 0  # of speech, made so far
    spoken: bool = True  # False: text only, which is read as it is written
    whole: bool = False  # the speech has reached the end of the text

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    def drop_last(self, tokens: int) -> None:
        """Forget the text of so many of the last tokens."""
        while self.pieces and tokens > 0:
            tokens -= self.pieces.pop()[1]

    def heard(self, samples: int, tokens_per_second: float) -> str:
        """The words whose sound was played when `samples` of the speech had been: never one more, as far as can be known.

        Of a whole speech, the same share of the text. Of one that is still being made, only a bound is known, because the
        Talker takes one reply token with each frame but speaks it later; the speaking rate is the tighter bound.
        """
        if not self.spoken:
            return self.text.rstrip()
        if self.whole:
            share = min(1.0, samples / self.samples) if self.samples else 0.0
            return _whole_words(self.text, int(share * len(self.text)))
        tokens = min(samples // FRAME + 1, int(samples / SAMPLE_RATE * tokens_per_second)) if samples else 0
        length = 0
        for text, count in self.pieces:
            tokens -= count
            if tokens < 0:
                break
            length += len(text)
        return _whole_words(self.text, length)


def _whole_words(text: str, length: int) -> str:
    """The longest run of whole words within the first `length` characters."""
    end = 0
    for word in _WORD.finditer(text):
        if word.end() > length:
            return text[:end]
        end = word.end()
    return text[:end]
