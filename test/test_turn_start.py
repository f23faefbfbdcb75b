"""What may begin a turn: a button, a wake word. On simulated time, and the real wake word on real sound."""

import numpy as np
import pytest
from omni_sounds import okay_nabu, question, silence
from test_dialogue import CHUNK, STEP, World

from omni_ros.dialogue.endpoint import SAMPLE_RATE, Endpointer, SpeechEnd, SpeechStart, make_vad
from omni_ros.dialogue.settings import Settings
from omni_ros.dialogue.turn_start import AfterWakeWord, PushToTalk
from omni_ros.dialogue.wake_word import WakeWord
from omni_ros.errors import InputError


class Word:
    """A wake word that cannot be misheard: the loudest samples are it."""

    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def __call__(self, pcm):
        said = np.flatnonzero(pcm > 0.9)
        return pcm[said[-1] + 1 :] if said.size else None


def world_with(kind: str, window: float = 3.0, follow_up: float = 2.0, **options) -> World:
    def ears(endpointer: Endpointer):
        if kind == "button":
            return PushToTalk(endpointer, max_seconds=5.0)
        return AfterWakeWord(endpointer, Word(), window=window, follow_up=follow_up)

    return World(ears=ears, **options)


@pytest.fixture
def button():
    world = world_with("button")
    yield world
    world.close()


@pytest.fixture
def sleeper():
    world = world_with("word")
    yield world
    world.close()


def wake(world: World) -> None:
    """The wake word, its last sound included."""
    world.dialogue.hear(np.full(CHUNK, 0.95, np.float32))
    world.clock.sleep(STEP)
    world.hear(0.2, 0.5)


def release(world: World) -> None:
    world.dialogue.push_to_talk(False)
    world.clock.sleep(0.01)


# ---- push to talk ----------------------------------------------------------------------------------------------------


def test_only_what_is_said_while_the_button_is_held_is_heard(button):
    button.say()
    assert not button.face.of("user")
    button.dialogue.push_to_talk(True)
    button.hear(0.3)
    button.hear(1.0, 0.5)
    button.hear(2.0)  # a pause is no end
    button.hear(0.5, 0.5)
    assert not button.model.requests
    released = button.clock.now()
    release(button)
    assert [speaking for _, speaking in button.face.of("user")] == [True, False]
    assert button.face.of("user")[-1][0] == pytest.approx(released, abs=0.001)  # though no more sound has come
    button.say()
    button.idle()
    (request,) = button.model.requests
    pcm = request.messages[-1]["content"][0]["audio"]
    assert pcm.size == round(3.8 * SAMPLE_RATE) and pcm[0] == 0.0 and pcm[-1] == 0.5


def test_held_without_a_word_is_no_turn(button):
    button.dialogue.push_to_talk(True)
    button.hear(2.0)
    release(button)
    button.hear(1.0)
    assert not button.model.requests and not button.face.of("user")
    button.dialogue.push_to_talk(True)
    button.hear(0.5, 0.5)
    release(button)
    button.idle()
    assert button.model.requests[0].messages[-1]["content"][0]["audio"].size == round(0.5 * SAMPLE_RATE)


def test_the_button_stops_the_answer_at_once_unless_it_may_not(button):
    for preempt in (True, False):
        button.dialogue.settings = Settings(preempt=preempt)
        button.dialogue.ask("Tell me a story.")
        button.until(lambda: button.face.of("speaking") and button.face.of("speaking")[-1][1])
        for _ in range(100):  # a button that is published at full rate
            button.dialogue.push_to_talk(True)
        button.clock.sleep(0.1)
        assert button.face.of("speaking")[-1][1] is not preempt
        release(button)
        button.idle()


def test_what_is_said_with_the_button_held_is_heard_though_the_robot_speaks(button):
    button.dialogue.settings = Settings(mute_while_speaking=True, preempt=False)
    button.dialogue.ask("Tell me a story.")
    button.until(lambda: button.face.of("speaking"))
    button.dialogue.push_to_talk(True)
    button.hear(0.5, 0.5)
    release(button)
    button.idle()
    assert len(button.model.requests) == 2


def test_a_button_that_is_stuck_ends_the_turn_and_keeps_no_memory(button):
    button.dialogue.push_to_talk(True)
    button.hear(60.0, 0.5)
    button.idle()
    assert len(button.model.requests) == 1
    assert button.model.requests[0].messages[-1]["content"][0]["audio"].size == 5 * SAMPLE_RATE
    assert sum(piece.size for piece in button.dialogue._listener._endpointer._held) == 0
    release(button)
    button.dialogue.push_to_talk(True)
    button.hear(0.5, 0.5)
    release(button)
    button.idle()
    assert len(button.model.requests) == 2


def test_a_microphone_that_stops_while_the_button_is_held(button):
    button.dialogue.push_to_talk(True)
    button.hear(0.5, 0.5)
    button.clock.sleep(2)
    button.idle()
    assert [what for _, *what in button.face.of("stopped")] == [[1.0, False]] and len(button.model.requests) == 1


def test_a_button_where_none_is_waited_for_is_refused():
    world = World()
    with pytest.raises(InputError, match="push_to_talk"):
        world.dialogue.push_to_talk(True)
    world.say()
    world.idle()
    assert len(world.model.requests) == 1
    world.close()


# ---- wake word -------------------------------------------------------------------------------------------------------


def test_nothing_is_heard_before_the_wake_word(sleeper):
    sleeper.say()
    assert not sleeper.face.of("user") and sleeper.vad.frames == 0
    wake(sleeper)
    sleeper.say()
    sleeper.idle()
    assert len(sleeper.model.requests) == 1
    assert [awake for _, awake in sleeper.face.of("awake")] == [True]


def test_the_end_of_the_wake_word_is_no_turn_but_what_follows_at_once_is(sleeper):
    wake(sleeper)
    sleeper.hear(2.0)
    assert not sleeper.face.of("user")
    sleeper.hear(4.0)
    assert [awake for _, awake in sleeper.face.of("awake")] == [True, False]
    wake(sleeper)
    sleeper.say(0.4)  # without a pause
    sleeper.idle()
    (request,) = sleeper.model.requests
    assert request.messages[-1]["content"][0]["audio"].max() == 0.5


def test_the_window_closes_but_not_under_a_word_nor_an_answer(sleeper):
    wake(sleeper)
    sleeper.hear(2.5)
    sleeper.hear(5.0, 0.5)  # begun in time
    sleeper.hear(0.7)
    assert len(sleeper.model.requests) == 1
    while sleeper.dialogue.state != "idle":  # an answer longer than the window
        sleeper.hear(0.1)
    sleeper.hear(1.0)
    sleeper.say()  # the follow-up needs no wake word
    assert len(sleeper.model.requests) == 2
    while sleeper.dialogue.state != "idle":
        sleeper.hear(0.1)
    sleeper.hear(2.5)
    sleeper.say()
    sleeper.idle()
    assert len(sleeper.model.requests) == 2
    assert [awake for _, awake in sleeper.face.of("awake")] == [True, False]


def test_without_follow_ups_every_turn_needs_the_wake_word():
    world = world_with("word", follow_up=0.0)
    wake(world)
    world.say()
    world.say()
    world.idle()
    assert len(world.model.requests) == 1
    wake(world)
    world.say()
    world.idle()
    assert len(world.model.requests) == 2
    world.close()


def test_barge_in_needs_no_second_wake_word(sleeper):
    wake(sleeper)
    sleeper.say()
    sleeper.until(lambda: sleeper.face.of("speaking"))
    sleeper.hear(1.0, 0.5)
    assert sleeper.face.of("speaking")[-1][1] is False
    sleeper.hear(0.7)
    sleeper.idle()
    assert len(sleeper.model.requests) == 2


def test_its_own_voice_does_not_wake_a_muted_robot(sleeper):
    sleeper.dialogue.settings = Settings(mute_while_speaking=True)
    sleeper.dialogue.say("a text in which it says its own wake word")
    sleeper.until(lambda: sleeper.face.of("speaking"))
    wake(sleeper)
    assert not sleeper.face.of("awake")


def test_what_stops_the_microphone_ends_the_window(sleeper):
    wake(sleeper)
    sleeper.dialogue.stop_listening()
    sleeper.clock.sleep(0.01)
    assert [awake for _, awake in sleeper.face.of("awake")] == [True, False]
    sleeper.say()
    assert not sleeper.model.requests


# ---- the real one ----------------------------------------------------------------------------------------------------


def float_pcm(*pieces: np.ndarray) -> np.ndarray:
    return np.concatenate(pieces).astype(np.float32) / 32768


@pytest.fixture(scope="module")
def word() -> WakeWord:
    pytest.importorskip("pymicro_wakeword")
    return WakeWord("okay_nabu")


@pytest.mark.parametrize("chunk", [160, 320, 1000, 16000])
def test_a_spoken_wake_word_is_heard_and_a_question_is_none(word, chunk):
    word.reset()
    pcm = float_pcm(silence(1), question(), silence(1), okay_nabu(), silence(1))
    for start in range(0, pcm.size, chunk):
        if (after := word(pcm[start : start + chunk])) is not None:
            break
    heard = min(start + chunk, pcm.size) - after.size
    begins = pcm.size - SAMPLE_RATE - okay_nabu().size
    assert begins + 0.4 * SAMPLE_RATE < heard < begins + okay_nabu().size + 0.3 * SAMPLE_RATE


def test_a_question_after_a_spoken_wake_word_is_one_utterance(word):
    """The wake word is no part of it, and alone it is no turn."""
    word.reset()
    ears = AfterWakeWord(Endpointer(make_vad("auto")), word, window=4.0, follow_up=0.0)
    told: list[bool] = []
    ears.on_awake = told.append
    pcm = float_pcm(silence(1), question(), silence(1), okay_nabu(), silence(1), question(), silence(1), question(), silence(1))
    events = [event for start in range(0, pcm.size, CHUNK) for event in ears.feed(pcm[start : start + CHUNK])]
    assert [type(event) for event in events if isinstance(event, SpeechStart | SpeechEnd)] == [SpeechStart, SpeechEnd]
    said = events[-1].pcm
    assert abs(said.size - question().size) < SAMPLE_RATE and told == [True, False]
    ears = AfterWakeWord(Endpointer(make_vad("auto")), word, window=2.0, follow_up=0.0)
    pcm = float_pcm(silence(1), okay_nabu(), silence(4))
    assert not [event for start in range(0, pcm.size, CHUNK) for event in ears.feed(pcm[start : start + CHUNK])]


def test_models_that_are_not_there(tmp_path):
    pytest.importorskip("pymicro_wakeword")
    (tmp_path / "broken.json").write_text('{"model": "broken.tflite", "wake_word": "x", "micro": {}}')
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    (tmp_path / "empty.json").write_text("")
    for name in ("okay_robot", str(tmp_path / "absent.json"), str(tmp_path / "broken.json"), str(tmp_path / "empty.json")):
        with pytest.raises(InputError, match="wake_word"):
            WakeWord(name)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pymicro_wakeword", None)
    with pytest.raises(InputError, match="pip install pymicro-wakeword"):
        WakeWord("okay_nabu")
