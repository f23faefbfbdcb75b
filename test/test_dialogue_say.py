"""What the robot is told to say, between turns, over them and under them, on simulated time."""

import pytest
from scripted_model import FRAME
from test_dialogue import World

from omni_ros.dialogue.history import History
from omni_ros.dialogue.say import LONGEST, MOST_WAITING
from omni_ros.dialogue.settings import Settings
from omni_ros.errors import EngineError, InputError


@pytest.fixture
def world():
    world = World()
    yield world
    world.close()


def said(world: World) -> list[str | None]:
    """Of each turn that reached the model: the words it was given, None where it was to answer."""
    return [request.say for request in world.model.requests]


def test_words_are_spoken_and_remembered_and_no_answer(world):
    world.dialogue.say("  The door is open.\n")
    world.idle()
    request = world.model.requests[0]
    assert (request.say, request.special_tokens, request.audio_output) == ("The door is open.", False, True)
    assert request.messages == [{"role": "user", "content": ""}]  # the model was never taught to speak to nobody
    assert sum(size for *_, size in world.face.of("speech")) == 4 * 4 * FRAME
    assert world.face.of("text") == world.face.of("response") == []
    assert [state for _, state in world.face.of("state")] == ["idle", "thinking", "speaking", "idle"]
    world.say()
    world.idle()
    roles = [message["role"] for message in world.model.requests[1].messages]
    assert roles == ["assistant", "user"] and said(world) == ["The door is open.", None]
    assert world.remembered()[0] == "assistant: The door is open."


def test_it_is_spoken_even_by_a_robot_that_answers_in_writing(world):
    world.dialogue.settings = Settings(generation={"audio_output": False, "temperature": 0.1})
    world.dialogue.say("Careful.")
    world.idle()
    assert world.face.of("speech") and world.model.requests[0].temperature == 0.1


def test_after_a_turn_it_goes_with_the_exchange_and_is_computed_ahead(world):
    world.dialogue.settings = Settings(system_prompt="Be brief.")
    world.dialogue.ask("Hello?")
    world.idle()
    world.dialogue.say("I am leaving.")
    world.idle()
    world.clock.sleep(1)
    assert [m["role"] for m in world.model.requests[1].messages] == ["system", "user", "assistant"]
    assert [m["role"] for m in world.model.fed[-1][1]] == ["system", "user", "assistant", "assistant"]
    assert len(world.dialogue.history) == 1 and world.dialogue.history.last_answer == "I am leaving."


def test_texts_wait_for_the_answer_in_progress_and_for_one_another(world):
    world.dialogue.ask("Tell me a story.")
    world.until(lambda: world.face.of("speech"))
    for text in ("one", "two", "three"):
        world.dialogue.say(text)
    assert world.dialogue.facts()["waiting turns"] == 3
    world.idle()
    assert said(world) == [None, "one", "two", "three"]
    reasons = [reason for _, reason, *_ in world.face.of("outcome")]
    assert reasons == ["stop"] * 4
    values = [value for _, value, _ in world.face.of("speech")]
    assert values == sorted(values)  # one after the other


def test_a_user_who_waits_goes_first(world):
    world.dialogue.settings = Settings(preempt=False)
    world.dialogue.ask("First?")
    world.until(lambda: world.face.of("speech"))
    world.dialogue.say("later")
    world.dialogue.ask("Second?")
    world.idle()
    assert said(world) == [None, None, "later"]


def test_nothing_is_said_into_the_words_of_a_user(world):
    world.hear(0.5, 0.5)
    world.dialogue.say("I waited.")
    world.hear(1.0, 0.5)
    assert not world.model.requests
    world.hear(0.7)
    world.idle()
    assert said(world) == [None, "I waited."]


@pytest.mark.parametrize("end", ["microphone stops", "stop_listening", "drop"])
def test_it_does_not_wait_for_a_user_who_is_gone(end):
    world = World(audio_timeout_drops=end == "drop")
    world.hear(0.5, 0.5)
    world.dialogue.say("Still there?")
    if end == "stop_listening":
        world.dialogue.stop_listening()
    world.until(lambda: "Still there?" in said(world), 40)
    world.idle()
    world.close()


def test_barge_in_stops_it_like_an_answer(world):
    world.dialogue.say("a long announcement that nobody needs to hear to its very end because it is only a test")
    world.dialogue.say("and another")
    world.until(lambda: world.face.of("speech"))
    world.clock.sleep(1.5)
    world.say()
    started = [at for at, speaking in world.face.of("user") if speaking][0]
    assert world.face.speaker.silent_from(0.01) < started + 0.2
    world.idle()
    assert said(world)[1:] == [None, "and another"]
    kept = world.remembered()[0].removeprefix("assistant: ")
    assert kept.endswith("—") and said(world)[0].startswith(kept[:-1]) and len(kept) > 10
    assert len(kept.split()) <= world.face.speaker.played(0.01).size / (4 * FRAME) + 1


def test_an_urgent_text_stops_what_is_spoken_and_what_waits(world):
    world.dialogue.ask("Tell me a story.")
    world.until(lambda: world.face.of("speech"))
    world.dialogue.say("never said")
    world.clock.sleep(1)
    world.dialogue.settings = Settings(say_preempts=True)
    asked = world.clock.now()
    world.dialogue.say("Stop!")
    world.idle()
    assert said(world) == [None, "Stop!"]
    assert [value for at, value, _ in world.face.of("speech") if at > asked + 0.01] == [0.02] * 6
    assert world.remembered()[1].endswith("—") and world.remembered()[2] == "assistant: Stop!"


def test_an_urgent_text_is_spoken_over_the_user_and_before_a_waiting_question(world):
    world.dialogue.settings = Settings(say_preempts=True, preempt=False)
    world.dialogue.ask("Tell me a story.")
    world.until(lambda: world.face.of("speech"))
    world.dialogue.ask("And another.")
    world.hear(0.5, 0.5)
    world.dialogue.say("Watch out!")
    world.hear(0.3, 0.5)
    assert said(world) == [None, "Watch out!"]
    world.hear(0.7)
    world.idle()
    assert said(world)[:3] == [None, "Watch out!", None]


@pytest.mark.parametrize("stop", ["cancel", "reset", "disable"])
def test_what_waits_is_dropped(world, stop):
    world.dialogue.say("one " * 30)
    world.dialogue.say("two")
    world.until(lambda: world.face.of("speech"))
    {"cancel": world.dialogue.cancel, "reset": world.dialogue.reset, "disable": lambda: world.dialogue.enable(False)}[stop]()
    world.dialogue.enable(True)
    world.clock.sleep(5)
    assert len(said(world)) == 1 and world.face.of("state")[-1][1] == "idle"
    world.dialogue.say("three")
    world.idle()
    assert said(world)[1:] == ["three"]


def test_a_disabled_robot_is_silent(world):
    world.dialogue.enable(False)
    world.dialogue.say("hello")
    world.clock.sleep(5)
    assert said(world) == []


@pytest.mark.parametrize("text", ["", " \n\t", "x" * (LONGEST + 1)])
def test_texts_that_cannot_be_said_are_refused(world, text):
    with pytest.raises(InputError, match="the text|too long"):
        world.dialogue.say(text)


def test_too_many_texts_are_refused_and_the_others_said(world):
    world.dialogue.say("first")
    world.clock.sleep(0.01)
    for number in range(MOST_WAITING):
        world.dialogue.say(str(number))
    with pytest.raises(InputError, match="wait to be said"):
        world.dialogue.say("one too many")
    world.idle()
    assert said(world) == ["first", *map(str, range(MOST_WAITING))]


def test_a_text_that_fails_leaves_the_history_alone(world):
    world.model.fault = EngineError("talker: damaged")
    world.dialogue.say("hello")
    world.idle()
    assert world.remembered() == [] and world.face.of("outcome")[0][1:] == ("error", "none", "talker: damaged")
    world.dialogue.say("hello")
    world.idle()
    assert world.remembered() == ["assistant: hello"]


def test_a_text_for_which_the_history_is_too_long_makes_room():
    world = World(room=4)
    for _ in range(2):
        world.dialogue.ask("question")
        world.idle()
    world.model.room = 2
    world.dialogue.say("hello")
    world.idle()
    assert len(world.model.requests[-1].messages) == 2 and world.remembered()[-1] == "assistant: hello"
    world.close()


def test_a_robot_that_speaks_all_day_to_nobody_keeps_a_bounded_history():
    history = History(2)
    history.add([{"type": "text", "text": "q"}], "a")
    for number in range(100):
        history.add([], str(number))
    kept = [message["content"][0]["text"] for message in history.messages("")]
    assert kept == ["q", "a", *(str(n) for n in range(101 - History.MOST_SAID, 100))]
    history.add_interrupted([], "")  # of which no word was heard
    assert len(history.messages("")) == len(kept)


def test_a_defect_at_the_end_of_an_utterance_holds_nothing_up(world):
    world.hear(0.5, 0.5)
    world.dialogue.say("I waited.")
    world.face.break_on = "user"
    world.hear(0.7)
    world.clock.sleep(5)
    assert said(world)[-1] == "I waited." and world.face.break_on is None


def test_it_repeats_exactly():
    logs = []
    for _ in range(2):
        world = World()
        world.dialogue.say("one two three")
        world.say(0.4)
        world.dialogue.say("four")
        world.say(0.4)
        world.idle()
        logs.append(world.face.log)
        world.close()
    assert logs[0] == logs[1]
