"""Has a model run away? The same words or codec frames over and over, speech without sound, speech without end.

Wrong engines do that (TensorRT on a GPU whose kernels are faulty, a cache in too small a dtype), and so do good ones, rarely.
Nothing here looks back further than PERIODS steps, so a step costs the same however long the turn is.
"""

from collections import deque

import numpy as np

from omni_ros.errors import RunawayError

PERIODS = 32  # the longest cycle, in tokens or codec frames, that is looked for
FRAME_S = 0.08
# Codec frames that a reply token may take. Speech takes three to five; one of words that are spelled out, or of scripts with
# a word to a token, more, but never for a whole reply.
FRAMES_PER_TOKEN = 12.5
SILENCE = 1e-3  # between the lowest and the highest sample of a codec frame: 33 steps of 16 bit


class Cycle:
    """Of a sequence of ids: since when it goes round in one cycle."""

    def __init__(self, limit: int):
        self.limit = limit
        self.recent: deque[int] = deque(maxlen=PERIODS)  # the newest first
        self.runs: dict[int, int] = {}  # period p -> so many of the last ids equal the one p before them

    def __call__(self, number: int) -> tuple[int, int]:
        """The period of the cycle, 0 if there is none of `limit` ids, and how many ids have repeated it."""
        runs, self.runs = self.runs, {}
        if number in self.recent:  # seldom
            self.runs = {p: runs.get(p, 0) + 1 for p, before in enumerate(self.recent, 1) if before == number}
        self.recent.appendleft(number)
        for period, repeated in self.runs.items():
            # four times the same is the least, however low the limit
            if repeated >= max(self.limit, 3 * period):
                return period, repeated
        return 0, 0


class RunawayGuard:
    """Watches one turn. Each method belongs to one stage, and returns the error that the turn has to end with, or None."""

    def __init__(self, limit: int):
        """`limit`: tokens, or codec frames, that may be the same, silent, or more than the text needs. 0: no limit."""
        self.limit = limit
        self.tokens, self.codes = Cycle(limit), Cycle(limit)
        self.silent = 0

    def token(self, token: int) -> RunawayError | None:
        if not self.limit:
            return None
        period, repeated = self.tokens(token)
        if not period:
            return None
        return _error(f"the reply does not go on: the last {repeated} tokens repeat {'one' if period == 1 else period}", repeated)

    def frame(self, code0: int, frames: int, tokens: int) -> RunawayError | None:
        """The first code of a frame (the others are drawn anew around it), and how many frames and reply tokens there are."""
        if not self.limit:
            return None
        period, repeated = self.codes(code0)
        if period:
            return _error(f"the speech does not go on: {repeated * FRAME_S:.1f} s of it repeat {period * FRAME_S:.2f} s")
        if frames > self.limit + FRAMES_PER_TOKEN * tokens:
            return _error(f"the speech does not end: {frames * FRAME_S:.1f} s for {tokens} tokens of text")
        return None

    def sound(self, pcm: np.ndarray, samples_per_frame: int) -> RunawayError | None:
        """The next samples of speech, float32 [n]."""
        if not self.limit or not len(pcm):
            return None
        starts = np.arange(0, len(pcm), samples_per_frame)
        swings = np.maximum.reduceat(pcm, starts) - np.minimum.reduceat(pcm, starts)
        for swing in swings.tolist():
            self.silent = self.silent + 1 if swing < SILENCE else 0
            if self.silent > self.limit:
                return _error(f"the speech has no sound: {self.silent * FRAME_S:.1f} s of silence")
        return None


def _error(what: str, repeated: int = 0) -> RunawayError:
    text = f"{what}. If this comes again, compare the engines (python -m offline.compare); the bound is runaway_limit, 0: none"
    return RunawayError(text, repeated)
