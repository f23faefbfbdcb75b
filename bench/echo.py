"""Does the robot hear itself, and does it hear a person meanwhile? Simulated rooms in front of the microphone node's own path.

    python -m bench.echo --minutes 10

The robot's voice is docs/audio, the person's demo/questions. Played blocks reach the canceller as messages do, late by a random
time; loudspeaker and microphone have clocks of their own.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from bench.models import ROOT
from bench.report import Part, Row, text_table
from omni_ros.devices.device import LATENCY
from omni_ros.devices.echo import Echo
from omni_ros.devices.kalman import FRAME
from omni_ros.devices.reference import PLAYED_RATE, RATE, Reference
from omni_ros.devices.resampler import Resampler
from omni_ros.devices.speech_queue import RATE as SPEECH_RATE
from omni_ros.dialogue.endpoint import Endpointer, SpeechStart, make_vad

BLOCK = SPEECH_RATE // 50
ECHO_DB, NEAR_DB, NOISE_DB = -20.0, -30.0, -60.0  # dBFS, of what is voiced; of the room's noise
REVERBERATION = 0.4  # seconds until it is 60 dB down
JITTER = 0.003  # seconds that a message is late, on average (exponentially distributed)
SETTLED = 90.0  # seconds until the clocks' difference is known well enough for people to be heard through the robot's voice
METHOD = """\
The robot speaks without end (`docs/audio`, gaps of 0.2 to 1 s) in simulated rooms: reverberation of 0.4 s, echo 20 to 300 ms
after the loudspeaker, at -20 dBFS; the loudspeaker's clock up to 100 ppm off; messages late by 3 ms on average. `speech starts`
are those of the endpointer with Silero VAD while the robot is alone. Double talk: questions of a person (`demo/questions`), 10 dB
below the echo, from the moment (90 s) at which the clocks' difference is known; `heard` counts those in which an utterance
began, `share` is how much of their seconds lies within utterances, against the same questions without a robot. AEC3 alone is
`pywebrtc-audio` without the Kalman filter."""


@dataclass(frozen=True)
class Room:
    delay: float  # seconds from the loudspeaker to the microphone
    ppm: float  # by which the loudspeaker's clock is fast
    distortion: float = 0.0  # of a small loudspeaker: 0.1 is about 3 % of third harmonic

    @property
    def name(self) -> str:
        return f"{1000 * self.delay:.0f} ms, {self.ppm:+.0f} ppm" + ", distorting" * bool(self.distortion)


ROOMS = (Room(0.02, 0.0), Room(0.1, 100.0), Room(0.3, -100.0), Room(0.05, 30.0, distortion=0.1))


def read(path: Path, rate: int) -> np.ndarray:  # float32 [n]
    resampler, pieces = av.AudioResampler(format="flt", layout="mono", rate=rate), []
    with av.open(str(path)) as file:
        for frame in [*file.decode(audio=0), None]:
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
    return np.concatenate(pieces)


def at_level(pcm: np.ndarray, decibel: float) -> np.ndarray:
    voiced = pcm[np.abs(pcm) > 0.02 * np.abs(pcm).max()]
    return (pcm * (10 ** (decibel / 20) / np.sqrt(np.mean(voiced**2)))).astype(np.float32)


def talk(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """The robot's voice, float32 [n] at 24 kHz."""
    clips = [at_level(read(path, SPEECH_RATE), -20.0) for path in sorted((ROOT / "docs" / "audio").glob("*.flac"))]
    pieces, size = [np.zeros(2 * SPEECH_RATE, np.float32)], 0
    while size < seconds * SPEECH_RATE:
        pieces += [clips[rng.integers(len(clips))], np.zeros(int(rng.uniform(0.2, 1.0) * SPEECH_RATE), np.float32)]
        size = sum(piece.size for piece in pieces)
    return np.concatenate(pieces)[: int(seconds * SPEECH_RATE)]


def reverberant(pcm: np.ndarray, delay: float, rng: np.random.Generator) -> np.ndarray:
    """Through an impulse response of direct sound and a tail of noise that dies away, at 16 kHz."""
    times = np.arange(int(REVERBERATION * RATE)) / RATE
    tail = rng.normal(size=times.size) * 10 ** (-3 * times / REVERBERATION)
    response = 0.5 * tail / np.sqrt(np.sum(tail**2))
    response[0] = 0.86
    size = 1 << (pcm.size + response.size).bit_length()
    wet = np.fft.irfft(np.fft.rfft(pcm, size) * np.fft.rfft(response, size), size)[: pcm.size]
    return np.concatenate([np.zeros(round(delay * RATE)), wet]).astype(np.float32)[: pcm.size]


def echo_of(far: np.ndarray, room: Room, rng: np.random.Generator) -> np.ndarray:
    """What the microphone hears of it, by the microphone's clock: float32 [n] at 16 kHz."""
    resampler = Resampler(SPEECH_RATE, RATE)
    resampler.drift = room.ppm * 1e-6
    heard = resampler(far + room.distortion * (np.tanh(4 * far) / 4 - far) if room.distortion else far)
    return at_level(reverberant(heard, LATENCY + room.delay, rng), ECHO_DB)


def questions(size: int, first: float, gap: float, rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """A person in the room: float32 [size] at 16 kHz, and when each question begins and ends, in seconds."""
    clips = [read(path, RATE) for path in sorted((ROOT / "demo" / "questions").glob("*.flac"))]
    pcm, spans, at = np.zeros(size, np.float32), [], int(first * RATE)
    while at + 3 * RATE < size:
        clip = at_level(reverberant(clips[len(spans) % len(clips)], 0.003, rng), NEAR_DB)[: size - at]
        pcm[at : at + clip.size] += clip
        spans.append((at / RATE, (at + clip.size) / RATE))
        at += clip.size + int(gap * RATE)
    return pcm, spans


def listened(far: np.ndarray, near: np.ndarray, ppm: float, echo: Echo, rng: np.random.Generator) -> np.ndarray:
    """The microphone node's path: what the robot listens to, of `near` while `far` is played."""
    reference, out, put = Reference(), [], 0
    late = 0.0
    for start in range(0, near.size - FRAME + 1, FRAME):
        now = (start + FRAME) / RATE + 0.013 + rng.uniform(0, 0.004)
        while (played_at := (put + BLOCK) / PLAYED_RATE / (1 + ppm * 1e-6)) + late <= now and put < far.size:
            reference.put(far[put : put + BLOCK], played_at + late)
            put += BLOCK
            late = max(0.0, late - 0.02, rng.exponential(JITTER))  # one message cannot overtake another
        before = reference.layouts
        heard = reference.take(FRAME, now)
        if reference.layouts != before:
            echo.learn()
        out.append(echo(near[start : start + FRAME], heard))
    return np.concatenate(out)


def utterances(pcm: np.ndarray) -> Iterator[tuple[float, float]]:
    """Begin and end of each that Silero finds, in seconds."""
    endpointer, began = Endpointer(make_vad("silero")), 0.0
    for start in range(0, pcm.size, FRAME):
        for event in endpointer.feed(pcm[start : start + FRAME]):
            if isinstance(event, SpeechStart):
                began = start / RATE
            else:
                yield began, start / RATE
    if endpointer.in_speech:
        yield began, pcm.size / RATE


def covered(spans: list[tuple[float, float]], found: list[tuple[float, float]]) -> np.ndarray:
    """The share of each span that lies within one of `found`."""
    return np.array([sum(max(0.0, min(b, d) - max(a, c)) for c, d in found) / (b - a) for a, b in spans])


class Aec3Alone:
    """What the Kalman filter is compared with."""

    def __init__(self) -> None:
        from pywebrtc_audio import AudioProcessor

        self._processor = AudioProcessor(RATE, echo_cancellation=True, noise_suppression=True)

    def learn(self) -> None:
        """It finds out by itself."""

    def __call__(self, near: np.ndarray, far: np.ndarray, blind: bool = False) -> np.ndarray:
        return self._processor.process(near, far)


def aec() -> Echo:
    return Echo("aec", noise_suppression=True)


def alone(room: Room, minutes: float, echo, seed: int = 0) -> tuple[int, float, float]:
    """The robot by itself: how often an utterance began, the echo's reduction in dB, seconds of CPU per second of sound."""
    rng = np.random.default_rng(seed)
    far = talk(60 * minutes, rng)
    heard = echo_of(far, room, rng)
    near = heard + rng.normal(0, 10 ** (NOISE_DB / 20), heard.size).astype(np.float32)
    began = time.process_time()
    out = listened(far, near, room.ppm, echo, rng)
    cpu = (time.process_time() - began) / (out.size / RATE)
    loud = np.abs(heard[: out.size]) > 10 ** (ECHO_DB / 20)
    loud[: loud.size // 4] = False  # of a canceller that has learnt
    reduction = 10 * np.log10(np.mean(near[: out.size][loud] ** 2) / np.mean(out[loud] ** 2))
    return len(list(utterances(out))), float(reduction), cpu


def double_talk(room: Room, seconds: float, echo, seed: int = 1, first: float = SETTLED) -> tuple[int, int, float, int]:
    """Questions while the robot speaks: how many were heard, how many there were, how much of them relative to a robot that is
    silent, and how many utterances began where nobody spoke."""
    rng = np.random.default_rng(seed)
    far = talk(seconds, rng)
    heard = echo_of(far, room, rng)
    person, spans = questions(heard.size, first, 2.5, rng)
    noise = rng.normal(0, 10 ** (NOISE_DB / 20), heard.size).astype(np.float32)
    found = list(utterances(listened(far, heard + person + noise, room.ppm, echo, rng)))
    reference = covered(spans, list(utterances(person + noise))).mean()
    share = covered(spans, found)
    false = sum(not any(a < d + 0.5 and c < b for a, b in spans) for c, d in found)
    return int(np.sum(share > 0.3)), len(spans), float(share.mean() / reference), false


def measure(output: Path, threads: int, repetitions: int, minutes: float = 10.0) -> Part:
    rows, cpu = [], []
    starts, _, _ = alone(ROOMS[0], min(minutes, 1.0), Echo("none"))
    rows.append(Row(f"echo: none, {ROOMS[0].name}: speech starts in a minute", starts))
    for room in ROOMS:
        starts, reduction, seconds = alone(room, minutes, aec())
        cpu.append(seconds)
        rows += [
            Row(f"{room.name}: speech starts in {minutes:g} minutes", starts, goal=("<=", 0)),
            Row(f"{room.name}: echo reduced by", reduction, "dB"),
        ]
        print(rows[-2], rows[-1], file=sys.stderr, flush=True)
    for room in ROOMS:
        heard, said, share, false = double_talk(room, SETTLED + 90, aec())
        rows += [
            Row(f"double talk, {room.name}: heard of {said}", heard, goal=(">=", said)),
            Row(f"double talk, {room.name}: share, of that without a robot", share, goal=(">=", 0.8)),
            Row(f"double talk, {room.name}: utterances that nobody spoke", false, goal=("<=", 0)),
        ]
        heard, said, share, _ = double_talk(room, SETTLED + 90, Aec3Alone())
        rows.append(Row(f"double talk, {room.name}, AEC3 alone: share", share))
        print(*rows[-4:], file=sys.stderr, flush=True)
    rows.append(Row("CPU per second of sound, reference and canceller", 1000 * float(np.mean(cpu)), "ms"))
    return Part("Echo", METHOD, rows, {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="that the robot speaks in each room (default: %(default)s)")
    args = parser.parse_args()
    part = measure(Path(), 1, 1, args.minutes)
    print(text_table([part]))
    for row in part.rows:
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
