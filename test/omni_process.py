"""The omni node in its own process and a client around it, over real DDS with rosidl's field checks on."""

import array
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dds_domain import own_domain

# Read by rcl and rosidl: nothing outside this machine and this test session is heard or disturbed.
os.environ.update(ROS_DOMAIN_ID=own_domain(), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST", ROS_PYTHON_CHECK_FIELDS="1")

import numpy as np  # noqa: E402
import omni_sounds  # noqa: E402
import pytest  # noqa: E402
import rclpy  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Bool, Int16MultiArray, String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

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
    "latency": (DiagnosticArray, 10),
}


class OmniProcess:
    """`ros2 run omni_ros omni` with parameters, its output kept in a file."""

    def __init__(
        self,
        log: Path,
        namespace: str = "",
        module: str = "omni_ros.nodes.omni_node",
        env: dict[str, str] | None = None,
        **parameters: object,
    ) -> None:
        self.log = log
        parameters = {"runaway_limit": 0, **parameters}  # random weights do nothing but run away
        arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", module, "--ros-args", "-r", f"__ns:=/{namespace}", *arguments]
        path = os.pathsep.join([str(ROOT / "test"), os.environ.get("PYTHONPATH", "")])  # where faulty_node is
        environment = {**os.environ, "ROS_LOG_DIR": str(log.parent), "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **(env or {})}
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

    @property
    def connected(self) -> bool:
        """Whether prompts reach the node and all its outputs this client, whose last subscription but one is of `state`."""
        return bool(self.prompt.get_subscription_count() and self.received["state"])

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
        wait(lambda: len(own()) > known, 20)
        return own()[-1]

    def call(self, kind, name: str, request=None):
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=10), name
        future = client.call_async(request or kind.Request())
        wait(future.done, 10)
        self.node.destroy_client(client)
        return future.result()

    def change(self, transition: int, label: str = "") -> bool:
        """Ask for a lifecycle transition; whether it was done."""
        request = ChangeState.Request(transition=Transition(id=transition, label=label))
        return self.call(ChangeState, "omni/change_state", request).success

    def lifecycle(self) -> str:
        return self.call(GetState, "omni/get_state").current_state.label

    def values(self) -> dict[str, str]:
        """What the node's next diagnostic holds."""
        return {pair.key: pair.value for pair in self.status().values}

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
    pcm = np.concatenate([np.zeros(8000), omni_sounds.question(), np.zeros(16000)])
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
    process = OmniProcess(log, engine_dir=engine_dir, vad="energy", turn_detector="silence", audio_in_type=audio, seed=1)
    try:
        wait(lambda: client.state == "idle", 30)
        wait(lambda: client.audio.get_subscription_count() and client.connected, 10)
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
