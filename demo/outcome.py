"""What the recorder saw, as answers and interruptions. Times are seconds since the recorder began."""

from dataclasses import dataclass

import numpy as np

from demo.recorder import Recorder

SPEECH_RATE = 24000
ECHO = 0.5  # seconds before a question within which speech that came counts as spoken into it
CUT = "—"  # how the node's history marks an answer that was cut off


@dataclass(frozen=True)
class Answer:
    """What came between the end of one question and the end of the next."""

    asked: float  # the question has ended
    text: str  # as published on `response`; "" if it was not
    first_text: float | None
    speech: list[tuple[float, np.ndarray]]  # arrival, int16

    @property
    def seconds(self) -> float:
        """Of speech."""
        return sum(pcm.size for _, pcm in self.speech) / SPEECH_RATE


@dataclass(frozen=True)
class Interruption:
    """A question that began while the answer before was spoken."""

    at: float  # the node knows that the user speaks
    last_sample: float  # the last message of the old answer's speech has arrived
    spoken: float  # seconds of the old answer
    remembered: str  # what the node's history then has of it


def answers(recorder: Recorder) -> list[Answer]:
    """One for each question that has ended."""
    ends = [at for at, speaking in recorder.user_speaking if not speaking]
    found = []
    for end, until in zip(ends, [*ends[1:], float("inf")]):
        texts = [at for at, _ in recorder.deltas if end <= at < until]
        text = next((text for at, text in recorder.answers if end <= at < until), "")
        speech = [(at, pcm) for at, pcm in recorder.speech if end <= at < until]
        found.append(Answer(end, text, texts[0] if texts else None, speech))
    return found


def interruptions(recorder: Recorder) -> list[Interruption]:
    begins = [at for at, speaking in recorder.user_speaking if speaking]
    given = answers(recorder)
    found = []
    for old, begun, new in zip(given, begins[1:], given[1:]):
        if not old.speech or old.speech[-1][0] < begun - ECHO:
            continue
        until = new.first_text or float("inf")
        speech = [(at, pcm) for at, pcm in recorder.speech if old.asked <= at < until]
        remembered = [text for at, text in recorder.remembered if at > begun and text.endswith(CUT)]
        spoken = sum(pcm.size for _, pcm in speech) / SPEECH_RATE
        found.append(Interruption(begun, speech[-1][0], spoken, remembered[0] if remembered else ""))
    return found
