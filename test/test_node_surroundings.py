"""What changes around a running node: simulated time, a camera that dies, somebody who does not listen, or goes in mid-turn."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from omni_process import (  # noqa: F401 - some are fixtures
    SHORT,
    OmniProcess,
    answer,
    engine_dir,
    omni,
    question,
    ros,
    running,
    wait,
)
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Int16MultiArray, String
from std_srvs.srv import Trigger
from test_node_faults import start  # noqa: F401 - a fixture

HEAD = """
import array, sys, time
import numpy as np, rclpy
from sensor_msgs.msg import Image
from std_msgs.msg import Int16MultiArray, String
from std_srvs.srv import Trigger
rclpy.init()
node = rclpy.create_node("visitor")

def publisher(kind, topic):
    made = node.create_publisher(kind, topic, 10)
    while not made.get_subscription_count():
        rclpy.spin_once(node, timeout_sec=0.02)
    return made
"""
CAMERA = """
camera = publisher(Image, "image_raw")
pixels = np.random.default_rng(1).integers(0, 256, 96 * 128 * 3, dtype=np.uint8)
while True:
    camera.publish(Image(height=96, width=128, encoding="rgb8", step=384, data=array.array("B", pixels.tobytes())))
    time.sleep(0.1)
"""
LISTENER = """
for topic, kind in (("speech/audio", Int16MultiArray), ("response_stream", String), ("response", String)):
    node.create_subscription(kind, topic, lambda msg: print("heard", flush=True), 1)  # reliable, and keeps no more than one
rclpy.spin(node)
"""
ASKER = """
prompt = publisher(String, "prompt")
node.create_subscription(Int16MultiArray, "speech/audio", lambda msg: None, 100)
prompt.publish(String(data=sys.argv[1]))
rclpy.spin(node)
"""
SPEAKER = """
audio = publisher(Int16MultiArray, "audio")
pcm = np.load(sys.argv[1])
for at in range(0, pcm.size, 320):
    audio.publish(Int16MultiArray(data=array.array("h", pcm[at : at + 320].tobytes())))
    time.sleep(0.02)
rclpy.spin(node)
"""
CALLER = """
client = node.create_client(Trigger, "omni/reset")
client.wait_for_service()
print("calls", flush=True)
while True:
    client.call_async(Trigger.Request())
"""


@pytest.fixture
def visitor(omni) -> Iterator:
    """Starts a process of its own that talks to the node."""
    processes: list[subprocess.Popen] = []

    def begin(source: str, *arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-c", HEAD + source, *map(str, arguments)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


# ---- clocks ---------------------------------------------------------------------------------------------------------


def stamp(client) -> float:
    msg = client.received["/diagnostics"][-1]
    return msg.header.stamp.sec + msg.header.stamp.nanosec / 1e9


def test_simulated_time_may_stand_still_or_jump(start):
    """Turns are timed by the steady clock; only stamps follow /clock."""
    process, client = start(use_sim_time=True, **SHORT)
    clock = client.node.create_publisher(Clock, "/clock", 10)
    wait(lambda: client.state == "idle" and client.connected and client.audio.get_subscription_count(), 30)
    count = 0

    def turns() -> None:
        nonlocal count
        client.prompt.publish(String(data="Are you there?"))
        answer(client, count + 1)
        client.speak(question())
        answer(client, count + 2)
        count += 2
        assert client.status().level != DiagnosticStatus.ERROR

    turns()  # nobody publishes /clock
    assert stamp(client) == 0
    wait(clock.get_subscription_count, 10)
    for now in (1000.0, 1000.5, 5000.0, 20.0):  # it runs, stands still, jumps ahead and back
        for _ in range(3):
            clock.publish(Clock(clock=Time(sec=int(now), nanosec=int(now % 1 * 1e9))))
        wait(lambda: client.status() and stamp(client) == now, 10)  # noqa: B023 - called before it changes
    turns()
    client.prompt.publish(String(data="Speak."))  # in mid-speech
    wait(lambda: client.state == "speaking", 20)
    for now in (1e6, 1.0):
        clock.publish(Clock(clock=Time(sec=int(now))))
    answer(client, count + 1)
    assert client.values()["defects"] == "0" and process.process.poll() is None


# ---- camera and listeners -------------------------------------------------------------------------------------------


def prompt_tokens(omni) -> int:
    omni.call(Trigger, "omni/reset")
    seen = len(omni.received["response"])
    omni.prompt.publish(String(data="Look."))
    answer(omni, seen + 1)
    return int(omni.values()["pipeline prompt_tokens"])


def test_a_camera_that_is_killed_is_no_longer_seen_until_it_is_back(omni, visitor):
    without = prompt_tokens(omni)
    camera = visitor(CAMERA)
    wait(lambda: float(omni.values()["picture age s"]) < 1.0, 20)
    assert prompt_tokens(omni) > without
    camera.kill()
    wait(lambda: float(omni.values()["picture age s"]) > 1.5, 20)
    assert prompt_tokens(omni) == without
    visitor(CAMERA)
    wait(lambda: float(omni.values()["picture age s"]) < 1.0, 20)
    assert prompt_tokens(omni) > without


def test_a_listener_that_stops_listening_holds_up_nobody(omni, visitor):
    """It is stopped (SIGSTOP) with reliable subscriptions that it no longer reads."""
    listeners = omni.node.count_subscribers("speech/audio")
    listener = visitor(LISTENER)
    wait(lambda: omni.node.count_subscribers("speech/audio") > listeners, 20)
    time.sleep(1.0)  # until the node knows it, too
    omni.set(max_audio_length=30)
    omni.prompt.publish(String(data="Speak."))
    answer(omni)
    assert listener.stdout.readline() == "heard\n"
    listener.send_signal(signal.SIGSTOP)
    for count in (2, 3, 4):
        omni.prompt.publish(String(data="Speak."))
        answer(omni, count)
    assert omni.samples() == 4 * (30 * 1920 - 555)
    assert omni.values()["defects"] == "0"
    listener.send_signal(signal.SIGCONT)
    omni.prompt.publish(String(data="Speak."))
    answer(omni, 5)
    assert omni.samples() == 5 * (30 * 1920 - 555)


# ---- somebody who goes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["listening", "thinking", "speaking", "waiting for a service"])
def test_a_client_that_is_killed_leaves_a_node_that_answers(omni, visitor, tmp_path, state):
    if state == "listening":
        np.save(tmp_path / "question.npy", question()[: int(1.5 * 16000)])
        client = visitor(SPEAKER, tmp_path / "question.npy")
        wait(lambda: omni.texts("user_speaking") == [True], 20)
    elif state == "waiting for a service":
        client = visitor(CALLER)
        assert client.stdout.readline() == "calls\n"
        time.sleep(0.2)
    else:
        omni.set(max_generate_length=200, max_audio_length=200 if state == "speaking" else 1)
        client = visitor(ASKER, "word " * 20)
        wait(lambda: omni.state == state or state in omni.texts("state"), 20)
    client.kill()
    client.wait()
    if state == "listening":  # what was heard of it is answered, within audio_timeout and the answer
        wait(lambda: omni.texts("user_speaking") == [True, False], 10)
        answer(omni)
    omni.call(Trigger, "omni/cancel")
    wait(lambda: omni.state in ("idle", "error"), 20)
    omni.set(**SHORT)
    omni.forget()
    omni.prompt.publish(String(data="Are you there?"))
    answer(omni)
    assert omni.samples() == 10 * 1920 - 555
    assert omni.values()["defects"] == "0"


def test_a_node_that_is_killed_while_it_speaks_is_heard_again_when_it_is_back(start, tmp_path):
    """kill -9 of the omni node: the speaker lives on, nothing of the old answer is heard later, and the new node is played."""
    process, client = start(max_generate_length=60, max_audio_length=200)
    namespace = client.node.get_namespace().strip("/")
    speaker = OmniProcess(tmp_path / "speaker", namespace, module="omni_ros.nodes.speaker_node", device="null")
    played: list[Int16MultiArray] = []
    client.node.create_subscription(Int16MultiArray, "speech_played", played.append, 200)

    def heard() -> int:
        """Samples that are not silent, of the last half a second."""
        return sum(int(np.count_nonzero(np.frombuffer(msg.data, np.int16))) for msg in played[-25:])

    try:
        wait(lambda: client.state == "idle" and client.connected and played, 40)
        client.prompt.publish(String(data="Tell me a long story."))
        wait(lambda: heard() > 5000, 20)
        process.process.kill()
        process.process.wait()
        wait(lambda: heard() == 0, 10)
        time.sleep(1.0)
        assert heard() == 0 and speaker.process.poll() is None
        client.forget()
        start(**SHORT)  # as respawn does
        wait(lambda: "idle" in client.texts("state") and client.prompt.get_subscription_count(), 40)
        client.prompt.publish(String(data="Are you there?"))
        wait(lambda: heard() > 5000, 20)
    finally:
        speaker.process.kill()
        speaker.process.wait()
