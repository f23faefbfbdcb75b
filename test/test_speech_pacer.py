"""Speech leaves in real time, in order and complete; nothing of a cancelled response follows its cancellation."""

import time

import numpy as np
import pytest
from simulated_clock import SimulatedClock

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


# ---- on simulated time --------------------------------------------------------------------------------------------


class Simulation:
    def __init__(self, lead: float = 0.3) -> None:
        self.clock = SimulatedClock()
        self.chunks: list[tuple[float, np.ndarray]] = []
        self.speaking: list[tuple[float, bool]] = []
        self.failures: list[str] = []
        self.broken = 0  # calls of publish that raise
        self.pacer = SpeechPacer(
            self._publish,
            lambda speaking: self.speaking.append((self.clock.now(), speaking)),
            lambda error: self.failures.append(str(error)),
            chunk=0.06,
            lead=lead,
            clock=self.clock,
        )

    def _publish(self, pcm: np.ndarray) -> None:
        if self.broken:
            self.broken -= 1
            raise RuntimeError("no such publisher")
        self.chunks.append((self.clock.now(), pcm))


def test_what_was_heard_is_what_a_loudspeaker_has_played():
    for stop_after in (0.0, 0.1, 0.29, 0.5, 1.0, 1.99):
        simulation = Simulation()
        simulation.pacer.begin(1)
        simulation.pacer.push(1, ramp(2.0))
        simulation.clock.sleep(stop_after)
        simulation.pacer.cancel()
        assert simulation.pacer.end(1) == pytest.approx(min(stop_after, 2.0) * SAMPLE_RATE, abs=1)
        sent = sum(pcm.size for _, pcm in simulation.chunks)
        assert sent <= (stop_after + 0.3 + 0.06) * SAMPLE_RATE
        simulation.pacer.close()


def test_speech_that_ends_by_itself_was_heard_whole_and_ends_when_it_was():
    simulation = Simulation()
    simulation.pacer.begin(1)
    simulation.pacer.push(1, ramp(1.0))
    assert simulation.pacer.end(1) == SAMPLE_RATE
    assert simulation.clock.now() == pytest.approx(1.0, abs=0.005)
    assert simulation.pacer.silent_since == pytest.approx(1.0, abs=0.005)
    simulation.pacer.close()


def test_a_stop_counts_as_silent_only_when_what_cannot_be_recalled_was_played():
    simulation = Simulation()
    simulation.pacer.begin(1)
    simulation.pacer.push(1, ramp(5.0))
    simulation.clock.sleep(1.0)
    simulation.pacer.cancel()
    assert 1.2 < simulation.pacer.silent_since < 1.4
    simulation.pacer.close()


def test_one_exception_of_publish_costs_one_response():
    simulation = Simulation()
    simulation.broken = 1
    simulation.pacer.begin(1)
    simulation.pacer.push(1, ramp(1.0))
    simulation.pacer.end(1)
    assert simulation.failures == ["no such publisher"] and simulation.chunks == []
    simulation.pacer.begin(2)
    simulation.pacer.push(2, ramp(1.0))
    assert simulation.pacer.end(2) == SAMPLE_RATE
    assert [speaking for _, speaking in simulation.speaking][-2:] == [True, False]
    simulation.pacer.close()
