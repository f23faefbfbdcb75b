"""What happened in a replay: turns, and all sound on one timeline."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omni_ros.dialogue.latency import Latency

HEARD_RATE, SPOKEN_RATE = 16000, 24000  # Hz

Sound = list[tuple[float, np.ndarray]]  # when it arrived, in seconds since the bag began; int16 [n]


@dataclass
class Turn:
    """One answer, and what it answers."""

    asked_s: float  # since the bag began
    said: str  # the typed words, or "" for sound or where nobody asked
    sound_s: float  # seconds of it
    picture: list[int] | None  # height, width
    reason: str
    audio_reason: str
    text: str
    error: str
    token_ids: list[int]
    latency: dict[str, float]  # stage -> seconds since the user's last sound
    metrics: dict[str, Any]  # the pipeline's
    codes: np.ndarray  # int16 [16, frames] as made
    say: str = ""  # what a program had the robot speak, in place of an answer
    facts: str = ""  # what was known and went with the question
    pcm: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))  # [n] at 24 kHz as played
    speech_s: float | None = None  # when it began to be played


@dataclass
class Conversation:
    heard: Sound = field(default_factory=list)  # 16 kHz
    spoken: Sound = field(default_factory=list)  # 24 kHz
    user_speaking: list[tuple[float, bool]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    problems: list[tuple[float, str]] = field(default_factory=list)  # when, what: in words
    history: list[str] = field(default_factory=list)  # what is remembered at the end: "user: ...", "assistant: ..."

    def user_speaking_times(self) -> list[tuple[float, bool]]:
        """To the millisecond."""
        return [(round(at, 3), speaking) for at, speaking in self.user_speaking]

    def give_speech(self) -> None:
        """Each turn the speech that was played after it was asked."""
        for number, turn in enumerate(self.turns):
            until = self.turns[number + 1].asked_s if number + 1 < len(self.turns) else float("inf")
            own = [(at, pcm) for at, pcm in self.spoken if turn.asked_s <= at < until]
            if own:
                turn.speech_s, turn.pcm = round(own[0][0], 4), np.concatenate([pcm for _, pcm in own])


def timeline(sound: Sound, rate: int, gap: float = 0.0) -> np.ndarray:
    """int16 [n] from second 0 on: pieces that arrive early wait for those before them, as before a loudspeaker; a piece that
    is late by more than `gap` seconds comes after silence."""
    starts, free = [], 0.0
    for at, pcm in sound:
        start = at if at > free + gap else free
        starts.append(round(start * rate))
        free = start + pcm.size / rate
    samples = np.zeros(max((start + pcm.size for start, (_, pcm) in zip(starts, sound)), default=0), np.int16)
    for start, (_, pcm) in zip(starts, sound):
        samples[start : start + pcm.size] = pcm
    return samples


def without_playing(latency: Latency | None) -> dict[str, float]:
    """A replay plays nothing: what its clock says of playing is no measurement."""
    return {stage: round(s, 4) for stage, s in latency.reached().items() if stage != "first_played"} if latency else {}
