"""The demo's results: speech.wav, timeline.png and metrics.json."""

import io
import json
import os
import platform
import textwrap
import wave
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image as Picture

from demo.outcome import SPEECH_RATE, Answer, Interruption
from demo.recorder import Recorder
from demo.script import Turn

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

MICROPHONE_RATE = 16000
THUMBNAIL = 2.2  # seconds of the time axis that a picture takes


def playback(recorder: Recorder) -> list[tuple[float, np.ndarray]]:
    """When a loudspeaker that starts at once would play each chunk: (start in seconds, int16 [n])."""
    free, played = 0.0, []
    for arrival, pcm in recorder.speech:
        start = max(arrival, free)
        played.append((start, pcm))
        free = start + pcm.size / SPEECH_RATE
    return played


def write_wav(recorder: Recorder, path: Path) -> None:
    """The speech as a loudspeaker would have played it, from its first sample on, pauses included."""
    played = playback(recorder)
    origin = played[0][0] if played else 0.0
    end = max((start - origin + pcm.size / SPEECH_RATE for start, pcm in played), default=0.0)
    samples = np.zeros(round(end * SPEECH_RATE) + 1, np.int16)
    for start, pcm in played:
        at = round((start - origin) * SPEECH_RATE)
        samples[at : at + pcm.size] = pcm[: samples.size - at]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE)
        file.writeframes(samples.tobytes())


def _envelope(pieces: list[tuple[float, np.ndarray]], rate: int) -> tuple[np.ndarray, np.ndarray]:
    """(start in seconds, int16) -> times, loudness (0..1) of every 20 ms; silence around each piece."""
    times, levels, step = [], [], rate // 50
    for start, pcm in pieces:
        for at in range(0, pcm.size, step):
            times.append(start + at / rate)
            levels.append(np.abs(pcm[at : at + step].astype(np.float32)).max() / 32768)
    if not times:
        return np.zeros(0), np.zeros(0)
    gaps = np.flatnonzero(np.diff(times) > 0.1)  # where nothing was played
    edges = [(times[gap] + 0.02, times[gap + 1] - 0.02) for gap in gaps]
    times += [edge for pair in edges for edge in pair]
    levels += [0.0] * (2 * len(edges))
    order = np.argsort(times)
    return np.array(times)[order], np.array(levels)[order]


def _pictures(row: Axes, recorder: Recorder, begin: float, end: float) -> None:
    """Thumbnails, each from the moment at its left edge."""
    arrivals = np.array([at for at, _ in recorder.pictures])
    for at in np.arange(begin, end - THUMBNAIL / 2, THUMBNAIL):
        if not arrivals.size or arrivals[-1] < at:
            break
        _, jpeg = recorder.pictures[int(np.searchsorted(arrivals, at))]
        row.imshow(Picture.open(io.BytesIO(jpeg)).resize((320, 240)), extent=(at, at + 0.97 * THUMBNAIL, 0, 1), aspect="auto")
    row.set_ylim(0, 1)
    row.set_yticks([])
    row.set_title(f"camera ({len(recorder.pictures)} pictures)", loc="left", fontsize=10)


def _microphone(row: Axes, recorder: Recorder, questions: Sequence[str]) -> None:
    times, levels = _envelope(recorder.microphone, MICROPHONE_RATE)
    row.fill_between(times, levels, -levels, color="tab:blue", linewidth=0)
    spoken = (
        [at for at, speaking in recorder.user_speaking if speaking],
        [at for at, speaking in recorder.user_speaking if not speaking],
    )
    for begin, end, question in zip(*spoken, questions):
        row.axvspan(begin, end, color="tab:blue", alpha=0.15, linewidth=0)
        row.text(begin, 0.87, f"\u201c{question}\u201d", fontsize=9, va="top", color="tab:blue")
    row.set_ylim(-0.6, 0.9)
    row.set_yticks([])
    row.set_title("microphone; shaded: the node hears the user speak", loc="left", fontsize=10)


def _speech(row: Axes, recorder: Recorder, answers: Sequence[Answer], right: Sequence[bool | None]) -> None:
    times, levels = _envelope(playback(recorder), SPEECH_RATE)
    row.fill_between(times, levels, -levels, color="tab:orange", linewidth=0)
    row.eventplot([at for at, _ in recorder.speech], lineoffsets=-0.75, linelengths=0.12, colors="black", linewidths=0.5)
    row.eventplot([at for at, _ in recorder.deltas], lineoffsets=-0.92, linelengths=0.12, colors="tab:red", linewidths=0.8)
    for answer, ok in zip(answers, right):
        said = textwrap.fill(f"\u201c{answer.text}\u201d" + {True: " \u2713", False: " WRONG", None: ""}[ok], 30)
        row.text(answer.asked, 2.05, said, fontsize=9, va="top", color="tab:red" if ok is False else "black")
    row.set_ylim(-1, 2.1)
    row.set_yticks([])
    row.set_title(
        "speech as played; ticks below: arrival of its messages, and of the text's pieces (red)", loc="left", fontsize=10
    )
    row.set_xlabel("seconds")


def plot(
    recorder: Recorder,
    path: Path,
    turns: Sequence[Turn],
    answers: Sequence[Answer],
    interruptions: Sequence[Interruption],
    judged: bool,
) -> None:
    begin = recorder.microphone[0][0] if recorder.microphone else 0.0
    end = max([begin + 1, *(start + pcm.size / SPEECH_RATE for start, pcm in playback(recorder))]) + 1.0
    figure, rows = plt.subplots(3, 1, sharex=True, figsize=(16, 6.4), height_ratios=(1.05, 1.2, 2.3), layout="constrained")
    right = [answer.text == turn.answer if judged else None for turn, answer in zip(turns, answers)]
    _pictures(rows[0], recorder, begin, end)
    _microphone(rows[1], recorder, [turn.question for turn in turns])
    _speech(rows[2], recorder, answers, right)
    for answer in answers:
        for row in rows[1:]:
            row.axvline(answer.asked, color="grey", linestyle="--", linewidth=1)
    for found in interruptions:
        for row in rows[1:]:
            row.axvline(found.at, color="tab:red", linewidth=1.5)
        asked = max(answer.asked for answer in answers if answer.asked < found.at)
        note = textwrap.fill(f"interrupted; the robot remembers saying \u201c{found.remembered}\u201d", 30)
        rows[2].text(asked, 1.4, note, fontsize=9, va="top", color="tab:red")
    rows[2].set_xlim(begin, end)
    figure.suptitle("dashed: the user's turn is closed; red: the user interrupts", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_report(
    recorder: Recorder,
    folder: Path,
    turns: Sequence[Turn],
    answers: Sequence[Answer],
    interruptions: Sequence[Interruption],
    facts: dict,
) -> None:
    """Write the three files; `facts["judged"]` tells whether there is a right wording of the answers."""
    write_wav(recorder, folder / "speech.wav")
    plot(recorder, folder / "timeline.png", turns, answers, interruptions, facts["judged"])
    metrics = {
        **facts,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "microphone_messages": len(recorder.microphone),
        "pictures": len(recorder.pictures),
        "turns": [_turn(turn, answer) for turn, answer in zip(turns, answers)],
        "interruptions": [asdict(found) for found in interruptions],
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def _turn(turn: Turn, answer: Answer) -> dict:
    """How long after the end of the question the answer began, and what it was."""

    def milliseconds(at: float | None) -> float | None:
        return None if at is None else round(1000 * (at - answer.asked), 1)

    return {
        "question": turn.question,
        "answer": answer.text,
        "right_answer": turn.answer,
        "turn_closed_s": round(answer.asked, 3),
        "first_text_ms": milliseconds(answer.first_text),
        "first_speech_ms": milliseconds(answer.speech[0][0] if answer.speech else None),
        "speech_messages": len(answer.speech),
        "speech_s": round(answer.seconds, 3),
    }
