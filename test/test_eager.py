"""An answer that is begun in a pause is told when the turn is closed, and leaves no trace when the user goes on."""

import time

import numpy as np
import pytest
from scripted_model import PER_FRAME, PER_TOKEN, PREFILL
from test_dialogue import ANSWERS, Loudness, World

from omni_ros.dialogue.dialogue import Dialogue
from omni_ros.dialogue.endpoint import FRAME, SAMPLE_RATE, Endpointer
from omni_ros.dialogue.face import Face
from omni_ros.dialogue.settings import Settings
from omni_ros.errors import EngineError, InputError
from omni_ros.pipeline.request import Finished, Request

PAUSE, END = 0.192, 0.576  # seconds of silence, in frames of 32 ms
FIRST_PCM = PREFILL + PER_TOKEN  # of the model, after a turn is closed


def by_turn(world: World) -> World:
    """Answers are numbered by the turn, so that attempts which were withdrawn do not count."""
    world.model.number = lambda request: sum(message["role"] == "user" for message in request.messages) - 1
    return world


@pytest.fixture
def world():
    world = by_turn(World())
    yield world
    assert world.face.of("failed") == []
    world.close()


def told(world: World) -> dict[str, list]:
    """Everything but when, and how the speech was cut into messages."""
    kinds = sorted({kind for _, kind, *_ in world.face.log} - {"speech"})
    return {kind: [what for _, *what in world.face.of(kind)] for kind in kinds}


def closed_at(world: World, number: int = -1) -> float:
    return [at for at, speaking in world.face.of("user") if not speaking][number]


def test_what_was_made_in_the_pause_is_told_when_the_turn_is_closed(world):
    world.say(1.0)
    world.idle()
    closed = closed_at(world)
    assert min(at for at, kind, *_ in world.face.log if kind in ("text", "speech", "speaking")) == closed
    begun = 0.01 + 1.0 + PAUSE  # the model's times count from there
    words = [at for at, _ in world.face.of("text")]
    assert words == [pytest.approx(max(closed, begun + PREFILL + i * PER_TOKEN), abs=0.02) for i in range(len(words))]
    assert [state for _, state in world.face.of("state")] == ["idle", "listening", "thinking", "speaking", "idle"]


def test_times_count_from_the_end_of_the_turn():
    outcomes = {}
    for eager in (True, False):
        world = World(settings=Settings(eager=eager))
        world.face.outcome = lambda outcome, eager=eager: outcomes.update({eager: outcome})
        world.say()
        world.idle()
        world.close()
    assert outcomes[True].first_text == outcomes[True].first_audio == 0.0
    assert outcomes[False].first_text == pytest.approx(PREFILL) and outcomes[False].first_audio == pytest.approx(FIRST_PCM)
    assert outcomes[True].metrics["eager_s"] == pytest.approx(END - PAUSE, abs=0.02)
    assert "eager_s" not in outcomes[False].metrics


def hesitating(eager: bool, turns: int = 20) -> World:
    """Each turn has pauses inside, of lengths at which the answer is at another place each time."""
    world = by_turn(World(settings=Settings(eager=eager)))
    for turn in range(turns):
        for part in range(3):
            world.hear(0.4 + 0.1 * part, 0.5)
            world.hear(PAUSE + 0.02 + 0.015 * turn if part < 2 else 0.7)
        world.idle()
    return world


def test_whoever_goes_on_leaves_no_trace_of_the_answer_that_was_begun():
    eager, patient = hesitating(True), hesitating(False)
    assert len(eager.model.requests) > 2 * len(patient.model.requests) >= 40  # most answers were begun three times
    assert told(eager) == told(patient)
    assert eager.remembered() == patient.remembered()
    heard = [world.face.speaker.played() for world in (eager, patient)]
    assert np.array_equal(*heard)
    sounds = [
        [m["content"][0]["audio"] for m in world.dialogue.history.messages("") if m["role"] == "user"]
        for world in (eager, patient)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*sounds, strict=True))
    gained = [a[0] - b[0] for a, b in zip(patient.face.of("text"), eager.face.of("text"), strict=True)]
    assert min(gained) >= 0 and max(gained) >= PREFILL
    for world in (eager, patient):
        world.close()


def test_it_repeats_exactly():
    logs = []
    for _ in range(2):
        world = hesitating(True, turns=4)
        logs.append((world.face.log, world.remembered()))
        world.close()
    assert logs[0] == logs[1]


def in_a_pause(world: World) -> World:
    """The user has paused for so long that the answer is begun, and its first words are held back."""
    world.hear(1.0, 0.5)
    world.hear(PAUSE + PREFILL + PER_FRAME)
    assert len(world.model.requests) == 1 and world.face.of("text") == [] and world.dialogue.state == "listening"
    return world


def test_nothing_of_it_shows(world):
    in_a_pause(world)
    assert [entry[1:] for entry in world.face.log] == [("state", "idle"), ("user", True), ("state", "listening")]
    assert world.dialogue.facts()["waiting turns"] == 0 and not world.dialogue.cancel()
    world.hear(1.0)  # cancel() hit no turn: this one goes on
    world.idle()
    assert len(world.model.requests) == 1 and [text for _, text in world.face.of("response")] == [ANSWERS[0]]


def test_a_typed_turn_goes_first_as_without(world):
    in_a_pause(world)
    world.dialogue.ask("typed")
    world.hear(1.0)
    world.idle()
    assert world.remembered()[:2] == ["user: typed", "user: <audio>"]
    assert [reason for _, reason, *_ in world.face.of("outcome")] == ["cancelled", "stop"]


@pytest.mark.parametrize("how", ["reset", "enable", "stop_listening"])
def test_a_turn_that_is_dropped_in_the_pause_is_dropped_with_its_answer(world, how):
    in_a_pause(world)
    world.dialogue.enable(False) if how == "enable" else getattr(world.dialogue, how)()
    world.hear(1.0)
    world.dialogue.enable(True)
    world.idle()
    assert not told(world).keys() & {"text", "response", "outcome", "speaking"}
    assert world.remembered() == [] and world.dialogue.state == "idle"
    world.say()
    world.idle()
    assert world.remembered() == ["user: <audio>", f"assistant: {ANSWERS[0]}"]


def test_a_microphone_that_stops_in_the_pause_closes_the_turn(world):
    in_a_pause(world)
    world.clock.sleep(1.5)
    world.idle()
    assert len(world.model.requests) == 1 and world.remembered() == ["user: <audio>", f"assistant: {ANSWERS[0]}"]


def test_a_failure_is_told_when_the_turn_is_closed_and_only_then(world):
    world.model.fault = EngineError("thinker: damaged")
    world.hear(1.0, 0.5)
    world.hear(PAUSE + 0.2)
    assert world.face.of("outcome") == []
    world.hear(0.5, 0.5)  # the user goes on: that answer was never asked for
    world.hear(1.0)
    world.idle()
    assert [reason for _, reason, *_ in world.face.of("outcome")] == ["stop"]
    world.model.fault = EngineError("thinker: damaged")
    world.say()
    world.idle()
    assert world.face.of("outcome")[1] == (closed_at(world), "error", "none", "thinker: damaged")


def test_a_broken_picture_is_told_once(world):
    def broken() -> np.ndarray:
        raise InputError("half a JPEG")

    world.hear(0.1)
    for _ in range(3):
        world.dialogue.see(broken)
        world.hear(0.5, 0.5)
        world.hear(PAUSE + 0.05)
    world.hear(0.7)
    world.idle()
    assert [what for _, *what in world.face.of("bad")] == [["camera", "half a JPEG"]]
    assert len(world.face.of("response")) == 1


def test_the_history_is_computed_ahead_although_an_answer_was_withdrawn(world):
    world.model.feeding = 2.0  # a slow model: the user pauses before it is done
    world.dialogue.ask("one")
    world.idle()
    assert len(world.model.fed) == 0
    world.hear(0.5, 0.5)
    world.hear(PAUSE + 0.05)
    assert [done for *_, done in world.model.fed] == [False]
    world.hear(3.0, 0.5)
    assert [done for *_, done in world.model.fed] == [False, True]
    world.hear(0.7)
    world.idle()


def test_a_withdrawn_answer_that_had_no_room_for_the_history_leaves_it_alone():
    world = by_turn(World(room=3))
    for question in ("one", "two"):
        world.dialogue.ask(question)
        world.idle()
    before = world.remembered()
    assert len(before) == 4
    world.hear(1.0, 0.5)
    world.hear(PAUSE + PREFILL)
    assert len(world.model.requests[-1].messages) == 3  # without the oldest exchange
    world.dialogue.stop_listening()
    world.clock.sleep(1)
    assert world.remembered() == before
    world.close()


def test_close_in_a_pause():
    world = in_a_pause(World())
    world.close()
    assert world.face.of("outcome") == []


# ---- on real engines ----------------------------------------------------------------------------------------------


class Recorded:
    """A conversation, and how its turns ended."""

    def __init__(self, conversation) -> None:
        self.conversation = conversation
        self.finished: list[Finished] = []
        self.feed, self.cancel, self.reset = conversation.feed, conversation.cancel, conversation.reset

    def generate(self, request: Request):
        for event in self.conversation.generate(request):
            if isinstance(event, Finished):
                self.finished.append(event)
            yield event


class Sound(Face):
    def __init__(self) -> None:
        self.pcm: list[np.ndarray] = []
        self.outcomes: list = []

    def speech(self, pcm: np.ndarray) -> None:
        self.pcm.append(pcm)

    def outcome(self, outcome) -> None:
        self.outcomes.append(outcome)


def test_the_same_tokens_codes_and_samples_as_without(open_pipeline):
    """Three turns, with an answer begun and withdrawn in the pauses of each."""
    rng = np.random.default_rng(0)
    turns = [[rng.normal(0, 0.2, frames * FRAME).astype(np.float32) for frames in (20, 15)] for _ in range(3)]
    options = {"seed": 3, "max_generate_length": 8, "max_audio_length": 10}
    pipeline, found = open_pipeline("plain", "onnxruntime"), []
    for eager in (True, False):
        face, model = Sound(), Recorded(pipeline.conversation())
        settings = Settings(eager=eager, generation=options)
        dialogue = Dialogue(model, face, endpointer=Endpointer(Loudness()), settings=settings, speech_lead=5.0)
        for turn in turns:
            for part in turn:
                dialogue.hear(part)
                dialogue.hear(np.zeros(8 * FRAME, np.float32))
                time.sleep(0.4)
            dialogue.hear(np.zeros(SAMPLE_RATE, np.float32))
            time.sleep(0.1)
            dialogue.join()
        assert dialogue.close(5)
        model.conversation.close()
        found.append((model.finished, face, dialogue.history))
    (eager, face, history), (patient, plain_face, plain_history) = found
    assert [outcome.reason for outcome in face.outcomes] == [outcome.reason for outcome in plain_face.outcomes] == ["length"] * 3
    assert all(outcome.metrics["eager_s"] > 0.3 for outcome in face.outcomes)
    assert min(outcome.first_audio for outcome in face.outcomes) < 0.05  # made in the pause; on a busy machine not each time
    assert len(eager) == 6 and len(patient) == 3  # of each turn, one was begun and withdrawn
    for one, other in zip(eager[1::2], patient, strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(np.concatenate(face.pcm), np.concatenate(plain_face.pcm))
    texts = [
        [part["text"] for m in h.messages("") if m["role"] == "assistant" for part in m["content"]]
        for h in (history, plain_history)
    ]
    assert texts[0] == texts[1]


def slow(monkeypatch, **settings) -> World:
    """A model that needs half a second for the first sound after the end of a turn, even of one that was begun in its pause."""
    monkeypatch.setattr("scripted_model.PREFILL", 1.0)
    return by_turn(World(settings=Settings(**settings)))


@pytest.mark.parametrize("eager", [True, False])
def test_a_turn_that_ended_too_early_goes_on_while_nothing_of_its_answer_was_heard(monkeypatch, eager):
    world = slow(monkeypatch, eager=eager)
    world.hear(1.0, 0.5)
    world.hear(END + 0.1)
    assert world.dialogue.state == "thinking"
    world.hear(1.0, 0.5)
    assert world.dialogue.state == "listening"
    world.hear(1.0)
    world.idle()
    assert world.remembered() == ["user: <audio>", f"assistant: {ANSWERS[0]}"]
    (said,) = [m["content"][0]["audio"] for m in world.dialogue.history.messages("") if m["role"] == "user"]
    whole = 1.0 + END + 0.1 + 1.0 + PAUSE
    assert said.size / SAMPLE_RATE == pytest.approx(whole, abs=0.05)  # every sample of it, and the silence within
    assert [reason for _, reason, *_ in world.face.of("outcome")] == ["stop"]
    assert [text for _, text in world.face.of("response")] == [ANSWERS[0]]
    assert [speaking for _, speaking in world.face.of("user")] == [True, False, True, False]
    assert {value for _, value, _ in world.face.of("speech")} == {0.01}  # of the first turn
    world.close()


def test_what_is_said_after_the_first_sound_is_a_turn_of_its_own(monkeypatch):
    world = slow(monkeypatch, eager=False)
    world.hear(1.0, 0.5)
    world.hear(END + 1.8)
    assert world.face.of("speech")
    world.hear(1.0, 0.5)
    world.hear(1.0)
    world.idle()
    assert [line.split(":")[0] for line in world.remembered()] == ["user", "assistant", "user", "assistant"]
    world.close()


def test_no_word_is_to_be_read_before_the_first_sound(monkeypatch):
    world = slow(monkeypatch)
    world.say(1.0)
    world.idle()
    assert world.face.of("text")[0][0] == pytest.approx(world.face.of("speech")[0][0], abs=0.005)
    world.close()


def test_who_says_more_after_two_seconds_begins_anew(monkeypatch):
    monkeypatch.setattr("scripted_model.PREFILL", 5.0)
    world = by_turn(World())
    world.hear(1.0, 0.5)
    world.hear(PAUSE + Endpointer.TAKEN_BACK + 0.2)
    world.hear(1.0, 0.5)
    world.hear(1.0)
    world.idle()
    assert world.remembered()[:2] == ["user: <audio>", "user: <audio>"]
    world.close()
