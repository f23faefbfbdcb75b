"""Who stops the robot: nods, short commands and sentences of synthetic voices, spoken into an answer."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.report import Part, Row
from bench.voices import installed, speak, trimmed
from omni_ros.dialogue.barge_in import BargeIn
from omni_ros.dialogue.endpoint import FRAME, SAMPLE_RATE, Endpointer, SpeechEnd, SpeechGoesOn, SpeechPause, SpeechStart, make_vad
from omni_ros.dialogue.settings import Settings

NODS = ("Yes.", "Yeah.", "Yep.", "Okay.", "Right.", "Mm.", "Uh-huh.", "Sure.", "I see.")
COMMANDS = ("Stop.", "No.", "Wait.", "Hey.", "Enough.", "Hold on.", "Stop it.", "Be quiet.", "One moment.")
SENTENCES = (
    "What time is it?",
    "No, the other one.",
    "That is not what I asked for.",
    "Turn around and go back to the door.",
    "Stop talking, please.",
    "Please speak a little louder.",
)
AGAIN = 1.0  # seconds after which a command is repeated
NOISE_DB = 10.0  # of white noise below the speech, where there is noise
METHOD = f"""\
Speech of {{voices}} synthetic voices at -20 dBFS, clean and in white noise {NOISE_DB:g} dB below it, judged by Silero VAD, the
endpointer and the rule in `omni_ros/dialogue/barge_in.py` with its defaults, while an answer is spoken. Times count from the
first loud 10 ms of the voice until the loudspeaker is told to be silent."""


@dataclass
class Robot:
    """Speaks all the time, and notes when it was told to be quiet and to stop."""

    time: float = 0.0
    speaking: bool = True
    left: float = float("inf")
    held: list[float] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def duck(self) -> None: ...

    def go_on(self) -> None: ...

    def hold(self) -> None:
        self.held.append(self.time)


@dataclass(frozen=True)
class Heard:
    held: float | None  # seconds after the voice began
    stopped: float | None
    told: bool  # an utterance was noticed at all


def spoken_into_an_answer(voice: np.ndarray, noise_db: float | None, seed: int) -> Heard:
    """`voice`: float32 [n] at 16 kHz from its first word on."""
    rng = np.random.default_rng(seed)
    level = np.sqrt(np.mean(voice**2))
    pcm = np.concatenate([np.zeros(2 * SAMPLE_RATE), voice * 0.1 / level, np.zeros(SAMPLE_RATE)])
    pcm += rng.normal(0, 0.1 * 10 ** (-(noise_db if noise_db is not None else 50.0) / 20), pcm.size)
    robot, told = Robot(), False
    answer = object()
    rule = BargeIn(robot, lambda: None if robot.stopped else answer, lambda: robot.stopped.append(robot.time), robot)
    endpointer = Endpointer(make_vad("silero"))
    for start in range(0, pcm.size - FRAME, FRAME):
        robot.time = (start + FRAME) / SAMPLE_RATE - 2.0
        for event in endpointer.feed(pcm[start : start + FRAME].astype(np.float32)):
            match event:
                case SpeechStart():
                    told = True
                    rule.begins()
                case SpeechPause():
                    rule.pauses()
                case SpeechGoesOn():
                    rule.goes_on()
                case SpeechEnd():
                    rule.ends(said=True)
        if endpointer.in_speech:
            rule.lasts(endpointer.voiced_seconds, Settings.barge_in_seconds)
    return Heard(*(times[0] if times else None for times in (robot.held, robot.stopped)), told)


def measure(output: Path, threads: int, repetitions: int) -> Part:
    voices = installed()
    if not voices:
        return Part("Barge-in", "Not measured: no speech synthesis is installed (espeak-ng, flite, festival).", [], {})
    found: dict[str, dict[str, list[Heard]]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for kind, texts in {"nod": NODS, "command": COMMANDS, "command, twice": COMMANDS, "sentence": SENTENCES}.items():
            found[kind] = {text: [] for text in texts}
            for text in texts:
                for seed, (engine, voice) in enumerate(voices):
                    pcm, _ = trimmed(speak(engine, voice, text, Path(cache)))
                    if kind == "command, twice":
                        pcm = np.concatenate([pcm, np.zeros(round(AGAIN * SAMPLE_RATE), np.float32), pcm])
                    found[kind][text] += [spoken_into_an_answer(pcm, noise, seed) for noise in (None, NOISE_DB)]

    def share(kind: str) -> float:
        heard = [h for each in found[kind].values() for h in each]
        return 100 * sum(h.stopped is not None for h in heard) / len(heard)

    sentences = [h for each in found["sentence"].values() for h in each]
    silent = 1e3 * np.array([h.held if h.held is not None else np.inf for h in sentences])
    stopped = 1e3 * np.array([h.stopped if h.stopped is not None else np.inf for h in sentences])
    rows = [
        Row("sentences that stop the answer", share("sentence"), "%", (">=", 99)),
        Row("silent after a sentence began, median", float(np.median(silent)), "ms"),
        Row("silent after a sentence began, 95 %", float(np.quantile(silent, 0.95)), "ms", ("<=", 500)),
        Row("decided after a sentence began, median", float(np.median(stopped)), "ms"),
        Row("nods that let the answer go on", 100 - share("nod"), "%", (">=", 90)),
        Row("single-word and two-word commands that stop the answer, said once", share("command"), "%"),
        Row(f"the same, said again after {AGAIN:g} s", share("command, twice"), "%", (">=", 95)),
    ]
    words = {
        f"{text} ({kind})": f"stopped {sum(h.stopped is not None for h in each)} of {len(each)}"
        for kind, texts in found.items()
        for text, each in texts.items()
    }
    return Part("Barge-in", METHOD.format(voices=len(voices)), rows, words)
