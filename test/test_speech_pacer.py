"""Speech leaves in real time, in order and complete; nothing of a cancelled response follows its cancellation."""

import time

import numpy as np
import pytest

from omni_ros.dialogue.clock import Clock
from omni_ros.dialogue.heard import SAMPLE_RATE
from omni_ros.dialogue.speech_pacer import SpeechPacer

CHUNK = 0.02
LEAD = 0.1


class Listener:
    def __init__(self) -> None:
        self.chunks: list[tuple[float, np.ndarray]] = []
        self.speaking: list[bool] = []
        self.failures: list[Exception] = []
        self.publisher = SpeechPacer(
            lambda pcm: self.chunks.append((time.monotonic(), pcm)),
            self.speaking.append,
            self.failures.append,
            chunk=CHUNK,
            lead=LEAD,
            clock=Clock(),
        )

    def heard(self) -> np.ndarray:
        return np.concatenate([pcm for _, pcm in self.chunks])


@pytest.fixture
def listener():
    listener = Listener()
    yield listener
    listener.publisher.close()


def ramp(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * SAMPLE_RATE), dtype=np.float32)


def test_everything_arrives_in_order_and_in_time(listener):
    pcm = ramp(0.5)
    started = time.monotonic()
    listener.publisher.begin(1)
    for piece in np.split(pcm, [100, 5000, 5001]):
        listener.publisher.push(1, piece)
    listener.publisher.end(1)
    assert 0.5 <= time.monotonic() - started < 0.7
    assert np.array_equal(listener.heard(), pcm)
    assert listener.speaking == [True, False]
    sent = 0.0
    for at, chunk in listener.chunks:
        assert sent - (at - started) < LEAD + 0.001  # never further ahead of playback
        assert chunk.size <= CHUNK * SAMPLE_RATE
        sent += chunk.size / SAMPLE_RATE
    assert listener.publisher.gaps == 0


def test_the_first_piece_is_not_held_back(listener):
    listener.publisher.begin(1)
    listener.publisher.push(1, ramp(0.005))  # a quarter of a message
    time.sleep(0.05)
    assert listener.heard().size == 0.005 * SAMPLE_RATE


def test_a_slow_pipeline_is_a_gap(listener):
    listener.publisher.begin(1)
    for _ in range(3):
        listener.publisher.push(1, ramp(0.02))
        time.sleep(0.08)
    assert listener.publisher.gaps == 2
    assert listener.publisher.speaking  # still the same answer


def test_nothing_follows_a_cancellation(listener):
    publisher = listener.publisher
    publisher.begin(1)
    publisher.push(1, ramp(5))
    time.sleep(0.05)
    publisher.cancel()
    sent = listener.heard().size
    publisher.push(1, ramp(1))  # late
    publisher.end(1)  # returns at once
    time.sleep(0.05)
    assert listener.heard().size == sent <= (LEAD + 0.05 + CHUNK) * SAMPLE_RATE
    assert listener.speaking == [True, False]
    publisher.begin(2)
    publisher.push(1, ramp(1))  # still late
    publisher.push(2, -ramp(0.02))
    publisher.end(2)
    assert np.array_equal(listener.heard()[sent:], -ramp(0.02))


def test_a_response_without_speech_ends_at_once(listener):
    listener.publisher.begin(1)
    started = time.monotonic()
    listener.publisher.end(1)
    assert time.monotonic() - started < 0.05
    assert listener.speaking == []
