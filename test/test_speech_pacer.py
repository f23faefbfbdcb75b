"""Speech leaves in real time, in order and complete; nothing of a cancelled response follows its cancellation."""

import numpy as np
import pytest
from simulated_clock import SimulatedClock
from simulated_speaker import SimulatedSpeaker

from omni_ros.dialogue.heard import SAMPLE_RATE
from omni_ros.dialogue.speech_pacer import SpeechPacer

CHUNK = 0.02
LEAD = 0.1


class Listener:
    def __init__(self) -> None:
        self.clock = SimulatedClock()
        self.chunks: list[tuple[float, np.ndarray]] = []
        self.speaking: list[bool] = []
        self.failures: list[Exception] = []
        self.publisher = SpeechPacer(
            lambda pcm: self.chunks.append((self.clock.now(), pcm)),
            self.speaking.append,
            lambda gain: False,
            self.failures.append,
            chunk=CHUNK,
            lead=LEAD,
            clock=self.clock,
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
    started = listener.clock.now()
    listener.publisher.begin(1)
    for piece in np.split(pcm, [100, 5000, 5001]):
        listener.publisher.push(1, piece)
    listener.publisher.end(1)
    assert 0.5 <= listener.clock.now() - started < 0.7
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
    listener.clock.sleep(0.05)
    assert listener.heard().size == 0.005 * SAMPLE_RATE


def test_a_slow_pipeline_is_a_gap(listener):
    listener.publisher.begin(1)
    for _ in range(3):
        listener.publisher.push(1, ramp(0.02))
        listener.clock.sleep(0.08)
    assert listener.publisher.gaps == 2
    assert listener.publisher.speaking  # still the same answer


def test_nothing_follows_a_cancellation(listener):
    publisher = listener.publisher
    publisher.begin(1)
    publisher.push(1, ramp(5))
    listener.clock.sleep(0.05)
    publisher.cancel()
    sent = listener.heard().size
    publisher.push(1, ramp(1))  # late
    publisher.end(1)  # returns at once
    listener.clock.sleep(0.05)
    assert listener.heard().size == sent <= (LEAD + 0.05 + CHUNK) * SAMPLE_RATE
    assert listener.speaking == [True, False]
    publisher.begin(2)
    publisher.push(1, ramp(1))  # still late
    publisher.push(2, -ramp(0.02))
    publisher.end(2)
    assert np.array_equal(listener.heard()[sent:], -ramp(0.02))


def test_a_response_without_speech_ends_at_once(listener):
    listener.publisher.begin(1)
    started = listener.clock.now()
    listener.publisher.end(1)
    assert listener.clock.now() - started < 0.05
    assert listener.speaking == []


# ---- on simulated time --------------------------------------------------------------------------------------------


class Simulation:
    def __init__(self, lead: float = 0.3, obeys: bool = True) -> None:
        self.clock = SimulatedClock()
        self.speaker = SimulatedSpeaker(self.clock, obeys)
        self.chunks: list[tuple[float, np.ndarray]] = []
        self.speaking: list[tuple[float, bool]] = []
        self.failures: list[str] = []
        self.broken = 0  # calls of publish that raise
        self.pacer = SpeechPacer(
            self._publish,
            lambda speaking: self.speaking.append((self.clock.now(), speaking)),
            self.speaker.gain,
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
        self.speaker.speech(pcm)


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
        assert simulation.speaker.played().size == pytest.approx(stop_after * SAMPLE_RATE, abs=1)
        simulation.pacer.close()


def test_a_loudspeaker_that_obeys_no_gain_plays_what_it_was_sent():
    simulation = Simulation(obeys=False)
    simulation.pacer.begin(1)
    simulation.pacer.push(1, ramp(2.0))
    simulation.clock.sleep(1.0)
    simulation.pacer.hold()
    simulation.clock.sleep(0.5)
    heard = simulation.speaker.played().size
    assert 1.2 * SAMPLE_RATE < heard <= (1.0 + 0.3 + 0.06) * SAMPLE_RATE  # at most `lead` and a message longer
    simulation.pacer.go_on()
    assert simulation.pacer.end(1) == 2 * SAMPLE_RATE
    assert np.array_equal(simulation.speaker.played(), ramp(2.0))  # and nothing twice
    simulation.pacer.begin(2)
    simulation.pacer.push(2, ramp(2.0))
    simulation.clock.sleep(1.0)
    simulation.pacer.cancel()
    assert simulation.pacer.end(2) == simulation.speaker.played().size - 2 * SAMPLE_RATE > SAMPLE_RATE
    simulation.pacer.close()


@pytest.mark.parametrize("hold_at", [0.03, 0.31, 0.5, 1.0, 1.5, 1.98])
@pytest.mark.parametrize("for_seconds", [0.01, 0.6])
def test_speech_that_was_held_goes_on_where_it_was(hold_at, for_seconds):
    simulation = Simulation()
    pacer, clock, speaker = simulation.pacer, simulation.clock, simulation.speaker
    pacer.begin(1)
    pacer.push(1, ramp(1.2))
    clock.sleep(hold_at / 2)
    pacer.push(1, 1.2 * SAMPLE_RATE + ramp(0.8))
    clock.sleep(hold_at / 2)
    pacer.duck()
    pacer.hold()
    assert speaker.played().size == pytest.approx(hold_at * SAMPLE_RATE, abs=1)
    clock.sleep(for_seconds)
    assert speaker.played().size == pytest.approx(hold_at * SAMPLE_RATE, abs=1) and pacer.speaking
    pacer.go_on()
    assert pacer.end(1) == 2 * SAMPLE_RATE
    assert np.array_equal(speaker.played(), ramp(2.0))  # every sample once
    assert clock.now() == pytest.approx(2.0 + for_seconds, abs=0.03)
    assert [gain for _, gain in speaker.gains] == [0.2, 0.0, 1.0]
    assert pacer.gaps == 0
    pacer.close()


def test_a_response_that_begins_while_speech_is_held_waits():
    simulation = Simulation()
    simulation.pacer.hold()
    simulation.pacer.begin(1)
    simulation.pacer.push(1, ramp(0.5))
    simulation.clock.sleep(1.0)
    assert simulation.chunks == [] and simulation.speaking == []
    simulation.pacer.go_on()
    assert simulation.pacer.end(1) == 0.5 * SAMPLE_RATE
    assert simulation.speaker.gains == []
    simulation.pacer.close()


@pytest.mark.parametrize(("obeys", "next_at"), [(True, 0.521), (False, 0.5)])  # who obeys no gain is not waited for
def test_after_a_stop_the_loudspeaker_is_told_to_play_before_the_next_speech_comes(obeys, next_at):
    simulation = Simulation(obeys=obeys)
    simulation.pacer.begin(1)
    simulation.pacer.push(1, ramp(2.0))
    simulation.clock.sleep(0.5)
    simulation.pacer.cancel()
    simulation.pacer.begin(2)
    for _ in range(5):
        simulation.pacer.push(2, ramp(0.1))
        simulation.clock.sleep(0.001)
    assert simulation.speaker.gains == [(0.5, 0.0), (0.5, 1.0)]
    assert simulation.pacer.end(2) == 0.5 * SAMPLE_RATE
    assert min(at for at, _ in simulation.chunks if at >= 0.5) == pytest.approx(next_at, abs=1e-3)
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
    simulation = Simulation(obeys=False)
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
