"""Speech for the measurement of turn taking: what is said, by whom, and where its words and pauses are.

Debian packages: espeak-ng flite festival festvox-us-slt-hts festvox-kdlpc16k. A Piper voice joins in where PIPER_VOICE names
its .onnx file and the command `piper` (pip install piper-tts) is in the path. What is not installed is left out.
"""

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omni_ros.preprocess.audio import SAMPLE_RATE, load_audio

QUESTIONS = Path(__file__).parents[1] / "demo/questions"
RECORDINGS = Path("/usr/share/pocketsphinx/test/data")
HOP = SAMPLE_RATE // 100  # 10 ms
FLOOR_DB = -40.0  # speech is what is louder than this below the loudest 10 ms
VOICES = (
    ("espeak-ng", "en-us"),
    ("espeak-ng", "en-gb+f4"),
    ("flite", "slt"),
    ("flite", "rms"),
    ("flite", "awb"),
    ("festival", "cmu_us_slt_arctic_hts"),
    ("festival", "ked_diphone"),
    ("piper", os.environ.get("PIPER_VOICE", "")),
)
WHOLE = (
    "What do you see in front of you?",
    "Turn around and go back to the door.",
    "How many cups are on the table?",
    "Please bring me the red one.",
    "Can you tell me a story about the sea?",
    "My name is Ada.",
    "I think it is behind the sofa.",
    "Stop.",
    "Yes please.",
    "What time is it?",
    "Have you seen my keys this morning?",
    "Follow me to the kitchen.",
    "Please speak a little louder.",
    "Who was here before me?",
    "That is not what I asked for.",
    "Hello robot.",
)
# A comma is where the speaker stops to think: nothing that is complete stands before it.
HESITANT = (
    "When you are done with that, bring me the cup.",
    "If the door is open, please close it.",
    "Can you look for, um, my blue bottle?",
    "I would like you to go to, the kitchen.",
    "Could you please tell me, how far it is to the station?",
    "I was wondering whether, you could help me with this box.",
    "The thing that I am looking for, is small and round.",
    "Before you leave the room, turn off the light.",
    "My sister and, my brother will be here at eight.",
    "Do you know if, the other robot is still in the garden?",
    "Because it was raining, we stayed at home.",
    "Put the book on, the shelf next to the window.",
)


@dataclass(frozen=True)
class Utterance:
    """Clean speech: float32 [n] at 16 kHz that begins and ends with the voice; its peak is 1."""

    voice: str
    text: str
    pcm: np.ndarray
    words: list[tuple[int, int]]  # samples: begin and end of each
    pauses: list[tuple[int, int]]


def shipped() -> list[Utterance]:
    """The questions of the demo: two voices, for machines without a synthesiser."""
    found = []
    for path in sorted(QUESTIONS.glob("*.flac")):
        pcm, _ = trimmed(load_audio(path))
        letters = np.cumsum([0] + [len(word) + 1 for word in path.stem.split("_")])
        edges = (letters * pcm.size // letters[-1]).tolist()
        found.append(Utterance("demo", path.stem.replace("_", " "), pcm, list(zip(edges[:-1], edges[1:])), []))
    return found


def recorded() -> list[Utterance]:
    """People: sentences read aloud and commands of Debian's package pocketsphinx-testdata, each as one word; [] without it."""
    found = []
    for path in sorted([*RECORDINGS.glob("librivox/*.wav"), *RECORDINGS.glob("cards/*.wav")]):
        pcm, _ = trimmed(load_audio(path))
        found.append(Utterance("people", path.stem, pcm, [(0, pcm.size)], []))
    return found


def installed() -> list[tuple[str, str]]:
    return [(engine, voice) for engine, voice in VOICES if voice and shutil.which(engine)]


def speak(engine: str, voice: str, text: str, cache: Path) -> np.ndarray:
    """float32 [n] at 16 kHz; festival, espeak-ng and flite say the same each time, and the cache makes Piper do so."""
    name = hashlib.sha256(f"{engine} {voice} {text}".encode()).hexdigest()[:16]
    path = cache / f"{name}.wav"
    if not path.exists():
        part = cache / f"{name}.part.wav"
        festival = f"""(voice_{voice}) (utt.save.wave (utt.synth (eval (list 'Utterance 'Text "{text}"))) "{part}" 'riff)"""
        command = {
            "espeak-ng": ["espeak-ng", "-v", voice, "-s", "150", "-w", part, text],
            "flite": ["flite", "-voice", voice, "-t", text, "-o", part],
            "festival": ["festival", "-b", festival.split(" ", 1)[0], festival.split(" ", 1)[1]],
            "piper": ["piper", "-m", voice, "-f", part, "--", text],
        }[engine]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part.rename(path)
    return load_audio(path)


def utterance(engine: str, voice: str, text: str, pause: float, cache: Path) -> Utterance:
    """`text` with each comma's pause `pause` seconds long. The words of what is between two pauses share its time by letters."""
    pcm, loud = trimmed(speak(engine, voice, text, cache))
    parts = [part.split() for part in text.split(",")]
    letters = np.array([sum(len(word) + 1 for word in part) for part in parts])
    pieces, words, pauses, begin, at = [], [], [], 0, 0
    for number, part in enumerate(parts):
        end, gap = pcm.size, (pcm.size, pcm.size)
        if number + 1 < len(parts):
            gap = pause_near(loud, pcm.size * letters[: number + 1].sum() / letters.sum())
            end = gap[0]
        pieces.append(pcm[begin:end])
        edges = at + (end - begin) * np.cumsum([0] + [len(word) + 1 for word in part]) // letters[number]
        words += list(zip(edges[:-1].tolist(), edges[1:].tolist()))
        at += end - begin
        if number + 1 < len(parts):
            silence = max(int(pause * SAMPLE_RATE), gap[1] - gap[0])
            pieces.append(np.zeros(silence, np.float32))
            pauses.append((at, at + silence))
            at += silence
        begin = gap[1]
    name = Path(voice).stem if engine == "piper" else voice
    return Utterance(f"{engine} {name}", text, np.concatenate(pieces), words, pauses)


def trimmed(pcm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Speech without the silence around it, with a peak of 1, and which of its 10 ms are loud: bool [n // 160]."""
    blocks = pcm[: pcm.size // HOP * HOP].reshape(-1, HOP)
    level = 10 * np.log10(blocks.var(axis=1) + 1e-12)
    loud = level > level.max() + FLOOR_DB
    first, last = np.flatnonzero(loud)[[0, -1]]
    speech = blocks[first : last + 1].ravel()
    return speech / np.abs(speech).max(), loud[first : last + 1]


def pause_near(loud: np.ndarray, expected: float) -> tuple[int, int]:
    """The samples of the comma: a long gap near where it is to be expected by the letters."""
    edges = np.flatnonzero(np.diff(loud.astype(int))) + 1
    gaps = [(start * HOP, end * HOP) for start, end in zip(edges[::2], edges[1::2])]
    return max(gaps, key=lambda gap: gap[1] - gap[0] - 0.3 * abs(sum(gap) / 2 - expected))
