"""A call of an engine that never returns: noticed, told, and the process ends so that it is started again."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from hanging_engine import make_it_hang
from omni_process import SHORT, answer, engine_dir, ros, wait  # noqa: F401 - some are fixtures
from std_msgs.msg import String
from test_dialogue import ANSWERS, World
from test_node_faults import log_of, start  # noqa: F401 - a fixture

from omni_ros.engines.engine import Running
from omni_ros.errors import EngineHungError, OmniError
from omni_ros.pipeline.watchdog import Watchdog

ROWS = 150  # of the Thinker's cache: more than the warm-up and a short question need


def test_only_a_call_that_does_not_return_is_noticed():
    watchdog, running = Watchdog(), Running("thinker")
    for now in range(100):  # a busy engine, whose calls all end
        with running:
            assert watchdog.look(float(now), 5.0) is None
    with running:
        assert [watchdog.look(now, 5.0) for now in (100.0, 101.0, 105.0)] == [None] * 3
        error = watchdog.look(106.0, 5.0)
        assert isinstance(error, EngineHungError) and isinstance(error, OmniError) and "thinker" in str(error)
        assert watchdog.look(200.0, 0) is None  # switched off
    assert watchdog.look(201.0, 5.0) is None


def test_a_call_that_waits_for_its_turn_is_none():
    watchdog, running = Watchdog(), Running("talker")
    running.lock.acquire()
    waits = threading.Thread(target=lambda: running.__enter__() or running.__exit__(None, None, None))
    waits.start()
    assert [watchdog.look(now, 5.0) for now in (0.0, 4.0, 8.0)] == [None] * 3
    running.lock.release()
    waits.join()


def test_the_time_for_which_the_whole_process_was_stopped_does_not_count():
    watchdog, running = Watchdog(), Running("thinker")
    with running:
        assert [watchdog.look(now, 60.0) for now in (0.0, 1.0, 3600.0, 3601.0)] == [None] * 4


def test_a_call_that_fails_is_over():
    watchdog, running = Watchdog(), Running("thinker")
    with pytest.raises(ValueError), running:
        raise ValueError
    assert [watchdog.look(now, 5.0) for now in (0.0, 4.0, 8.0)] == [None] * 3


@pytest.mark.parametrize("when", ["before the first word", "in mid-speech"])
def test_the_turn_ends_with_the_error_and_its_speech_stops(when):
    world = World()
    world.dialogue.ask("Tell me a story.")
    world.hear(0.04 if when == "before the first word" else 1.0)
    told = len(world.face.of("speech"))
    world.dialogue.give_up(EngineHungError("thinker: hung"))
    assert world.dialogue.state == "error"
    assert world.face.of("outcome")[0][1:] == ("error", "none", "thinker: hung")
    world.clock.sleep(1.0)
    assert len(world.face.of("speech")) == told
    assert (told > 0) == (when == "in mid-speech")
    world.dialogue.ask("Are you there?")  # nobody is
    world.clock.sleep(3.0)
    assert len(world.model.requests) == 1 and len(ANSWERS) == 3
    world.close()


def test_whoever_waits_while_nothing_is_answered_is_told_too():
    """It hangs in what is read ahead between two turns."""
    world = World()
    world.model.feeding = 1e9
    world.dialogue.ask("Tell me a story.")
    world.clock.sleep(9.0)
    assert world.face.of("outcome")[0][1] == "stop"
    world.model.cancel = lambda: None  # it does not hear
    world.dialogue.ask("And now?")
    world.clock.sleep(5.0)
    world.dialogue.give_up(EngineHungError("thinker: hung"))
    assert [reason for _, reason, *_ in world.face.of("outcome")] == ["stop", "error"]
    assert world.dialogue.state == "error"


@pytest.fixture
def hanging(engine_dir, tmp_path) -> Path:
    """Engines whose Thinker hangs in a conversation of more than ROWS rows."""
    folder = shutil.copytree(engine_dir, tmp_path / "engines", copy_function=os.link)
    make_it_hang(folder / "thinker", ROWS)
    return folder


def ask_for_too_much(client) -> None:
    client.prompt.publish(String(data="word " * ROWS))


def test_a_node_whose_engine_hangs_tells_it_and_ends_to_be_started_again(start, hanging):
    process, client = start(engine_dir=hanging, engine_timeout=3.0, **SHORT)
    wait(lambda: client.state == "idle" and client.connected, 30)
    client.prompt.publish(String(data="Are you there?"))
    answer(client)
    assert client.status().level != DiagnosticStatus.ERROR
    ask_for_too_much(client)
    assert process.process.wait(30) == 1
    told = [msg.status[0] for msg in client.received["/diagnostics"] if "has not come back" in msg.status[0].message]
    assert told and told[0].level == DiagnosticStatus.ERROR and "a call of engine thinker" in told[0].message
    assert {pair.key: pair.value for pair in told[0].values}["turns error"] == "1"
    assert client.texts("state")[-2:] == ["error", "finalized"]
    log = log_of(process)
    assert "turn failed: a call of engine thinker has not come back for 3 s" in log and "Traceback" not in log
    client.forget()
    start(engine_dir=hanging, engine_timeout=3.0, **SHORT)  # as launch and systemd do
    wait(lambda: client.state == "idle" and client.connected, 30)
    client.prompt.publish(String(data="Are you there?"))
    answer(client)


def test_one_that_hangs_while_it_is_configured_ends_too(start, engine_dir, tmp_path):
    folder = shutil.copytree(engine_dir, tmp_path / "engines", copy_function=os.link)
    make_it_hang(folder / "thinker", -1)
    process, client = start(engine_dir=folder, engine_timeout=0.3)  # ten times as long while it is configured
    assert process.process.wait(40) == 1
    assert "a call of engine thinker has not come back for 3 s" in log_of(process)


def test_a_node_that_is_stopped_and_continued_in_mid_answer_answers(start):
    """SIGSTOP, as a debugger or a full machine does: longer than the limit."""
    process, client = start(engine_timeout=6.0, max_generate_length=200, max_audio_length=400)
    wait(lambda: client.state == "idle" and client.connected, 30)
    client.prompt.publish(String(data="Tell me a long story."))
    wait(lambda: client.received["speech/audio"], 20)
    process.process.send_signal(signal.SIGSTOP)
    time.sleep(8.0)
    process.process.send_signal(signal.SIGCONT)
    client.set(**SHORT)
    client.forget()
    client.prompt.publish(String(data="Are you there?"))
    answer(client)
    assert process.process.poll() is None
