"""The omni node as its users meet it: its own process, real DDS, rosidl's field checks on."""

import array
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Read by rcl and rosidl: nothing outside this machine and this test session is heard or disturbed.
os.environ.update(
    ROS_DOMAIN_ID=str(1 + os.getpid() % 100), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST", ROS_PYTHON_CHECK_FIELDS="1"
)

import av  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import rclpy  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from PIL import Image as Picture  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_msgs.msg import Bool, Int16MultiArray, String  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402

ROOT = Path(__file__).parent.parent
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
OUTPUTS = {
    "response_stream": (String, 100),
    "response": (String, 10),
    "speech/audio": (Int16MultiArray, 100),
    "speaking": (Bool, LATCHED),
    "user_speaking": (Bool, LATCHED),
    "state": (String, LATCHED),
    "/diagnostics": (DiagnosticArray, 10),
}


class OmniProcess:
    """`ros2 run omni_ros omni` with parameters, its output kept in a file."""

    def __init__(self, log: Path, namespace: str = "", **parameters: object) -> None:
        self.log = log
        arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
        node = [sys.executable, "-m", "omni_ros.nodes.omni_node"]
        command = [*node, "--ros-args", "-r", f"__ns:=/{namespace}", *arguments]
        environment = {**os.environ, "ROS_LOG_DIR": str(log.parent), "OMP_NUM_THREADS": "1"}
        with log.open("w") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def stop(self, number: int = signal.SIGINT) -> tuple[int, float]:
        """Exit code and the seconds it took."""
        started = time.monotonic()
        self.process.send_signal(number)
        try:
            return self.process.wait(10), time.monotonic() - started
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class Client:
    """Everything around the node: publishes its inputs and records its outputs."""

    def __init__(self, namespace: str = "") -> None:
        self.node = rclpy.create_node("client", namespace=namespace)
        self.received: dict[str, list] = {topic: [] for topic in OUTPUTS}
        self.state = ""  # the newest, which forget() keeps
        self.node.create_subscription(String, "state", lambda msg: setattr(self, "state", msg.data), LATCHED)
        for topic, (kind, qos) in OUTPUTS.items():
            self.node.create_subscription(kind, topic, self.received[topic].append, qos)
        self.image = self.node.create_publisher(Image, "image_raw", 10)
        self.audio = self.node.create_publisher(Int16MultiArray, "audio", 100)
        self.prompt = self.node.create_publisher(String, "prompt", 10)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.executor.shutdown()
        self.thread.join()
        self.node.destroy_node()

    def forget(self) -> None:
        for messages in self.received.values():
            messages.clear()

    def texts(self, topic: str) -> list[str]:
        return [msg.data for msg in self.received[topic]]

    def samples(self) -> int:
        return sum(len(msg.data) for msg in self.received["speech/audio"])

    def status(self) -> DiagnosticStatus:
        """The node's next diagnostic."""
        name = f"{self.node.get_namespace()}/omni: dialogue".lstrip("/")

        def own() -> list[DiagnosticStatus]:
            return [msg.status[0] for msg in self.received["/diagnostics"] if msg.status[0].name == name]

        known = len(own())
        wait(lambda: len(own()) > known, 5)
        return own()[-1]

    def call(self, kind, name: str, request=None):
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=10), name
        future = client.call_async(request or kind.Request())
        wait(future.done, 10)
        self.node.destroy_client(client)
        return future.result()

    def set(self, **values: object) -> None:
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        done = self.call(SetParameters, "omni/set_parameters", SetParameters.Request(parameters=parameters))
        assert all(result.successful for result in done.results), done.results

    def show(self, pixels: np.ndarray) -> None:
        self.image.publish(picture(pixels))

    def speak(self, pcm: np.ndarray, speed: float = 1.0) -> None:
        """Publish int16 PCM as a 16 kHz microphone does: 20 ms at a time."""
        started = time.monotonic()
        for number, start in enumerate(range(0, pcm.size, 320)):
            self.audio.publish(Int16MultiArray(data=array.array("h", pcm[start : start + 320].tobytes())))
            time.sleep(max(0.0, started + (number + 1) * 0.02 / speed - time.monotonic()))


def wait(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


def picture(pixels: np.ndarray) -> Image:
    height, width = pixels.shape[:2]
    data = array.array("B", pixels.tobytes())
    return Image(height=height, width=width, encoding="rgb8", step=3 * width, data=data)


def question() -> np.ndarray:
    """int16 [n], 16 kHz: quiet, a spoken question, quiet."""
    with av.open(ROOT / "demo" / "question_1.flac") as file:
        spoken = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    assert spoken.dtype == np.int16
    pcm = np.concatenate([np.zeros(8000), spoken, np.zeros(16000)])
    return (pcm + np.random.default_rng(0).normal(0, 30, pcm.size)).astype(np.int16)


PHOTO = np.random.default_rng(1).integers(0, 256, (96, 128, 3), dtype=np.uint8)
# Short answers, for tests that only wait for them. With random weights most answers end only at the limit.
SHORT = {"max_generate_length": 6, "max_audio_length": 10}
LONG = {"max_generate_length": 200, "max_audio_length": 400}


@pytest.fixture(scope="module")
def ros() -> Iterator[None]:
    rclpy.init()
    yield
    rclpy.shutdown()


@pytest.fixture(scope="module")
def engine_dir(engine_dirs: dict[str, Path]) -> Path:
    return engine_dirs["plain"]


@pytest.fixture(scope="module")
def running(ros, engine_dir: Path, tmp_path_factory) -> Iterator[tuple[OmniProcess, Client]]:
    client = Client()
    log = tmp_path_factory.mktemp("omni") / "log"
    audio = "std_msgs/msg/Int16MultiArray"  # at once, not when a publisher is found
    process = OmniProcess(log, engine_dir=engine_dir, vad="energy", audio_in_type=audio, seed=1)
    try:
        wait(lambda: client.state == "idle", 30)
        wait(lambda: client.audio.get_subscription_count() and client.prompt.get_subscription_count(), 10)
        yield process, client
        assert process.process.poll() is None, process.log.read_text()
    finally:
        process.stop()
        client.close()


@pytest.fixture
def omni(running: tuple[OmniProcess, Client]) -> Client:
    """The one running node, idle, its conversation forgotten and nothing recorded yet."""
    client = running[1]
    assert client.call(Trigger, "omni/reset").success
    client.set(preempt=True, mute_while_speaking=False, use_camera=True, image_max_age=1.0, system_prompt="")
    client.set(speaker="", audio_output=True, temperature=0.7, **SHORT)
    wait(lambda: client.state in ("idle", "error"), 10)
    client.forget()
    return client


def answer(omni: Client, count: int = 1) -> None:
    """Wait until `count` answers were given and their speech was heard."""
    wait(lambda: len(omni.received["response"]) >= count, 20)
    wait(lambda: omni.state == "idle", 20)


def test_two_turns_of_text(omni):
    for turn in (1, 2):
        omni.prompt.publish(String(data="What is your name?"))
        answer(omni, turn)
    assert "".join(omni.texts("response_stream")) == "".join(omni.texts("response")) != ""
    assert omni.samples() == 2 * (10 * 1920 - 555)  # every sample of ten codec frames, twice
    assert omni.texts("speaking") == [True, False] * 2
    assert omni.texts("state") == ["thinking", "speaking", "idle"] * 2
    assert omni.received["speech/audio"][0].data.typecode == "h"
    assert any(omni.received["speech/audio"][0].data)


def test_a_spoken_question_with_a_picture(omni):
    omni.set(image_max_age=10.0)
    omni.show(PHOTO)
    omni.speak(question())
    answer(omni)
    assert omni.texts("user_speaking") == [True, False]
    assert omni.texts("response")[0] and omni.samples() == 10 * 1920 - 555
    values = {pair.key: pair.value for pair in omni.status().values}
    # 4 x 3 merged patches and 3.9 s at 13 tokens per second, each with a few tokens around it: both reached the model
    assert 12 + 50 + 4 < int(values["pipeline prompt_tokens"]) < 12 + 53 + 20


def prompt_tokens(omni: Client, text: str) -> int:
    """Ask `text`, and return how many tokens the model was given."""
    omni.prompt.publish(String(data=text))
    answer(omni, len(omni.received["response"]) + 1)
    return int({pair.key: pair.value for pair in omni.status().values}["pipeline prompt_tokens"])


def test_the_picture_is_used_only_while_it_is_young_and_wanted(omni):
    def tokens_of_first_turn(**parameters: object) -> int:
        omni.call(Trigger, "omni/reset")
        omni.set(**parameters)
        omni.show(PHOTO)
        time.sleep(0.2)
        return prompt_tokens(omni, "Look.")

    without = tokens_of_first_turn(use_camera=False)
    assert tokens_of_first_turn(use_camera=True) == without + 12 + 2  # 4 x 3 merged patches between start and end
    assert tokens_of_first_turn(image_max_age=0.1) == without


def test_history_and_system_prompt_reach_the_model_until_reset(omni):
    first = prompt_tokens(omni, "And now?")
    assert prompt_tokens(omni, "And now?") > first
    assert omni.call(Trigger, "omni/reset").success
    omni.set(system_prompt="You are a robot.")
    assert first < prompt_tokens(omni, "And now?") < first + 60


def test_cancel_stops_speech_at_once_and_the_next_turn_works(omni):
    omni.set(**LONG)
    omni.prompt.publish(String(data="Tell me a long story."))
    wait(lambda: len(omni.received["speech/audio"]) >= 5, 20)
    assert omni.call(Trigger, "omni/cancel").success
    heard = omni.samples()
    wait(lambda: omni.texts("speaking")[-1] is False, 1)
    time.sleep(0.5)
    assert omni.samples() <= heard + 1440  # at most the message that was under way
    assert heard < 3 * 24000 < LONG["max_audio_length"] * 1920
    assert omni.received["response"] == []
    assert not omni.call(Trigger, "omni/cancel").success  # nothing is left to stop
    omni.set(**SHORT)
    omni.prompt.publish(String(data="Go on."))
    answer(omni)
    assert omni.samples() == heard + 10 * 1920 - 555 or omni.samples() == heard + 1440 + 10 * 1920 - 555


def test_speech_is_paced(omni):
    omni.set(max_audio_length=40)
    omni.prompt.publish(String(data="Speak."))
    wait(lambda: omni.received["speech/audio"], 20)
    started = time.monotonic()
    while omni.state != "idle":
        ahead = omni.samples() / 24000 - (time.monotonic() - started)
        assert ahead < 0.3 + 0.06 + 0.15  # lead, one message, and some slack for two busy cores
        time.sleep(0.02)
    assert omni.samples() == 40 * 1920 - 555
    assert abs(time.monotonic() - started - omni.samples() / 24000) < 0.5


def test_a_new_prompt_preempts(omni):
    omni.set(**LONG)
    omni.prompt.publish(String(data="Tell me a long story."))
    wait(lambda: omni.received["speech/audio"], 20)
    omni.set(**SHORT)
    omni.prompt.publish(String(data="Stop. What time is it?"))
    answer(omni)
    assert len(omni.received["response"]) == 1
    assert omni.texts("speaking") == [True, False, True, False]


def test_without_preemption_the_newest_prompt_waits(omni):
    omni.set(preempt=False)
    for text in ("First.", "Dropped.", "Second."):
        omni.prompt.publish(String(data=text))
        wait(lambda: omni.state != "idle", 5)
        time.sleep(0.05)
    answer(omni, 2)
    time.sleep(0.3)
    assert len(omni.received["response"]) == 2
    assert omni.samples() == 2 * (10 * 1920 - 555)


def test_disabled_means_deaf(omni):
    assert omni.call(SetBool, "omni/enable", SetBool.Request(data=False)).success
    omni.prompt.publish(String(data="Are you there?"))
    wait(lambda: omni.state == "disabled", 5)
    time.sleep(0.5)
    assert omni.received["response_stream"] == []
    assert omni.call(SetBool, "omni/enable", SetBool.Request(data=True)).success
    omni.prompt.publish(String(data="Are you there?"))
    answer(omni)


def test_a_failed_turn_is_reported_and_the_next_one_works(omni):
    omni.set(speaker="nobody")
    omni.prompt.publish(String(data="Who are you?"))
    wait(lambda: omni.state == "error", 10)
    status = omni.status()
    assert status.level == DiagnosticStatus.ERROR and "nobody" in status.message
    omni.set(speaker="", audio_output=False)  # its speech would be cut short by max_audio_length, which is a warning
    omni.prompt.publish(String(data="Who are you?"))
    answer(omni)
    assert omni.status().level == DiagnosticStatus.OK


def test_a_prompt_that_is_too_long_is_reported(omni):
    omni.prompt.publish(String(data="long " * 5000))
    wait(lambda: omni.state == "error", 10)
    assert "tokens" in omni.status().message


def test_history_makes_room_for_a_long_prompt(omni):
    long = "one two three four " * 40
    alone = prompt_tokens(omni, long)
    assert 1024 / 3 < alone < 1024 / 2  # two fit into the prompt limit, three do not
    assert alone < prompt_tokens(omni, long) <= 1024
    assert alone < prompt_tokens(omni, long) <= 1024


def test_a_full_kv_cache_ends_the_turn_with_a_reason_and_the_next_one_works(omni):
    omni.set(audio_output=False, max_generate_length=32768, temperature=0.0)
    omni.prompt.publish(String(data="Talk for ever."))
    answer(omni)
    status = omni.status()
    assert status.level == DiagnosticStatus.WARN and "KV cache full" in status.message
    omni.set(**SHORT)
    omni.prompt.publish(String(data="Thank you."))
    answer(omni, 2)
    assert omni.status().level == DiagnosticStatus.OK


def bad_image(**changes) -> Image:
    msg = picture(PHOTO)
    for name, value in changes.items():
        setattr(msg, name, value)
    return msg


def test_garbage_is_reported_and_survived(omni):
    def bad_messages() -> dict[str, int]:
        prefix = "bad messages "
        values = {pair.key: pair.value for pair in omni.status().values}
        return {key.removeprefix(prefix): int(value) for key, value in values.items() if key.startswith(prefix)}

    garbage = [
        (omni.prompt, String(data=" \n")),
        (omni.audio, Int16MultiArray()),
        (omni.image, bad_image(encoding="jpeg")),
        (omni.image, Image(encoding="rgb8")),
        (omni.image, bad_image(data=array.array("B", bytes(101)))),
        (omni.image, bad_image(step=1)),
    ]
    for publisher, msg in garbage:
        publisher.publish(msg)
        time.sleep(0.1)  # the camera topic keeps only the newest
    wait(lambda: bad_messages() == {"prompt": 1, "audio": 1, "camera": 4}, 5)
    status = omni.status()
    assert status.level == DiagnosticStatus.WARN
    assert status.message.startswith("camera: image step 1 is less than a row")
    omni.show(PHOTO)
    omni.prompt.publish(String(data="Are you well?"))
    answer(omni)


def test_a_stream_that_contradicts_its_sample_rate_is_noticed(omni):
    omni.speak(np.zeros(16000 * 12, np.int16), speed=3)  # what a 48 kHz microphone looks like
    status = omni.status()
    assert status.level == DiagnosticStatus.WARN
    assert "16000 Hz" in status.message and "samples per second" in status.message


def test_muted_while_speaking(omni):
    omni.set(mute_while_speaking=True, max_audio_length=70)  # 5.6 s: longer than the question
    omni.prompt.publish(String(data="Speak."))
    wait(lambda: omni.texts("speaking")[-1:] == [True], 10)
    omni.speak(question())
    answer(omni)
    assert True not in omni.texts("user_speaking")
    assert len(omni.received["response"]) == 1


def test_lifecycle_by_hand(omni):
    def change(transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return omni.call(ChangeState, "omni/change_state", request).success

    def state() -> str:
        return omni.call(GetState, "omni/get_state").current_state.label

    omni.set(**LONG)
    omni.prompt.publish(String(data="Tell me a long story."))
    wait(lambda: omni.received["speech/audio"], 20)
    assert change(Transition.TRANSITION_DEACTIVATE) and state() == "inactive"
    wait(lambda: omni.state == "inactive" and omni.texts("speaking")[-1] is False, 2)
    assert change(Transition.TRANSITION_CLEANUP) and state() == "unconfigured"
    assert not omni.call(Trigger, "omni/cancel").success
    assert change(Transition.TRANSITION_CONFIGURE) and change(Transition.TRANSITION_ACTIVATE)
    omni.set(**SHORT)
    wait(lambda: omni.prompt.get_subscription_count() > 0, 10)
    omni.prompt.publish(String(data="Welcome back."))
    answer(omni)


def test_read_only_and_ranges(omni):
    def refused(name: str, value: object) -> bool:
        parameter = Parameter(name, value=value).to_parameter_msg()
        done = omni.call(SetParameters, "omni/set_parameters", SetParameters.Request(parameters=[parameter]))
        return not done.results[0].successful

    assert refused("engine_dir", "elsewhere")
    assert refused("temperature", -1.0)
    assert refused("max_generate_length", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_cleanly_while_it_answers(ros, engine_dir, tmp_path, number):
    namespace = f"robot{number}"  # the node of the other tests may still be there
    client = Client(namespace)
    process = OmniProcess(tmp_path / "log", namespace, engine_dir=engine_dir, vad="energy", **LONG)
    try:
        wait(lambda: client.prompt.get_subscription_count() > 0, 30)
        client.prompt.publish(String(data="Tell me a long story."))
        wait(lambda: client.received["speech/audio"], 20)
        code, seconds = process.stop(number)
        assert code == 0 and seconds < 2, process.log.read_text()
        assert "Traceback" not in process.log.read_text()
        wait(lambda: client.texts("speaking")[-1] is False, 1)
    finally:
        process.process.kill()
        client.close()


def test_a_broken_jpeg_costs_the_picture_not_the_answer(ros, engine_dir, tmp_path):
    client = Client("jpeg")
    camera = client.node.create_publisher(CompressedImage, "image_raw/compressed", 10)
    parameters = {"engine_dir": engine_dir, "image_transport": "compressed", "image_max_age": 60.0, **SHORT}
    process = OmniProcess(tmp_path / "log", "jpeg", **parameters)
    try:
        wait(lambda: client.prompt.get_subscription_count() and camera.get_subscription_count(), 30)
        file = io.BytesIO()
        Picture.fromarray(PHOTO).save(file, "JPEG")
        whole = prompt_tokens_with(client, camera, file.getvalue())
        client.call(Trigger, "omni/reset")
        broken = prompt_tokens_with(client, camera, file.getvalue()[:-1000])
        assert broken == whole - 12 - 2
        assert "cannot be decoded" in process.log.read_text()
    finally:
        process.stop()
        client.close()


def prompt_tokens_with(client: Client, camera, jpeg: bytes) -> int:
    for _ in range(5):  # the first may be gone before the node's end of the topic knows this publisher
        camera.publish(CompressedImage(format="jpeg", data=array.array("B", jpeg)))
        time.sleep(0.1)
    return prompt_tokens(client, "Look.")


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "engine_dir is empty"),
        ({"engine_dir": "/nowhere"}, "/nowhere/thinker"),
        ({"vad": "loudness"}, "vad is 'loudness'"),
        ({"image_transport": "theora"}, "image_transport is 'theora'"),
        ({"audio_in_type": "std_msgs/msg/String"}, "audio_in_type 'std_msgs/msg/String'"),
        ({"speaker": "nobody"}, "nobody"),
    ],
)
def test_what_cannot_be_configured_is_named(ros, engine_dir, tmp_path, parameters, reason):
    defaults = {"engine_dir": engine_dir} if parameters else {}
    process = OmniProcess(tmp_path / "log", **defaults | parameters)
    try:
        assert process.process.wait(30) == 1
        assert reason in process.log.read_text()
    finally:
        process.process.kill()


def test_a_missing_engine_file_is_named(ros, engine_dir, tmp_path):
    copy = tmp_path / "engines"
    copy.mkdir()
    for part in engine_dir.iterdir():
        (copy / part.name).symlink_to(part)
    (copy / "talker").unlink()
    (copy / "talker").mkdir()
    for file in (engine_dir / "talker").iterdir():
        if file.name != "text_projection.safetensors":
            (copy / "talker" / file.name).symlink_to(file)
    process = OmniProcess(tmp_path / "log", engine_dir=copy)
    assert process.process.wait(30) == 1
    assert "text_projection.safetensors" in process.log.read_text()
