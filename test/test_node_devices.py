"""Nodes microphone and speaker in their own processes, over real DDS: files in place of sound cards."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import array
import signal
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omni_process import OmniProcess, picture, ros, wait  # noqa: F401 - a fixture, and a DDS domain of our own

# isort: split
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, Float32, Int16MultiArray, String

from demo import table
from demo.make_bag import read_mono
from demo.script import TURNS
from omni_ros.devices.paced import read_wav
from omni_ros.nodes.speaker_node import SpeakerNode

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
RATE = 24000


class Robot:
    """What is around the two nodes: an omni node's side, and a person who sees all topics."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("around")
        self.heard: dict[str, list] = {topic: [] for topic in ("audio", "speech_played", "response")}
        self.status: dict[str, dict] = {}
        create = self.node.create_subscription
        for topic in ("audio", "speech_played"):
            create(Int16MultiArray, topic, self.heard[topic].append, 200)
        create(String, "response", self.heard["response"].append, 10)
        create(DiagnosticArray, "/diagnostics", self._diagnose, 10)
        self.speech = self.node.create_publisher(Int16MultiArray, "speech/audio", 100)
        self.speaking = self.node.create_publisher(Bool, "speaking", LATCHED)
        self.gain = self.node.create_publisher(Float32, "speech_gain", 10)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()

    def _diagnose(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            facts = {pair.key: pair.value for pair in status.values}
            self.status[status.name] = {"level": status.level, "message": status.message, **facts}

    def close(self) -> None:
        self.executor.shutdown()
        self.thread.join()
        self.node.destroy_node()

    def pcm(self, topic: str) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int16), *(np.frombuffer(msg.data, np.int16) for msg in list(self.heard[topic]))])

    def say(self, pcm: np.ndarray, lead: float = 0.3) -> None:
        """As the omni node does: 60 ms at a time, at most `lead` seconds ahead of playback."""
        self.speaking.publish(Bool(data=True))
        started = time.monotonic()
        for start in range(0, pcm.size, 1440):
            time.sleep(max(0.0, started + start / RATE - lead - time.monotonic()))
            self.speech.publish(Int16MultiArray(data=array.array("h", pcm[start : start + 1440].tobytes())))
        self.said = started + pcm.size / RATE

    def end(self) -> None:
        time.sleep(max(0.0, self.said - time.monotonic()))
        self.speaking.publish(Bool(data=False))


@pytest.fixture
def robot(ros) -> Iterator[Robot]:
    robot = Robot()
    yield robot
    robot.close()


@pytest.fixture
def start(tmp_path) -> Iterator:
    processes: list[OmniProcess] = []

    def start(kind: str, name: str = "", **parameters) -> OmniProcess:
        log = tmp_path / f"{name or kind}{len(processes)}.log"
        processes.append(OmniProcess(log, module=f"omni_ros.nodes.{kind}_node", **parameters))
        return processes[-1]

    yield start
    for process in processes:
        if process.process.poll() is None:
            assert process.stop()[0] == 0, process.log.read_text()


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    """int16 [n] at 24 kHz, never silent."""
    return (3000 + 2000 * np.sin(np.arange(round(seconds * RATE)) * (0.05 + 0.01 * seed))).astype(np.int16)


def begins(robot: Robot) -> None:
    """The speaker plays, and hears us."""
    wait(lambda: robot.speech.get_subscription_count() and robot.gain.get_subscription_count(), 20)
    wait(lambda: robot.heard["speech_played"], 20)
    time.sleep(0.3)


def test_an_answer_is_played_whole_and_a_stopped_one_ends_at_once(robot, start, tmp_path):
    start("speaker", device=f"file:{tmp_path / 'out.wav'}")
    begins(robot)
    said = voice(1.0)
    robot.say(said)
    robot.end()
    time.sleep(0.5)
    played = robot.pcm("speech_played")
    first = np.flatnonzero(played)[0]
    assert np.abs(played[first : first + said.size].astype(int) - said).max() <= 1
    loud = np.flatnonzero(np.abs(read_wav(tmp_path / "out.wav")[0][:, 0]) > 0.01)
    assert 0.98 * 48000 < loud[-1] - loud[0] < 1.5 * 48000  # longer where a busy machine lets the file run dry

    robot.heard["speech_played"].clear()
    robot.say(voice(1.0), lead=0.3)  # 0.3 s wait in the speaker
    robot.speaking.publish(Bool(data=False))
    time.sleep(0.5)
    sounding = np.flatnonzero(robot.pcm("speech_played"))
    assert 0.4 * RATE < sounding[-1] - sounding[0] < 0.9 * RATE


def test_gain_ducks_what_waits_and_zero_drops_it(robot, start):
    start("speaker", device="null")
    begins(robot)
    robot.say(np.full(RATE, 10000, np.int16))
    robot.gain.publish(Float32(data=0.2))
    time.sleep(0.15)
    assert np.frombuffer(robot.heard["speech_played"][-1].data, np.int16).max() in range(1990, 2010)
    robot.gain.publish(Float32(data=0.0))
    time.sleep(0.15)
    assert not np.frombuffer(robot.heard["speech_played"][-1].data, np.int16).any()
    robot.gain.publish(Float32(data=1.0))
    time.sleep(0.2)
    assert not np.frombuffer(robot.heard["speech_played"][-1].data, np.int16).any()  # what was dropped stays so
    robot.say(np.full(RATE // 2, 10000, np.int16))
    assert robot.pcm("speech_played").max() >= 9999


def test_a_speaker_that_is_killed_while_it_speaks_speaks_again_when_it_is_back(robot, start):
    speaker = start("speaker", device="null")
    begins(robot)
    robot.say(voice(1.0))
    speaker.process.send_signal(signal.SIGKILL)
    speaker.process.wait()
    robot.say(voice(0.5))  # to nobody: the node does not wait
    robot.end()
    robot.heard["speech_played"].clear()
    start("speaker", device="null")
    wait(lambda: robot.heard["speech_played"], 20)
    time.sleep(3.0)  # until it knows us, too
    robot.say(voice(0.5, 1))
    robot.end()
    time.sleep(0.5)
    played = robot.pcm("speech_played")
    assert np.count_nonzero(played) == pytest.approx(0.5 * RATE, abs=600)  # the new answer, none of the old


def test_a_microphone_that_is_killed_is_heard_again_when_it_is_back(robot, start):
    microphone = start("microphone", device="null")
    wait(lambda: len(robot.heard["audio"]) > 20, 20)
    microphone.process.send_signal(signal.SIGKILL)
    microphone.process.wait()
    time.sleep(0.3)
    count = len(robot.heard["audio"])
    start("microphone", device="null")
    wait(lambda: len(robot.heard["audio"]) > count + 20, 20)
    assert {len(msg.data) for msg in robot.heard["audio"]} == {320}


def test_two_speakers_both_play_and_the_microphone_says_so(robot, start):
    pytest.importorskip("pywebrtc_audio", reason="the echo canceller is in extra `devices`")
    start("speaker", "one", device="null")
    start("speaker", "two", device="null")
    start("microphone", device="null", echo="aec")
    wait(lambda: "2 speakers publish" in robot.status.get("microphone: device", {}).get("message", ""), 30)


def test_without_a_speaker_the_canceller_says_that_it_has_no_reference(robot, start):
    start("microphone", device="null", echo="mute")
    wait(lambda: "is it running?" in robot.status.get("microphone: device", {}).get("message", ""), 20)
    assert robot.status["microphone: device"]["state"] == "active"
    assert robot.heard["audio"]


@pytest.mark.parametrize(
    "kind,parameters,said",
    [
        ("microphone", {"device": "file:/nowhere/in.wav"}, "/nowhere/in.wav: cannot be read as a WAV file"),
        ("microphone", {"device": "null", "echo": "loud"}, "echo is 'loud', but must be one of none, aec, mute"),
        ("microphone", {"device": "null", "audio_out_type": "std_msgs/msg/String"}, "is no supported audio type"),
        ("microphone", {"device": "null", "eco": "aec"}, "did you mean echo?"),
        ("speaker", {"device": "file:/nowhere/out.wav"}, "/nowhere: not a folder"),
        ("speaker", {"device": "null", "channels": 100}, "parameter channels is '100'"),
    ],
)
def test_what_cannot_be_configured_ends_the_node_with_the_reason(ros, start, kind, parameters, said):
    process = start(kind, **parameters)
    assert process.process.wait(20) == 1
    assert said in process.log.read_text()


def test_a_spoken_question_is_answered_in_the_wav(robot, start, demo_engine_dir, tmp_path):
    """microphone (file) -> omni -> speaker (file), three processes: what is said into one WAV is answered in the other."""
    spoken, turn = tmp_path / "in.wav", TURNS[0]
    sound = read_mono(turn.sound)
    sound = sound if sound.dtype == np.int16 else (sound * 32767).astype(np.int16)
    # Quiet for as long as a new process may take to be discovered, then the question.
    recording = np.concatenate([np.zeros(6 * 16000), sound, np.zeros(4 * 16000)]) + np.random.default_rng(0).normal(
        0, 20, sound.size + 10 * 16000
    )
    with wave.open(str(spoken), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(recording.astype(np.int16).tobytes())
    camera = robot.node.create_publisher(Image, "image_raw", 10)
    shapes = np.asarray(table.draw([(turn.scene, (0.0, 0.0))]))
    robot.node.create_timer(0.2, lambda: camera.publish(picture(shapes)))
    start("speaker", device=f"file:{tmp_path / 'out.wav'}", rate=44100, channels=2)
    omni = start(
        "omni",
        engine_dir=demo_engine_dir,
        temperature=0.0,
        talker_temperature=0.0,
        seed=0,
        image_max_age=5.0,
        audio_in_type="std_msgs/msg/Int16MultiArray",
    )
    wait(lambda: "loaded and warm" in omni.log.read_text(), 60)
    wait(lambda: robot.heard["speech_played"], 20)
    time.sleep(2.0)  # everybody knows everybody
    start("microphone", device=f"file:{spoken}", echo="mute")
    wait(lambda: robot.heard["response"], 40)
    assert robot.heard["response"][0].data == turn.answer
    wait(lambda: robot.status["omni: dialogue"]["state"] == "idle", 30)
    time.sleep(1.0)
    file, rate = read_wav(Path(tmp_path / "out.wav"))
    assert rate == 44100 and file.shape[1] == 2
    played = robot.pcm("speech_played").astype(np.float32) / 32767
    sounding = np.flatnonzero(np.abs(played) > 0.01)
    seconds = (sounding[-1] - sounding[0]) / RATE
    assert seconds > 1.0  # a sentence
    in_file = np.flatnonzero(np.abs(file[:, 0]) > 0.01)
    assert seconds - 0.1 < (in_file[-1] - in_file[0]) / rate < seconds + 1.0  # more where a busy machine lets the file run dry
    assert len(robot.heard["response"]) == 1  # it did not answer itself


@pytest.mark.parametrize("jump", [-3600.0, -3.0, 3600.0])
def test_a_wall_clock_that_jumps_after_a_stop_costs_a_second_of_speech_at_most(ros, jump):
    """Speech that was sent before a stop is not heard; after a second it cannot be that, but the clock was set back."""
    node = SpeakerNode()
    node.set_parameters([Parameter("device", value="null")])
    try:
        node.trigger_configure(), node.trigger_activate()
        piece = Int16MultiArray(data=array.array("h", [5000] * 24000))
        now = 1.7e18  # ns

        def waits(sent: float) -> bool:
            node._on_speech(piece, {"source_timestamp": int(now + sent * 1e9)})
            return node.facts()["speech waiting s"] > 0.5

        node._on_speaking(Bool(data=False), {"source_timestamp": int(now)})
        assert not waits(-0.1)
        if jump > 0:
            assert waits(jump)
            return
        time.sleep(1.1)
        assert waits(jump)
    finally:
        node.on_shutdown(None)
        node.destroy_node()
