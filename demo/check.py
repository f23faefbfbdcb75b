"""Whether the node has heard what the bag said."""

import numpy as np

RATE = 16000
LOUD = 0.02  # of full scale, far above the bag's noise
# Seconds that the node may need to tell that the user speaks: 0.13 s of voice, a soft onset, and two busy cores.
LATE = 0.6
PAUSE = 1.0  # seconds of quiet: longer than any inside a question, shorter than those between two


def spoken(pcm: np.ndarray) -> float:
    """Seconds from the first to the last loud sample of int16 [n] at 16 kHz."""
    loud = np.flatnonzero(np.abs(pcm.astype(np.float32)) > LOUD * 32768)
    return float(loud[-1] - loud[0]) / RATE


def problems(
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
        if sound[-1] - sound[0] < length - 0.1:
            found.append(f"question {number} of {length:.2f} s did not reach the microphone topic whole")
        elif begin - sound[0] > LATE:
            found.append(f"question {number} was heard {begin - sound[0]:.2f} s after it began: its first words are lost")
        elif end < sound[-1]:
            found.append(f"question {number} was cut off {sound[-1] - end:.2f} s before its end")
    return found
