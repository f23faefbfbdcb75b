"""The turns that the benchmarks run: greedy, so that every repetition and every engine does the same work."""

import time
from dataclasses import dataclass

import numpy as np

from omni_ros.pipeline.conversation import Conversation
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import AudioChunk, Finished, Request, TextDelta

QUESTION = [{"role": "user", "content": "What do you see in front of you?"}]
TOKENS, FRAMES = 48, 62  # a reply of two or three sentences and 5 s of speech (62 codec frames of 80 ms)


@dataclass(frozen=True)
class Heard:
    """One turn as its consumer saw it; times are seconds since the call."""

    finished: Finished
    text_times: list[float]
    chunks: list[tuple[float, int]]  # (arrival, samples)
    seconds: float
    started: float  # time.perf_counter

    @property
    def first_pcm(self) -> float:
        return self.chunks[0][0]


def question_with_media() -> list[dict]:
    """A robot's turn: a camera picture, 640 x 480, and 3 s of sound. Noise, which costs the encoders as much as any."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (480, 640, 3), np.uint8)
    sound = rng.standard_normal(3 * 16000).astype(np.float32) * np.float32(0.1)
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "audio", "audio": sound}]}]


def greedy(messages: list[dict] = QUESTION, tokens: int = TOKENS, frames: int = FRAMES, **options) -> Request:
    return Request(messages, max_generate_length=tokens, max_audio_length=frames, temperature=0, talker_temperature=0, **options)


def listen(pipeline: Pipeline | Conversation, request: Request) -> Heard:
    text_times, chunks, finished, started = [], [], None, time.perf_counter()
    for event in pipeline.generate(request):
        now = time.perf_counter() - started
        if isinstance(event, TextDelta):
            text_times.append(now)
        elif isinstance(event, AudioChunk) and event.pcm.size:
            chunks.append((now, event.pcm.size))
        elif isinstance(event, Finished):
            finished = event
    return Heard(finished, text_times, chunks, time.perf_counter() - started, started)
