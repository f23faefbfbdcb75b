"""Twenty-four questions that never change, with their answers, for test/test_demo_model.py and demos.

    python -m training.fixed_questions          # speaks the spoken ones again: training/questions/*.flac

Twelve pictures, each asked about by keyboard and by voice. The voices (flite's rms, festival's ked, espeak-ng) are among those
that training never heard; their licences allow redistribution, see training/questions/README.md.
"""

import random
from pathlib import Path

import numpy as np

from training import domain, scenes, speech, wording

FOLDER = Path(__file__).with_name("questions")
RMS, KED, F4 = ("flite", "rms"), ("festival", "ked_diphone"), ("espeak", "en-us+f4")
LEFT, MIDDLE, RIGHT = domain.SLOTS
# scene; typed question, answer; spoken question, answer, voice
PICTURES = (
    ([(LEFT, "red", "circle")], "What do you see?", "I see a red circle.",
     "what colour is the circle", "The circle is red.", RMS),
    ([(LEFT, "blue", "star"), (RIGHT, "green", "square")], "Where is the star?", "The star is on the left.",
     "what is on the right", "On the right is a green square.", KED),
    ([(MIDDLE, "yellow", "triangle")], "is there a yellow triangle", "Yes, I see a yellow triangle.",
     "how many shapes do you see", "I see one shape.", RMS),
    ([(LEFT, "white", "square"), (MIDDLE, "black", "square"), (RIGHT, "orange", "circle")], "How many squares are there?",
     "I see two squares.", "what do you see", "I see a white square, a black square and an orange circle.", RMS),
    ([("crowd", "purple", "star")] * 7, "How many stars do you see?", "I see seven stars.",
     "what do you see", "I see seven purple stars.", F4),
    ([(LEFT, "green", "star"), (MIDDLE, "red", "triangle")], "What is on the right?", "Nothing is on the right.",
     "which shape is green", "The star is green.", RMS),
    ([(RIGHT, "purple", "circle")], "Is there something red?", "No, nothing is red.",
     "where is the circle", "The circle is on the right.", KED),
    ([(LEFT, "orange", "square"), (RIGHT, "blue", "circle")], "the square, what colour is it", "The square is orange.",
     "is the circle blue", "Yes, the circle is blue.", RMS),
    (None, "What is seven plus eight?", "Seven plus eight is fifteen.",
     "what do you see", "I have no picture.", RMS),
    ([(MIDDLE, "black", "star")], "Say hello robot.", "Hello robot.",
     "count to five", "One, two, three, four, five.", F4),
    ([(LEFT, "yellow", "circle")], "What is the capital of Norway?", "I did not understand.",
     "please water the flowers", "I did not understand.", RMS),
    ([(LEFT, "red", "square"), (MIDDLE, "white", "triangle"), (RIGHT, "blue", "star")], "Where is the blue star?",
     "The blue star is on the right.", "nine minus four", "Nine minus four is five.", RMS),
)  # fmt: skip


def picture(i: int) -> np.ndarray | None:
    """uint8 [480, 640, 3], or None where the robot has no picture."""
    scene = PICTURES[i][0]
    return None if scene is None else scenes.draw(random.Random(100 + i), scene)


def main() -> None:
    import av  # as in the runtime

    FOLDER.mkdir(exist_ok=True)
    for i, (_, _, _, question, _, (engine, voice)) in enumerate(PICTURES):
        pcm = speech.speak((engine, voice, [(wording.punctuate(question), 1.0, 50)], 16000))[0]
        pcm = speech.trim(pcm, 16000, 0.3, 0.5)
        samples = (pcm / np.abs(pcm).max() * 16000).astype(np.int16)
        with av.open(str(FOLDER / f"{i:02}.flac"), "w") as file:
            stream = file.add_stream("flac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = 16000
            for packet in (*stream.encode(frame), *stream.encode(None)):
                file.mux(packet)


if __name__ == "__main__":
    main()
