"""Whether the node has heard what the bag said, answered it rightly, and let itself be interrupted."""

from collections.abc import Sequence

import numpy as np

from demo.outcome import CUT, Answer, Interruption
from demo.script import Turn

RATE = 16000
LOUD = 0.02  # of full scale, far above the bag's noise
# Seconds that the node may need to tell that the user speaks: 0.13 s of voice, a soft onset, and two busy cores.
LATE = 0.6
PAUSE = 1.0  # seconds of quiet: longer than any inside a question, shorter than those between two
WORD = (0.15, 1.2)  # seconds of speech that a word takes at least, and at most
STOP = 0.3  # seconds within which an interrupted answer has to stop: its last messages are on their way, two cores are busy


def spoken(pcm: np.ndarray) -> float:
    """Seconds from the first to the last loud sample of int16 [n] at 16 kHz."""
    loud = np.flatnonzero(np.abs(pcm.astype(np.float32)) > LOUD * 32768)
    return float(loud[-1] - loud[0]) / RATE


def unheard(
    microphone: list[tuple[float, np.ndarray]],  # arrival in seconds, int16
    user_speaking: list[tuple[float, bool]],
    questions: list[np.ndarray],  # int16, 16 kHz
) -> list[str]:
    """What is wrong with how the utterances were heard, in words; every one has to be there in its whole length."""
    begins = [at for at, speaking in user_speaking if speaking]
    ends = [at for at, speaking in user_speaking if not speaking]
    if len(begins) != len(questions) or len(ends) != len(questions):
        return [f"{len(questions)} questions were asked, {len(begins)} were heard to begin and {len(ends)} to end"]
    loud = np.array([at for at, pcm in microphone if np.abs(pcm.astype(np.float32)).max() > LOUD * 32768])
    sounds = np.split(loud, np.flatnonzero(np.diff(loud) > PAUSE) + 1)  # one for each question
    if len(sounds) != len(questions):
        return [f"of {len(questions)} questions, {len(sounds)} reached the microphone topic"]
    found = []
    for number, (begin, end, sound, question) in enumerate(zip(begins, ends, sounds, questions, strict=True), 1):
        length = spoken(question)
        arrived = sum(pcm.size for at, pcm in microphone if sound[0] <= at <= sound[-1]) / RATE
        if arrived < length - 0.1:
            found.append(f"question {number} of {length:.2f} s did not reach the microphone topic whole")
        elif begin - sound[0] > LATE:
            found.append(f"question {number} was heard {begin - sound[0]:.2f} s after it began: its first words are lost")
        elif end < sound[-1]:
            found.append(f"question {number} was cut off {sound[-1] - end:.2f} s before its end")
    return found


def wrong(turns: Sequence[Turn], answers: Sequence[Answer]) -> list[str]:
    """Answers that are wrong or missing, and those that were not spoken."""
    found = []
    for number, turn in enumerate(turns, 1):
        if number > len(answers) or not answers[number - 1].text:
            found.append(f"question {number} got no answer")
            continue
        answer, cut = answers[number - 1], number < len(turns) and turns[number].interrupts
        if answer.text != turn.answer:
            found.append(f"answer {number} is {answer.text!r}, right is {turn.answer!r}")
        words = len(answer.text.split())
        shortest, longest = WORD[0] * (1 if cut else words), WORD[1] * words
        if not shortest < answer.seconds < longest:
            found.append(f"answer {number} of {words} words was spoken in {answer.seconds:.2f} s")
        elif max(np.abs(pcm.astype(np.int32)).max() for _, pcm in answer.speech) < LOUD * 32768:
            found.append(f"answer {number} is silent")
    return found


def uninterrupted(turns: Sequence[Turn], answers: Sequence[Answer], seen: Sequence[Interruption]) -> list[str]:
    """What is wrong with the interruptions: the old answer stops, and what was heard of it is remembered, no more."""
    cut = [answer.text for answer, turn in zip(answers, turns[1:]) if turn.interrupts]
    if len(cut) != len(seen):
        slow = ": this machine is too slow for the pauses between the questions" if len(seen) > len(cut) else ""
        return [f"{len(cut)} answers were to be interrupted while they were spoken, {len(seen)} were{slow}"]
    found = []
    for text, interruption in zip(cut, seen, strict=True):
        late = interruption.last_sample - interruption.at
        if late > STOP:
            found.append(f"speech went on for {late:.2f} s after it was interrupted")
        heard = interruption.remembered.removesuffix(CUT)
        if not heard or not text.startswith(heard) or heard == text:
            found.append(f"of {text!r}, interrupted, {interruption.remembered!r} is remembered")
    return found
