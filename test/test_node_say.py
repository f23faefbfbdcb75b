"""Topic `say` over real DDS."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import pytest
from omni_process import (  # noqa: F401 - some are fixtures
    LONG,
    Client,
    answer,
    engine_dir,
    omni,
    question,
    ros,
    running,
    wait,
)
from std_msgs.msg import String
from std_srvs.srv import Trigger

from omni_ros.dialogue.say import LONGEST


@pytest.fixture
def say(omni: Client):
    publisher = omni.node.create_publisher(String, "say", 10)
    wait(publisher.get_subscription_count, 10)
    omni.set(say_preempts=False)
    yield lambda text: publisher.publish(String(data=text))
    omni.node.destroy_publisher(publisher)


def test_a_text_is_spoken_and_is_no_response(omni, say):
    say("The door is open.")
    wait(lambda: omni.texts("state") == ["thinking", "speaking", "idle"], 20)
    assert omni.samples() == 10 * 1920 - 555 and omni.texts("speaking") == [True, False]
    assert omni.received["response"] == omni.received["response_stream"] == []
    values = omni.values()
    assert values["answer remembered"] == "The door is open."
    assert (values["text ended by"], int(values["pipeline reply_tokens"]) > 3) == ("stop", True)
    omni.prompt.publish(String(data="What did you say?"))
    answer(omni)


def test_texts_wait_for_one_another_or_not(omni, say):
    for word in ("one", "two", "three"):
        say(word)
    wait(lambda: omni.samples() == 3 * (10 * 1920 - 555), 20)
    omni.set(**LONG, say_preempts=True)
    say("a long text " * 20)
    wait(lambda: omni.samples() > 3 * (10 * 1920 - 555), 20)
    omni.set(max_audio_length=10)  # of those that follow: a service may be faster than a topic
    say("Stop!")
    say("Stop!")
    assert omni.call(Trigger, "omni/cancel").success
    wait(lambda: omni.state == "idle", 10)


def test_the_user_stops_it_by_speaking(omni, say):
    omni.set(**LONG)
    say("a long text " * 20)
    wait(lambda: omni.samples(), 20)
    omni.set(max_generate_length=6, max_audio_length=10)
    omni.speak(question())
    answer(omni)
    assert omni.texts("user_speaking") == [True, False]
    assert omni.samples() < 200 * 1920  # of 400 frames


@pytest.mark.parametrize("text", ["", " \n", "x" * (LONGEST + 1), "x" * 2_000_000])
def test_what_cannot_be_said_is_told_and_the_next_text_is_said(omni, say, text):
    before = int(omni.values().get("bad messages say", 0))
    say(text)
    wait(lambda: int(omni.values().get("bad messages say", 0)) == before + 1, 15)
    assert "say: " in omni.values()["last error"]
    say("I am well.")
    wait(lambda: omni.samples() == 10 * 1920 - 555, 20)
    wait(lambda: omni.values()["answer remembered"] == "I am well.", 10)  # once it was heard
