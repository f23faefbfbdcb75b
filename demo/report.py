"""The demo's results: speech.wav, timeline.png and metrics.json."""

import json
import os
import platform
import wave
from pathlib import Path

import matplotlib
import numpy as np

from demo.recorder import Recorder

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

MICROPHONE_RATE = 16000
SPEECH_RATE = 24000


def playback(recorder: Recorder) -> list[tuple[float, np.ndarray]]:
    """When a loudspeaker that starts at once would play each chunk: (start in seconds, int16 [n])."""
    free, played = 0.0, []
    for arrival, pcm in recorder.speech:
        start = max(arrival, free)
        played.append((start, pcm))
        free = start + pcm.size / SPEECH_RATE
    return played


def turns(recorder: Recorder) -> list[dict]:
    """For each utterance: when it ended, and how long after that the answer began."""
    ends = [at for at, speaking in recorder.user_speaking if not speaking]
    limits = [*ends[1:], float("inf")]
    found = []
    for end, until in zip(ends, limits, strict=True):
        texts = [(at, text) for at, text in recorder.deltas if end <= at < until]
        chunks = [(at, pcm) for at, pcm in recorder.speech if end <= at < until]
        found.append({
            "turn_closed_s": round(end, 3),
            "first_text_ms": round(1000 * (texts[0][0] - end), 1) if texts else None,
            "first_speech_ms": round(1000 * (chunks[0][0] - end), 1) if chunks else None,
            "text_deltas": len(texts),
            "speech_messages": len(chunks),
            "speech_s": round(sum(pcm.size for _, pcm in chunks) / SPEECH_RATE, 3),
            "text": "".join(text for _, text in texts),
        })  # fmt: skip
    return found


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


def _level(pieces: list[tuple[float, np.ndarray]]) -> tuple[list[float], list[float]]:
    """Times and loudness (0..1) of int16 chunks."""
    return [at for at, _ in pieces], [float(np.abs(pcm.astype(np.float32)).max()) / 32768 for _, pcm in pieces]


def plot(recorder: Recorder, path: Path) -> None:
    figure, rows = plt.subplots(4, 1, sharex=True, figsize=(14, 7), height_ratios=(2, 1, 2, 2), layout="constrained")
    microphone, camera, text, speech = rows
    times, levels = _level(recorder.microphone)
    microphone.fill_between(times, levels, np.negative(levels), color="tab:blue")
    starts = [at for at, speaking in recorder.user_speaking if speaking]
    ends = [at for at, speaking in recorder.user_speaking if not speaking]
    for start, end in zip(starts, ends, strict=False):
        microphone.axvspan(start, end, color="tab:blue", alpha=0.15)
    microphone.set_title("microphone level, and when the node hears the user speak", loc="left", fontsize=10)
    camera.eventplot([at for at, _ in recorder.pictures], colors="tab:green", linewidths=0.8)
    camera.set_title(f"camera pictures ({len(recorder.pictures)})", loc="left", fontsize=10)
    counts = np.arange(1, len(recorder.deltas) + 1)
    text.step([at for at, _ in recorder.deltas], counts, where="post", color="tab:red", marker=".")
    text.set_title(f"streamed text: pieces so far ({len(recorder.deltas)})", loc="left", fontsize=10)
    times, levels = _level(playback(recorder))
    widths = [pcm.size / SPEECH_RATE for _, pcm in recorder.speech]
    speech.bar(times, levels, widths, align="edge", color="tab:orange", label="as played")
    arrivals = [at for at, _ in recorder.speech]
    speech.eventplot(arrivals, lineoffsets=-0.1, linelengths=0.12, colors="black", linewidths=0.6, label="arrival")
    speech.set_title(f"speech: level as played, and arrival of its {len(arrivals)} messages", loc="left", fontsize=10)
    speech.set_xlabel("seconds")
    for row in rows:
        row.grid(axis="x", alpha=0.3)
        for turn in turns(recorder):
            row.axvline(turn["turn_closed_s"], color="grey", linestyle="--", linewidth=1)
    camera.set_yticks([])
    speech.set_ylim(bottom=-0.2)
    figure.suptitle("dashed: the user's turn is closed")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_report(recorder: Recorder, folder: Path, facts: dict) -> list[dict]:
    """Write the three files and return the turns."""
    write_wav(recorder, folder / "speech.wav")
    plot(recorder, folder / "timeline.png")
    metrics = {
        **facts,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "microphone_messages": len(recorder.microphone),
        "pictures": len(recorder.pictures),
        "turns": turns(recorder),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics["turns"]
