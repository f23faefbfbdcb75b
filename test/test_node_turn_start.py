"""A button and a wake word over real DDS: who has not used them is not heard."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from omni_process import LATCHED, SHORT, Client, OmniProcess, answer, engine_dir, question, ros, wait  # noqa: F401 - fixtures
from omni_sounds import okay_nabu, silence
from std_msgs.msg import Bool, String


@contextmanager
def node(folder: Path, engines: Path, **parameters: object) -> Iterator[Client]:
    """A running node, and a client that it hears."""
    namespace = str(parameters["turn_start"])
    client = Client(namespace)
    audio = "std_msgs/msg/Int16MultiArray"
    settings = {"engine_dir": engines, "vad": "energy", "audio_in_type": audio, "seed": 1, **SHORT, **parameters}
    process = OmniProcess(folder / "log", namespace, **settings)
    try:
        wait(lambda: client.state == "idle", 60)
        wait(lambda: client.audio.get_subscription_count() and client.connected, 10)
        yield client
        assert process.process.poll() is None, process.log.read_text()
    finally:
        process.stop()
        client.close()


def test_push_to_talk(ros, engine_dir, tmp_path):
    with node(tmp_path, engine_dir, turn_start="push_to_talk") as omni:
        button = omni.node.create_publisher(Bool, "push_to_talk", 10)
        wait(button.get_subscription_count, 10)
        omni.speak(question(), speed=4.0)
        assert omni.texts("user_speaking") == [False] and not omni.received["response"]
        button.publish(Bool(data=True))
        time.sleep(0.2)
        omni.speak(question(), speed=4.0)
        assert not omni.received["response"]  # the silence at the end of the question is no end
        button.publish(Bool(data=False))
        answer(omni)
        assert omni.texts("user_speaking") == [False, True, False]
        for number in range(2000):  # a button that bounces at full rate, the last time up
            button.publish(Bool(data=number % 2 == 0))
        omni.values()  # the node has come through all of them, each of which stops an answer
        omni.prompt.publish(String(data="And now?"))
        answer(omni, 2)


def test_wake_word(ros, engine_dir, tmp_path):
    pytest.importorskip("pymicro_wakeword")
    with node(tmp_path, engine_dir, turn_start="wake_word", wake_word_window=4.0, follow_up_window=0.0) as omni:
        awake: list[bool] = []
        omni.node.create_subscription(Bool, "awake", lambda msg: awake.append(msg.data), LATCHED)
        omni.speak(question())
        assert omni.texts("user_speaking") == [False] and not awake
        omni.speak(np.concatenate([silence(0.5), okay_nabu(), question()]))
        answer(omni)
        assert omni.texts("user_speaking") == [False, True, False]
        wait(lambda: awake == [True, False], 10)
        omni.speak(question())
        time.sleep(0.5)
        assert len(omni.received["response"]) == 1


def test_a_button_in_front_of_a_node_that_waits_for_none_is_told(ros, engine_dir, tmp_path):
    with node(tmp_path, engine_dir, turn_start="voice") as omni:
        button = omni.node.create_publisher(Bool, "push_to_talk", 10)
        wait(button.get_subscription_count, 10)
        button.publish(Bool(data=True))
        wait(lambda: "turn_start is not push_to_talk" in omni.values()["last error"], 5)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"turn_start": "shout"}, "turn_start is 'shout', but must be one of voice, push_to_talk, wake_word"),
        ({"turn_start": "wake_word", "wake_word": "okay_robot"}, "wake_word is 'okay_robot', but must be one of"),
    ],
)
def test_what_cannot_begin_a_turn_keeps_the_node_from_being_configured(ros, engine_dir, tmp_path, parameters, message):
    if "wake_word" in parameters:
        pytest.importorskip("pymicro_wakeword")
    process = OmniProcess(tmp_path / "log", "bad", engine_dir=engine_dir, **parameters)
    assert process.process.wait(60) == 1
    assert message in process.log.read_text()
