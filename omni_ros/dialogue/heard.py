"""Which words of an interrupted answer the user has heard."""

import re
from dataclasses import dataclass, field

import numpy as np

SAMPLE_RATE = 24000
FRAME = 1920  # samples of one codec frame
INTERRUPTED = "—"  # how a written dialogue marks that somebody was cut off
# A token of ordinary speech takes about 0.29 s (150 English words a minute, 1.3 tokens each; other languages are near).
TOKENS_PER_SECOND = 3.5
HOP = 240  # samples whose loudness is one value: 10 ms
QUIET = 0.05  # of the loudest hop: what is below is no voice
GAP = 12  # hops of quiet that belong to a word: the closure of a consonant
UNFINISHED = 0.1  # seconds: voice of just now may belong to a word which is not over
# Scripts without spaces: every character ends where a word may end.
_UNSPACED = "\u0e00-\u0e7f\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
_WORD = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+)")


@dataclass
class Answer:
    """What was written and spoken of one answer, while it grows."""

    pieces: list[tuple[str, int]] = field(default_factory=list)  # text, and how many tokens it came from
    samples: int = 0  # of speech, made so far
    _levels: list[np.ndarray] = field(default_factory=list)  # root mean squares of its hops
    _rest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # samples that do not fill a hop yet
    spoken: bool = True  # False: text only, which is read as it is written
    whole: bool = False  # the speech has reached the end of the text

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    def drop_last(self, tokens: int) -> None:
        """Forget the text of so many of the last tokens."""
        while self.pieces and tokens > 0:
            tokens -= self.pieces.pop()[1]

    def hear(self, pcm: np.ndarray) -> None:
        """More speech was made: float32 [n] at 24 kHz."""
        self.samples += pcm.size
        sound = np.concatenate([self._rest, pcm])
        hops, self._rest = np.split(sound, [sound.size // HOP * HOP])
        self._levels.append(_loudness(hops))

    def voice(self, samples: int) -> float:
        """Seconds of voice in the first `samples` of the speech; the silence before, between and after words is none."""
        rest = np.pad(self._rest, (0, -self._rest.size % HOP))
        levels = np.concatenate([*self._levels, _loudness(rest)])
        voiced = levels > QUIET * levels.max(initial=0.0)
        loud = np.flatnonzero(voiced)
        for begin, end in zip(loud, loud[1:]):
            if end - begin <= GAP:
                voiced[begin:end] = True
        until = np.concatenate([[0], np.cumsum(voiced)])  # each hop's begin
        return float(np.interp(samples / HOP, np.arange(until.size), until)) * HOP / SAMPLE_RATE

    def heard(self, samples: int, tokens_per_second: float) -> str:
        """The words whose sound was played when `samples` of the speech had been: never one more, as far as can be known.

        Of a whole speech, the text's share is that of the voice. Of one that is still being made, only a bound is known, as
        the Talker takes one reply token with each frame but speaks it later; the speaking rate, tokens per second of voice,
        is the tighter bound.
        """
        if not self.spoken or (self.whole and samples >= self.samples > 0):
            return self.text.rstrip()
        voice = self.voice(samples - round(UNFINISHED * SAMPLE_RATE))
        if self.whole:
            whole = self.voice(self.samples)
            return _whole_words(self.text, int(voice / whole * len(self.text)) if whole else 0)
        tokens = min(samples // FRAME + 1, int(voice * tokens_per_second)) if samples else 0
        length = 0
        for text, count in self.pieces:
            tokens -= count
            if tokens < 0:
                break
            length += len(text)
        return _whole_words(self.text, length)


def _loudness(sound: np.ndarray) -> np.ndarray:  # float32 [hops * HOP] -> [hops]
    return np.sqrt(np.mean(sound.reshape(-1, HOP) ** 2, axis=1))


def _whole_words(text: str, length: int) -> str:
    """The longest run of whole words within the first `length` characters."""
    end = 0
    for word in _WORD.finditer(text):
        if word.end() > length:
            return text[:end]
        end = word.end()
    return text[:end]
