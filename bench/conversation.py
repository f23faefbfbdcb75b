"""What a long conversation costs the next answer: time to first sound at turn 1, 5 and 20, with and without reuse."""

from pathlib import Path

import numpy as np

from bench.report import Part, Row
from bench.turns import Heard, greedy, listen
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Request

TURNS = (1, 5, 20)
GOAL = ("<=", 1.15)
SYSTEM = {"role": "system", "content": "You are a robot in a kitchen. Answer in one sentence."}
METHOD = f"""\
One conversation of {TURNS[-1]} turns, each a second of sound and a few words, every one still in the prompt (12 tokens and 12
frames an answer, greedy). Between turns the history is fed ahead, as the node does while nobody speaks. Beside it the same
prompts without reuse, all rows computed. Medians over whole conversations in turn."""


def measure(output: Path, threads: int, repetitions: int) -> Part:
    pipeline = Pipeline.open(output / "engines", threads)
    kept: dict[int, list[float]] = {turn: [] for turn in TURNS}
    fresh: dict[int, list[float]] = {turn: [] for turn in TURNS}
    rows: list[int] = []
    for repetition in range(repetitions + 1):
        conversation, messages = pipeline.conversation(), [SYSTEM]
        conversation.feed(messages)
        for turn in range(1, TURNS[-1] + 1):
            messages.append(_question(turn))
            request: Request = greedy(list(messages), tokens=12, frames=12)
            heard: Heard = listen(conversation, request)
            if turn in TURNS and repetition:
                kept[turn].append(heard.first_pcm)
                alone = listen(pipeline, request)
                fresh[turn].append(alone.first_pcm)
                if not np.array_equal(alone.finished.codes, heard.finished.codes):
                    raise RuntimeError(f"turn {turn} said something else without reuse: their times cannot be compared")
                rows.append(heard.finished.metrics["prompt_tokens"])
            messages.append({"role": "assistant", "content": heard.finished.text})
            conversation.feed(messages)
        conversation.close()
    medians = {turn: float(np.median(kept[turn])) for turn in TURNS}
    without = {turn: float(np.median(fresh[turn])) for turn in TURNS}
    pipeline.close()
    last = TURNS[-1]
    table = [Row(f"first PCM at turn {turn} / turn 1", medians[turn] / medians[1], "", GOAL) for turn in TURNS[1:]]
    table += [Row(f"first PCM at turn {turn}", 1e3 * medians[turn], "ms") for turn in TURNS]
    table += [
        Row(f"first PCM at turn {last}, nothing reused", 1e3 * without[last], "ms"),
        Row(f"with reuse / without, turn {last}", medians[last] / without[last]),
        Row(f"rows of the prompt at turn {last}", max(rows)),
    ]
    return Part("A long conversation", METHOD, table, {"kept_s": medians, "fresh_s": without})


def _question(turn: int) -> dict:
    sound = np.random.default_rng(turn).standard_normal(16000).astype(np.float32) * np.float32(0.1)
    return {"role": "user", "content": [{"type": "audio", "audio": sound}, {"type": "text", "text": "And what is this?"}]}
