"""When an answer reached its stages: measured by the dialogue, told as an outcome and in diagnostics."""

import itertools

import numpy as np
import pytest
from scripted_model import PER_TOKEN, PREFILL
from test_dialogue import World

from omni_ros.dialogue.latency import STAGES, Latency
from omni_ros.dialogue.turn import Outcome
from omni_ros.pipeline.request import Finished

METRICS = {"inputs_s": 0.02, "prefill_s": 0.1, "first_token_s": 0.11, "first_code_s": 0.14, "first_pcm_s": 0.15, "rtf": 0.1}
FRAME = 0.032  # seconds: the grain of voice activity detection


class Timed(World):
    """Its model says when it reached its stages, as the pipeline does."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.outcomes: list[Outcome] = []
        self.face.outcome = self.outcomes.append
        play = self.model._play

        def with_metrics(request):
            for event in play(request):
                if isinstance(event, Finished):
                    event.metrics.update(METRICS)
                yield event

        self.model._play = with_metrics


@pytest.fixture
def world():
    world = Timed()
    yield world
    world.close()


def test_a_spoken_turn_counts_from_the_last_voice(world):
    world.say(1.0)
    world.idle()
    latency = world.outcomes[0].latency
    assert latency.end_of_turn == pytest.approx(0.55, abs=2 * FRAME)
    began = latency.inputs - METRICS["inputs_s"]  # when the turn had ended, or before
    assert 0 < began <= latency.end_of_turn + 1e-6
    for stage in ("inputs", "prefill", "first_token", "first_code", "first_pcm"):
        assert getattr(latency, stage) == pytest.approx(began + METRICS[f"{stage}_s"])
    # by the clock: the scripted model's first frame, and not what its metrics say
    assert latency.first_played == pytest.approx(max(latency.end_of_turn, began + PREFILL + PER_TOKEN), abs=1e-6)
    assert tuple(latency.reached()) == STAGES


def test_a_typed_turn_has_ended_when_it_comes(world):
    world.dialogue.ask("hello")
    world.idle()
    latency = world.outcomes[0].latency
    assert latency.end_of_turn == 0 and latency.first_token == pytest.approx(0.11)


def test_a_microphone_that_stops_is_waited_for(world):
    world.hear(1.0, 0.5)  # and nothing more, not even silence
    world.clock.sleep(1.5)
    world.idle()
    assert world.outcomes[0].latency.end_of_turn == pytest.approx(1.0, abs=2 * FRAME)


def test_text_is_not_played_and_an_interrupted_answer_may_not_be(world):
    world.dialogue.settings = type(world.dialogue.settings)(generation={"audio_output": False})
    world.dialogue.ask("in writing")
    world.idle()
    world.dialogue.settings = type(world.dialogue.settings)()
    world.dialogue.ask("never mind")
    world.clock.sleep(PREFILL / 2)
    world.dialogue.cancel()
    world.idle()
    assert [outcome.latency.first_played for outcome in world.outcomes] == [None, None]


def test_an_answer_of_one_piece_has_a_first_sample(world):
    """It is made and finished at one moment: the outcome waits for the pacer's thread to have its turn."""
    from omni_ros.pipeline.request import AudioChunk, TextDelta

    def at_once(request):
        yield TextDelta("yes", [1])
        yield AudioChunk(np.full(1920, 0.1, np.float32), False)
        yield Finished("yes", [1], np.zeros((16, 1)), "stop", "stop", dict(METRICS))

    world.model._play = at_once
    world.dialogue.ask("now?")
    world.idle()
    assert world.outcomes[0].latency.first_played == pytest.approx(0, abs=1e-6)


def test_an_error_has_the_stages_before_it(world):
    world.model.fault = RuntimeError("broken")
    world.say(1.0)
    world.idle()
    (outcome,) = world.outcomes
    assert outcome.error and outcome.latency.reached().keys() == {"end_of_turn"}


def test_stages_that_were_not_reached_are_left_out():
    assert Latency.measure(1.0, 1.5, 1.6, {"inputs_s": 0.1}, None).reached() == pytest.approx({"end_of_turn": 0.5, "inputs": 0.7})
    assert Latency.measure(1.0, 1.5, None, {}, None).reached() == {"end_of_turn": 0.5}
    eager = Latency.measure(1.0, 1.5, 1.2, METRICS, 1.5).reached()  # begun before it was known that the user had finished
    assert eager["first_token"] == pytest.approx(0.31) and eager["first_played"] == 0.5


def test_diagnostics_and_the_topic_have_the_same_keys():
    pytest.importorskip("diagnostic_msgs")
    from omni_ros.nodes.diagnostics import Health, latency_status

    outcome = Outcome("stop", "stop", latency=Latency.measure(1.0, 1.5, 1.6, METRICS, 1.9))
    pairs = {pair.key: float(pair.value) for pair in latency_status("omni: latency", outcome).values}
    assert list(pairs) == [f"{stage.replace('_', ' ')} s" for stage in STAGES]
    assert all(a < b for a, b in itertools.pairwise(pairs.values()))
    health = Health()
    health.turn_ended(outcome)
    told = {
        p.key.removeprefix("latency "): float(p.value) for p in health.status("omni", "idle", {}).values if "latency" in p.key
    }
    assert told == pytest.approx(pairs, abs=1e-3)
