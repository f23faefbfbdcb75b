"""When speech begins, when it would stutter, and what streaming saves."""

from pathlib import Path

import numpy as np

from bench.report import Part, Row
from bench.turns import FRAMES, QUESTION, TOKENS, Heard, greedy, listen, question_with_media
from omni_ros.pipeline.pipeline import Pipeline

GOAL = ("<=", 0.25)
METHOD = f"""\
A greedy reply of {TOKENS} tokens and {FRAMES} codec frames (5 s of speech), once streaming and once offline, where
each stage waits for the one before it; both give the same codes. Silence is what a player inserts that starts with
the first PCM chunk. With a picture (640 x 480) and 3 s of sound the prompt itself is much of the work, which
streaming cannot shorten: no goal. Medians of runs in turn."""


def measure(output: Path, threads: int, repetitions: int) -> Part:
    rows, details = [], {}
    for engines, precision in (("engines", "float32"), ("engines_int4", "int4")):
        pipeline = Pipeline.open(output / engines, threads)
        for messages, kind in ((QUESTION, "text"), (question_with_media(), "picture and sound")):
            values = _measure(pipeline, messages, repetitions)
            rows.append(
                Row(
                    f"first PCM streaming / whole reply offline, {precision}, {kind}",
                    values["share"],
                    "",
                    GOAL if kind == "text" else None,
                )
            )
            details[f"{precision}, {kind}"] = values
            if kind == "text":
                rate = pipeline.models.speak().code2wav.sample_rate
                rows += [
                    Row(f"first text, {precision}", 1e3 * values["first_text_s"], "ms"),
                    Row(f"first PCM, {precision}", 1e3 * values["first_pcm_s"], "ms"),
                    Row(f"real-time factor streaming, {precision}", values["rtf"], "", ("<=", 1)),
                    Row(
                        f"silence inside the speech when played at once, {precision}",
                        1e3 * values["silence_samples"] / rate,
                        "ms",
                        ("<=", 0),
                    ),
                ]
    return Part("First audio", METHOD, rows, details)


def _measure(pipeline: Pipeline, messages: list[dict], repetitions: int) -> dict[str, float]:
    turns: list[tuple[Heard, Heard]] = []
    for repetition in range(repetitions + 1):
        pair = listen(pipeline, greedy(messages)), listen(pipeline, greedy(messages, streaming=False))
        if not np.array_equal(pair[0].finished.codes, pair[1].finished.codes):
            raise RuntimeError("streaming and offline gave different codes: their times cannot be compared")
        if repetition:
            turns.append(pair)
    rate = pipeline.models.speak().code2wav.sample_rate
    median = lambda values: float(np.median(list(values)))  # noqa: E731
    return {
        "share": median(s.first_pcm / o.seconds for s, o in turns),
        "first_text_s": median(s.text_times[0] for s, _ in turns),
        "first_pcm_s": median(s.first_pcm for s, _ in turns),
        "streaming_s": median(s.seconds for s, _ in turns),
        "offline_s": median(o.seconds for _, o in turns),
        "rtf": median(s.seconds * rate / sum(n for _, n in s.chunks) for s, _ in turns),
        "silence_samples": median(_silence(s.chunks, rate) for s, _ in turns),
    }


def _silence(chunks: list[tuple[float, int]], rate: int) -> float:
    """Samples that a player is short of when it starts at the first of `chunks` (arrival in s, samples)."""
    silence, runs_dry = 0.0, chunks[0][0]
    for arrival, samples in chunks:
        silence += max(0.0, arrival - runs_dry)
        runs_dry = max(arrival, runs_dry) + samples / rate
    return silence * rate
