"""Whoever speaks into an answer is given way, and stops it by going on; a nod or a noise does not. On simulated time."""

import numpy as np
import pytest
from scripted_model import FRAME
from simulated_clock import SimulatedClock
from simulated_speaker import SimulatedSpeaker
from test_dialogue import ANSWERS, World

from omni_ros.dialogue.barge_in import BargeIn
from omni_ros.dialogue.heard import UNFINISHED
from omni_ros.dialogue.settings import Settings
from omni_ros.dialogue.speech_pacer import DUCKED, SpeechPacer

SPEECH = len(ANSWERS[0].split()) * 4 * FRAME  # samples of the first answer


@pytest.fixture
def world():
    """The first answer has been spoken for a second."""
    world = World()
    speaking(world)
    yield world
    assert world.face.of("failed") == []
    world.close()


def speaking(world: World, seconds: float = 1.0) -> None:
    world.dialogue.ask("Tell me a story.")
    world.until(lambda: world.face.of("speech"))
    world.hear(seconds)


def word(world: World, seconds: float = 0.35, pause: float = 0.7) -> float:
    """Says a short word and returns when it began."""
    began = world.clock.now()
    world.hear(seconds, 0.5)
    world.hear(pause)
    return began


def test_a_nod_makes_the_robot_pause_and_go_on_where_it_was(world):
    began = word(world)
    world.idle()
    speaker = world.face.speaker
    assert speaker.played().size == SPEECH  # every sample once
    # quieter as soon as it may be speech, silent at 0.25 s of voice, and on again 0.2 s after the word
    expected = [(0.12, DUCKED), (0.24, 0.0), (0.58, 1.0)]
    assert [(at - began, gain) for at, gain in speaker.gains] == [(pytest.approx(at, abs=0.04), gain) for at, gain in expected]
    assert len(world.model.requests) == 1 and world.remembered() == ["user: Tell me a story.", f"assistant: {ANSWERS[0]}"]
    assert [speaking for _, speaking in world.face.of("speaking")] == [True, False]
    assert world.face.of("outcome")[0][1:] == ("stop", "stop", "")
    assert world.dialogue.facts()["back-channels"] == 1 and world.dialogue.facts()["speech gaps"] == 0


def test_a_very_short_sound_only_makes_it_quieter(world):
    word(world, 0.18)
    world.idle()
    speaker = world.face.speaker
    assert [gain for _, gain in speaker.gains] == [DUCKED, 1.0] and speaker.played().size == SPEECH
    assert len(world.model.requests) == 1


def test_a_click_does_nothing(world):
    word(world, 0.08)
    world.idle()
    assert world.face.speaker.gains == [] and world.face.of("user") == []


def test_nods_again_and_again_do_not_stop_it():
    world = World(answers=[" ".join(["word"] * 60)])
    speaking(world)
    for _ in range(5):
        word(world, 0.35, pause=2.5)
    world.idle()
    assert len(world.model.requests) == 1 and world.face.speaker.played().size == 60 * 4 * FRAME
    assert world.dialogue.facts()["back-channels"] == 5
    world.close()


@pytest.mark.parametrize("pause", [0.3, 0.7, 1.5])
def test_a_short_stop_is_heard_when_it_is_repeated(world, pause):
    """In one utterance (a pause of 0.3 s) or in two."""
    word(world, 0.38, pause)
    again = word(world, 0.38)
    world.idle()
    stopped = [at for at, speaking in world.face.of("speaking") if not speaking][0]
    assert again < stopped < again + 0.38 and world.face.speaker.silent_from(0.01) < again + 0.35
    assert len(world.model.requests) == 2
    assert world.remembered()[0] == "user: Tell me a story." and world.remembered()[1].endswith("—")
    assert world.remembered()[2] == "user: <audio>"


def test_whoever_goes_on_talking_stops_it_while_they_talk(world):
    began = world.clock.now()
    world.hear(2.0, 0.5)
    speaker = world.face.speaker
    stopped = [at for at, speaking in world.face.of("speaking") if not speaking]
    assert speaker.silent_from(0.01) < began + 0.35 and stopped[0] < began + 0.7
    world.hear(0.7)
    world.idle()
    assert [request.messages[-1]["content"][0]["type"] for request in world.model.requests] == ["text", "audio"]
    silent = speaker.silent_from(0.01)
    assert all(at < silent for at, value, _ in world.face.of("speech") if value == 0.01)


def test_a_loudspeaker_that_obeys_no_gain_is_silent_a_lead_later():
    world = World()
    world.face.speaker.obeys = False
    speaking(world)
    began = world.clock.now()
    world.hear(1.0, 0.5)
    heard = world.face.speaker.played(0.01)
    assert began + 0.25 < world.face.speaker.silent_from(0.01) < began + 0.35 + 0.3 + 0.06
    world.hear(0.7)
    world.idle()
    words = world.remembered()[1].removeprefix("assistant: ").removesuffix("—")
    assert len(words.split()) == int((heard.size / 24000 - UNFINISHED) * 3.5)  # what it could not recall was heard
    world.close()


def test_with_no_time_to_decide_the_first_voice_stops_it():
    world = World(settings=Settings(barge_in_seconds=0.0))
    speaking(world)
    began = word(world)
    stopped = [at for at, speaking in world.face.of("speaking") if not speaking]
    assert began < stopped[0] < began + 0.2 and world.face.speaker.silent_from(0.01) <= stopped[0] + 1e-6
    world.idle()
    assert len(world.model.requests) == 2
    world.close()


def test_a_short_reply_into_the_last_words_is_a_turn(world):
    """ "... shall I?" - "Yes." Half a second early, as people do."""
    world.until(lambda: world.face.speaker.played(until=world.clock.now()).size > SPEECH - 0.6 * 24000)
    word(world)
    world.idle()
    assert len(world.model.requests) == 2
    words = world.remembered()[1].removeprefix("assistant: ").removesuffix("—")
    assert ANSWERS[0].startswith(words) and len(words.split()) >= len(ANSWERS[0].split()) - 3


def test_a_short_word_while_the_robot_thinks_is_a_turn_and_it_does_not_begin_to_speak_meanwhile():
    world = World()
    world.dialogue.ask("Tell me a story.")
    world.hear(0.04)
    word(world, pause=0.5)
    assert world.face.of("speech") == []
    world.hear(0.3)
    world.idle()
    assert len(world.model.requests) == 2 and world.face.speaker.played(0.01).size == 0
    assert world.remembered() == ["user: Tell me a story.", "user: <audio>", f"assistant: {ANSWERS[1]}"]
    world.close()


@pytest.mark.parametrize("into", ["speech", "thinking"])
def test_an_utterance_that_is_dropped_leaves_the_answer_alone(into):
    """The microphone fails inside it, and such utterances are dropped."""
    world = World(audio_timeout_drops=True)
    if into == "speech":
        speaking(world)
    else:
        world.dialogue.ask("Tell me a story.")
        world.hear(0.04)
    world.hear(0.4, 0.5)
    world.clock.sleep(1.2)
    assert [dropped for *_, dropped in world.face.of("stopped")] == [True]
    world.idle()
    assert len(world.model.requests) == 1 and world.face.speaker.played().size == SPEECH
    world.close()


@pytest.mark.parametrize("how", ["stop_listening", "disable"])
def test_an_utterance_that_is_not_listened_to_any_more_does_not_keep_the_robot_silent(world, how):
    world.hear(0.4, 0.5)
    assert world.face.speaker.gain_now == 0
    if how == "disable":
        world.dialogue.enable(False)
        world.dialogue.enable(True)
        world.dialogue.ask("And now?")
        world.idle()
        assert world.face.speaker.played(0.02).size == len(ANSWERS[1].split()) * 4 * FRAME
    else:
        world.dialogue.stop_listening()
        world.idle()
        assert world.face.speaker.played().size == SPEECH


def test_a_typed_turn_overtakes_a_word_that_is_not_judged_yet(world):
    world.hear(0.4, 0.5)
    world.dialogue.ask("Stop, please.")
    world.hear(0.7)
    world.idle()
    assert world.remembered()[1].endswith("—")
    assert world.remembered()[2:4] == ["user: Stop, please.", "user: <audio>"]  # the word began into another answer
    assert len(world.model.requests) == 3
    assert world.face.speaker.played(0.03).size == len(ANSWERS[2].split()) * 4 * FRAME


def test_a_service_that_cancels_while_the_speech_is_held(world):
    world.hear(0.4, 0.5)
    assert world.dialogue.cancel()
    world.hear(0.7)
    world.idle()
    assert len(world.model.requests) == 1 and not world.dialogue.cancel()
    world.say()
    world.idle()
    assert world.face.speaker.played(0.02).size == len(ANSWERS[1].split()) * 4 * FRAME


def test_without_preemption_it_speaks_on_undisturbed():
    world = World(settings=Settings(preempt=False))
    speaking(world)
    world.say(2.0)
    world.idle()
    assert world.face.speaker.gains == [] and world.face.speaker.played(0.01).size == SPEECH
    assert len(world.model.requests) == 2
    world.close()


def test_a_long_monologue_into_an_answer_is_one_turn_after_the_other():
    world = World()
    speaking(world)
    began = world.clock.now()
    world.hear(65.0, 0.5)  # the endpointer closes a turn after 30 s
    world.hear(1.0)
    world.idle()
    assert world.face.speaker.silent_from(0.01) < began + 0.35
    assert len(world.model.requests) == 4
    seconds = sum(request.messages[-1]["content"][0]["audio"].size / 16000 for request in world.model.requests[1:])
    assert 65.0 < seconds < 66.5  # nothing of it is lost
    for number in (2, 3):  # the answers to its parts were spoken over: none is heard before the monologue is over
        assert world.face.speaker.played(number / 100).size == 0
    assert world.face.speaker.played(0.04).size == len(ANSWERS[0].split()) * 4 * FRAME
    world.close()


def test_silence_and_noise_below_speech_change_nothing(world):
    world.hear(30.0, 0.01)
    assert world.face.speaker.gains == [] and world.face.speaker.played().size == SPEECH
    assert len(world.model.requests) == 1


def conversation(seed: int) -> World:
    """Anything in any order: questions, nods, words, clicks, typed turns, cancellations, at random moments."""
    rng = np.random.default_rng(seed)
    world = World()
    world.asked = 0
    for _ in range(40):
        what = rng.choice(["say", "nod", "click", "ask", "cancel", "silence"], p=[0.35, 0.25, 0.1, 0.1, 0.05, 0.15])
        if what == "ask":
            world.dialogue.ask("typed")
            world.asked += 1
        elif what == "cancel":
            world.dialogue.cancel()
        else:
            world.hear({"say": 1.0, "nod": 0.3, "click": 0.06, "silence": 0.0}[what], 0.5)
        world.hear(float(rng.uniform(0.6, 4.0)))
    world.hear(3.0)
    world.idle()
    return world


@pytest.mark.parametrize("seed", range(6))
def test_any_conversation(seed):
    world = conversation(seed)
    speaker, outcomes = world.face.speaker, world.face.of("outcome")
    spoken = sum(not speaking for _, speaking in world.face.of("user"))
    lines = [line for line in world.remembered() if line.startswith("user")]
    assert world.face.of("failed") == [] and world.dialogue.state == "idle"
    assert lines.count("user: typed") == world.asked  # no turn is lost
    assert lines.count("user: <audio>") == spoken - world.dialogue.facts()["back-channels"] > 5
    for number in range(1, len(outcomes) + 1):
        whole = len(ANSWERS[(number - 1) % 3].split()) * 4 * FRAME
        played = speaker.played(number / 100)
        assert played.size <= whole  # no sample twice
        if played.size:  # no sample of an answer after one of the next
            later = [at for at, value, _ in world.face.of("speech") if value > number / 100]
            assert not later or speaker.silent_from(number / 100) <= min(later) + 1e-6
    again = conversation(seed)
    assert (again.face.log, again.remembered()) == (world.face.log, world.remembered())
    world.close()
    again.close()


def test_the_rule_alone():
    """What is said before, and a pause inside, count; other answers and the end of speech do not."""
    clock = SimulatedClock()
    speaker, stops = SimulatedSpeaker(clock), []
    pacer = SpeechPacer(speaker.speech, lambda speaking: None, speaker.gain, stops.append, chunk=0.06, lead=0.3, clock=clock)
    answer: list[object | None] = [None]
    rule = BargeIn(pacer, lambda: answer[0], lambda: stops.append("stop"), clock)
    pacer.begin(1)
    pacer.push(1, np.ones(10 * 24000, np.float32))
    clock.sleep(0.5)

    def utter(*voices: float) -> bool:
        rule.begins()
        for voice in voices:
            rule.lasts(voice, 0.6)
        rule.pauses()
        clock.sleep(0.5)
        return rule.ends(said=True)

    assert utter(0.13) and stops == []  # nothing to stop: a turn
    answer[0] = object()
    assert not utter(0.13, 0.5) and stops == []
    clock.sleep(2.1)
    assert not utter(0.13, 0.5) and stops == []  # long after
    assert utter(0.13) and stops == ["stop"]  # soon after, as short as it is
    clock.sleep(2.1)
    assert not utter(0.5) and utter(0.26) and stops == ["stop"] * 2
    pacer.close()


def test_a_breath_after_a_nod_is_no_second_word(world):
    """One frame of voice after a pause."""
    world.hear(0.35, 0.5)
    world.hear(0.3)
    world.hear(0.032, 0.5)
    world.hear(0.7)
    world.idle()
    assert len(world.model.requests) == 1 and world.face.speaker.played().size == SPEECH
