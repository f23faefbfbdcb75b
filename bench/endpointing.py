"""When a turn begins and when it ends: words that are heard, sounds that are no speech, and how long a turn's end takes.

python -m bench.run --only endpointing
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.report import Part, Row
from bench.sounds import NOISES, SOUNDS, sound
from bench.voices import NEURAL, Utterance, recorded, shipped, spoken
from omni_ros.dialogue.endpoint import (
    FRAME,
    SAMPLE_RATE,
    Endpointer,
    SileroVad,
    SpeechEnd,
    SpeechGoesOn,
    SpeechPause,
    SpeechStart,
)
from omni_ros.dialogue.smart_turn import SmartTurn

METHOD = """\
{utterances} utterances of {voices} synthetic voices ({names}). Where a sentence has a pause for thought it is 0.3, 0.5,
0.8 or 1.2 s long. Peaks are at -6, -15, -25 and -35 dBFS; noise is white, pink or a fan's, its SNR over the whole
speech. Every sentence is spoken as a whole, and silence is put where the speaker stops: inside a phrase, at a comma or
after "um". People's sentences are of Debian's pocketsphinx-testdata, read aloud, with silence at one of the reader's own
stops. A word is heard when all its samples are in an utterance that was cut. The end of a turn, clean and at 20 dB SNR, is
counted from the last sample of speech, the detector's own CPU time included. A cut-in is a turn that ended in a pause;
it is heard when the person does not go on before the answer's first sound, which is taken to come after 0.12 s (the
first PCM above): until then the turn is taken back."""
FIRST_SOUND = 0.12  # seconds after the end of a turn
LEVELS = (-6, -15, -25, -35)  # dBFS, of the loudest sample
PAUSES = (0.3, 0.5, 0.8, 1.2)  # seconds
CONDITIONS = {"clean": None, "20 dB SNR": 20, "10 dB SNR": 10, "5 dB SNR": 5}
ROOM = -70.0  # dBFS: a quiet room, with a microphone's own noise
BEFORE, AFTER = 0.9, 2.4  # seconds around the speech
SMART = {"end_seconds": 2.0}


@dataclass(frozen=True)
class Stream:
    """An utterance in its surroundings, and what the voice activity detector says to each frame."""

    said: Utterance
    begin: int  # samples before it
    pcm: np.ndarray
    voice: list[float]


@dataclass(frozen=True)
class Cut:
    """What the endpointer made of a stream."""

    heard: list[bool]  # of each word
    cut_in: bool
    heard_cut_in: bool  # and its answer would have been heard
    delay: float | None  # seconds; None when no turn ended after the last word


class Replay:
    """The probabilities of a stream again: each of its runs costs only the decisions."""

    name = "replay"

    def __init__(self, voice: list[float]) -> None:
        self._voice = voice

    def reset(self) -> None:
        self._left = iter(self._voice)

    def __call__(self, frame: np.ndarray) -> float:
        return next(self._left)


class Timed:
    """A turn detector with a stopwatch."""

    def __init__(self, model: SmartTurn) -> None:
        self._model = model
        self.seconds: list[float] = []

    def __call__(self, pcm: np.ndarray) -> float:
        began = time.thread_time()
        probability = self._model(pcm)
        self.seconds.append(time.thread_time() - began)
        return probability


def stream(said: Utterance, vad: SileroVad, level: float, snr: float | None, noise: str, seed: int) -> Stream:
    speech = said.pcm * 10 ** (level / 20)
    pcm = np.pad(speech, (int(BEFORE * SAMPLE_RATE), int(AFTER * SAMPLE_RATE)))
    pcm = pcm[: pcm.size // FRAME * FRAME]
    loudness = 10 * np.log10(np.mean(speech[speech != 0] ** 2))
    around = sound(noise, pcm.size / SAMPLE_RATE + 0.01, ROOM if snr is None else loudness - snr, seed)
    pcm = (pcm + around[: pcm.size]).astype(np.float32)
    return Stream(said, int(BEFORE * SAMPLE_RATE), pcm, probabilities(pcm, vad))


def probabilities(pcm: np.ndarray, vad: SileroVad) -> list[float]:
    vad.reset()
    return [vad(frame) for frame in pcm[: pcm.size // FRAME * FRAME].reshape(-1, FRAME)]


def cut(stream: Stream, turn_over: Timed | None = None, **options) -> Cut:
    endpointer = Endpointer(Replay(stream.voice), turn_over=turn_over, **options)
    last = stream.begin + stream.said.pcm.size
    pieces, ends, taken_back, position, paused, begun = [], [], 0, 0, 0, False
    endpointer.take_back = lambda pcm: position / SAMPLE_RATE < last / SAMPLE_RATE + ends[-1] + FIRST_SOUND
    for frame in stream.pcm.reshape(-1, FRAME):
        position += FRAME
        for event in endpointer.feed(frame):
            begun = not isinstance(event, SpeechEnd)
            if isinstance(event, SpeechGoesOn) and event.after_end:
                pieces.pop()
                taken_back += ends.pop() < 0
            elif isinstance(event, SpeechPause):
                paused = position
            elif isinstance(event, SpeechEnd):
                pieces.append((paused - event.pcm.size, paused))
                took = turn_over.seconds[-1] if turn_over and position == paused else 0.0
                ends.append(position / SAMPLE_RATE + took - last / SAMPLE_RATE)
    if begun:  # noise went on as speech until the stream's end
        pieces.append((position - endpointer.close().pcm.size, position))
    words = [(stream.begin + a, stream.begin + b) for a, b in stream.said.words]
    heard = [any(a <= word[0] and word[1] <= b for a, b in pieces) for word in words]
    late = [end for end in ends if end >= 0]
    early = any(end < 0 for end in ends)
    return Cut(heard, early or taken_back > 0, early, late[0] if late else None)


def false_turns(vad: SileroVad, seconds: float = 15.0) -> list[str]:
    """Sounds, each at three levels, that began a turn."""
    found = []
    for name in SOUNDS:
        for level in (-45, -30, -18):
            pcm = sound(name, seconds, level) + sound("pink noise", seconds, ROOM, 1)
            voice = probabilities(pcm, vad)
            events = Endpointer(Replay(voice)).feed(pcm[: len(voice) * FRAME])
            if any(isinstance(event, SpeechStart) for event in events):
                found.append(f"{name} at {level} dBFS")
    return found


def measure(output: Path, threads: int, repetitions: int) -> Part:
    said, vad, model = spoken(output / "voices", PAUSES) or shipped(), SileroVad(), SmartTurn()
    noises, rows, details = list(NOISES), [], {}
    smart, silent = [], []
    streams: dict[str, list[Stream]] = {}
    for number, (condition, snr) in enumerate(CONDITIONS.items()):
        chosen = said if snr is None else said[number % 2 :: 2]
        streams[condition] = [
            stream(one, vad, LEVELS[(n + number) % 4], snr, noises[n % 3], n + number) for n, one in enumerate(chosen)
        ]
    timed = Timed(model)
    for condition, bound in (("clean", 99.0), ("20 dB SNR", None), ("10 dB SNR", 97.0), ("5 dB SNR", None)):
        cuts = [cut(one, timed, **SMART) for one in streams[condition]]
        heard = [word for one in cuts for word in one.heard]
        goal = (">=", bound) if bound else None
        rows.append(Row(f"words heard of {len(heard)}, {condition}", 100 * float(np.mean(heard)), "%", goal))
        if snr_is_usual(condition):
            smart += cuts
            silent += [cut(one) for one in streams[condition]]
        details[f"missed, {condition}"] = [
            f"{one.said.voice}: {one.said.text}" for one, c in zip(streams[condition], cuts) if not all(c.heard)
        ]
    details["false turns"] = false_turns(vad)
    rows.append(Row(f"of {3 * len(SOUNDS)} sounds that are no speech began a turn", len(details["false turns"]), "", ("<=", 0)))
    usual = [one.said for name in streams if snr_is_usual(name) for one in streams[name]]
    hesitant = [bool(one.pauses) for one in usual]
    rows += ends("smart", smart, hesitant, goals=True) + ends("silence 0.55 s", silent, hesitant, goals=False)
    if neural := [n for n, one in enumerate(usual) if one.voice.startswith(NEURAL)]:
        rows += ends("smart, neural voices alone", [smart[n] for n in neural], [hesitant[n] for n in neural], goals=False)
    for kind in dict.fromkeys(one.kind for one in usual if one.pauses):
        wrong = [c.cut_in for one, c in zip(usual, smart) if one.kind == kind]
        rows.append(Row(f"smart: cut-ins of {len(wrong)} {kind}", 100 * float(np.mean(wrong)), "%"))
    if people := recorded(PAUSES):
        cuts = [cut(stream(one, vad, -15, None, noises[n % 3], n), timed, **SMART) for n, one in enumerate(people)]
        rows += ends("smart, people's sentences", cuts, [bool(one.pauses) for one in people], goals=False)
    rows += [
        Row("Silero VAD, CPU time per second of sound", 1000 * vad_cost(vad), "ms"),
        Row("Smart Turn, CPU time per pause", 1000 * float(np.median(timed.seconds)), "ms"),
    ]
    names = ", ".join(dict.fromkeys(one.voice for one in said))
    method = METHOD.format(utterances=len(said), voices=len({one.voice for one in said}), names=names)
    return Part("When a turn begins and ends", method, rows, details)


def vad_cost(vad: SileroVad, seconds: int = 20) -> float:
    pcm = sound("pink noise", seconds, -30)
    began = time.process_time()
    probabilities(pcm, vad)
    return (time.process_time() - began) / seconds


def snr_is_usual(condition: str) -> bool:
    """The ends of turns are measured where a robot usually listens."""
    return condition in ("clean", "20 dB SNR")


def ends(name: str, cuts: list[Cut], hesitant: list[bool], goals: bool) -> list[Row]:
    delays = [one.delay for one in cuts if one.delay is not None]
    rows = [
        Row(f"{name}: end of speech to end of turn, p50", float(np.median(delays)), "s", ("<=", 0.30) if goals else None),
        Row(f"{name}: p95", float(np.percentile(delays, 95)), "s", ("<=", 0.9) if goals else None),
    ]
    if any(hesitant):
        wrong = [one.cut_in for one, pauses in zip(cuts, hesitant) if pauses]
        rows.append(Row(f"{name}: cut-ins of {len(wrong)}", 100 * float(np.mean(wrong)), "%", ("<=", 3.0) if goals else None))
        loud = [one.heard_cut_in for one, pauses in zip(cuts, hesitant) if pauses]
        rows.append(Row(f"{name}: cut-ins that were heard", 100 * float(np.mean(loud)), "%"))
    return rows
