"""From the end of what is said to the first sound of the answer: nothing that was known before may be heard as waiting."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.report import Part, Row
from bench.turns import Heard, greedy, listen
from omni_ros.pipeline.conversation import Conversation
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.preprocess.audio import SAMPLE_RATE

MAX_PIXELS = 307200  # the node's image_max_pixels
GOAL = ("<=", 1.15)
METHOD = f"""\
A turn by voice with a camera picture, as the node computes it: the history between turns, the picture when the person begins to
speak, the sound so far with every second from the eighth on. Timed is what remains, from the end of the turn to the first PCM (12
tokens and 12 frames an answer, greedy). Every turn but the first follows others of half a second of sound each. Pictures are
limited to {MAX_PIXELS} pixels. The fastest of several runs in turn: other load on the machine only adds. Beside it two of the
prompts with nothing computed before."""


@dataclass(frozen=True)
class Case:
    turn: int
    picture: tuple[int, int]  # width, height
    seconds: int  # of sound; 4 remain after the last whole window

    def __str__(self) -> str:
        return f"turn {self.turn}, {self.picture[0]} x {self.picture[1]}, {self.seconds} s of sound"


SMALL, LARGE = (448, 448), (1280, 720)
CASES = [Case(turn, picture, 4) for turn in (1, 5, 20) for picture in (SMALL, LARGE)]
CASES += [Case(1, SMALL, 12), Case(1, SMALL, 28), Case(5, LARGE, 28)]


def measure(output: Path, threads: int, repetitions: int) -> Part:
    pipeline = Pipeline.open(output / "engines", threads)
    ahead: dict[Case, list[float]] = {case: [] for case in CASES}
    fresh: dict[Case, list[float]] = {case: [] for case in CASES}
    base, largest = CASES[0], CASES[-1]
    rows: dict[Case, tuple[int, int]] = {}  # of the prompt, and computed at the end of the turn
    for repetition in range(repetitions + 1):
        for case in CASES:
            conversation = pipeline.conversation()
            messages = _speak(conversation, case)
            heard: Heard = listen(conversation, greedy(messages, tokens=12, frames=12))
            conversation.close()
            if repetition:
                ahead[case].append(heard.first_pcm)
            if not repetition or case in (base, largest):
                alone = listen(pipeline, greedy(messages, tokens=12, frames=12))
                fresh[case].append(alone.first_pcm)
                if not np.array_equal(alone.finished.codes, heard.finished.codes):
                    raise RuntimeError(f"{case}: said something else without prefill: their times cannot be compared")
            metrics = heard.finished.metrics
            rows[case] = metrics["prompt_tokens"], metrics["prompt_tokens"] - metrics["reused_tokens"]
    pipeline.close()
    table = [Row(f"first PCM, {case} / {base}", min(ahead[case]) / min(ahead[base]), "", GOAL) for case in CASES[1:]]
    table += [Row(f"first PCM, {case}", 1e3 * min(ahead[case]), "ms") for case in CASES]
    table += [Row(f"first PCM, {case}, nothing before", 1e3 * min(fresh[case]), "ms") for case in (base, largest)]
    for case in (base, largest):
        table += [Row(f"rows of the prompt, {case}", rows[case][0]), Row("of which at the end of the turn", rows[case][1])]
    seconds = {name: {str(case): value for case, value in found.items()} for name, found in (("ahead", ahead), ("fresh", fresh))}
    return Part("Prefill while the person speaks", METHOD, table, seconds)


def _speak(conversation: Conversation, case: Case) -> list[dict]:
    """Feed what is known while the turn is spoken; returns its messages."""
    history: list[dict] = [{"role": "system", "content": "You are a robot in a kitchen. Answer in one sentence."}]
    for turn in range(1, case.turn):
        history += [_user(_sound(turn, 0.5)), {"role": "assistant", "content": "It is a red cup."}]
    conversation.feed(history)
    width, height = case.picture
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    picture, sound = {"type": "image", "image": pixels, "max_pixels": MAX_PIXELS}, _sound(0, case.seconds)
    conversation.feed([*history, _user(picture)])
    for end in range(8 * SAMPLE_RATE + 512, len(sound["audio"]), SAMPLE_RATE):
        so_far = {"type": "audio", "audio": sound["audio"][:end].copy(), "unfinished": True}
        conversation.feed([*history, _user(picture, so_far)])
    return [*history, _user(picture, sound)]


def _user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


def _sound(seed: int, seconds: float) -> dict:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)
    return {"type": "audio", "audio": noise * np.float32(0.1)}
