"""The people around the node in a soak: who type, speak, interrupt, and send garbage. Import it after ROS_DOMAIN_ID is set."""

import array
import io
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from PIL import Image
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Bool, Int16MultiArray, MultiArrayDimension, String
from std_srvs.srv import SetBool, Trigger

from fuzz.mutate import TEXTS

ROOT = Path(__file__).parents[1]
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
RATE, PIECE, QUIET = 16000, 320, 1.0  # Hz, samples a message, seconds after a question


class Client:
    def __init__(self, namespace: str):
        rclpy.init()
        self.node = rclpy.create_node("people", namespace=namespace)
        self.state, self.diagnostic = "", {}
        self.answers = self.pieces = self.diagnostics = 0
        self.first: dict[str, float] = {}  # of the turn that runs: when its first text and speech came
        self.latencies: dict[str, list[tuple[float, float]]] = defaultdict(list)  # when it was asked, seconds
        subscribe = self.node.create_subscription
        subscribe(String, "response_stream", lambda msg: self.first.setdefault("text", time.monotonic()), 100)
        subscribe(String, "response", self._answered, 10)
        subscribe(Int16MultiArray, "speech/audio", self._heard, 100)
        subscribe(String, "state", lambda msg: setattr(self, "state", msg.data), LATCHED)
        subscribe(DiagnosticArray, "/diagnostics", self._diagnosed, 10)
        self.prompt = self.node.create_publisher(String, "prompt", 10)
        self.programs = [self.node.create_publisher(String, topic, 10) for topic in ("say", "facts")]
        self.button = self.node.create_publisher(Bool, "push_to_talk", 10)
        self.audio = self.node.create_publisher(Int16MultiArray, "audio", 100)
        self.camera = self.node.create_publisher(CompressedImage, "image_raw/compressed", 10)
        self.services = {
            "cancel": self.node.create_client(Trigger, "omni/cancel"),
            "reset": self.node.create_client(Trigger, "omni/reset"),
            "enable": self.node.create_client(SetBool, "omni/enable"),
            "change_state": self.node.create_client(ChangeState, "omni/change_state"),
            "set_parameters": self.node.create_client(SetParameters, "omni/set_parameters"),
        }
        self.question = question()
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()

    def _answered(self, msg: String) -> None:
        self.answers += 1

    def _heard(self, msg: Int16MultiArray) -> None:
        self.pieces += 1
        self.first.setdefault("speech", time.monotonic())

    def _diagnosed(self, msg: DiagnosticArray) -> None:
        self.diagnostic = {pair.key: pair.value for pair in msg.status[0].values}
        self.diagnostics += 1

    def close(self) -> None:
        self.executor.shutdown()
        self.thread.join()
        self.node.destroy_node()
        rclpy.shutdown()

    @property
    def connected(self) -> bool:
        topics = self.prompt, self.audio, self.camera
        return all(topic.get_subscription_count() for topic in topics) and bool(self.diagnostic)

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {seconds:g} s, state {self.state}")
            time.sleep(0.005)

    def call(self, name: str, request=None):
        client = self.services[name]
        future = client.call_async(request or client.srv_type.Request())
        self.wait(future.done, 10, f"answer of service {name}")
        return future.result()

    def defects(self) -> int:
        return int(self.diagnostic["defects"])

    def set(self, **values: object):
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        return self.call("set_parameters", SetParameters.Request(parameters=parameters))

    # ---- turns ----------------------------------------------------------------------------------------------------
    def typed(self, rng: random.Random, limit: float) -> None:
        self._settle(limit)
        if rng.random() < 0.5:
            self.camera.publish(jpeg(rng))
        known = self.answers
        self.first = {}
        sent = time.monotonic()
        self.prompt.publish(String(data=rng.choice(("Hello?", "What do you see?", "Und auf Deutsch?", "Why is the sky blue?"))))
        self._finish("typed", known, sent, limit)

    def spoken(self, rng: random.Random, limit: float) -> None:
        self._settle(limit)
        known = self.answers
        self.first = {}
        self.speak(self.question)
        self._finish("spoken, from the end of the recording", known, time.monotonic() - QUIET, limit)

    def cancelled(self, rng: random.Random, limit: float) -> None:
        """By the service, in mid-speech or before."""
        self._begin_long(rng, limit)
        sent = time.monotonic()
        self.call("cancel")
        self.wait(lambda: self.state in ("idle", "error"), limit, "silence after cancel")
        self.latencies["cancel until idle"].append((sent, time.monotonic() - sent))

    def interrupted(self, rng: random.Random, limit: float) -> None:
        """By another prompt, or by voice."""
        self._begin_long(rng, limit)
        known = self.answers
        self.first = {}
        if rng.random() < 0.5:
            self.prompt.publish(String(data="Wait."))
        else:
            self.speak(self.question)
        self.wait(lambda: self.answers > known, limit, "answer to an interruption")
        self._settle(limit)

    def speak(self, pcm: np.ndarray) -> None:
        """int16 [n] as a 16 kHz microphone sends it."""
        started = time.monotonic()
        for number, at in enumerate(range(0, pcm.size, PIECE)):
            self.audio.publish(sound(pcm[at : at + PIECE]))
            time.sleep(max(0.0, started + (number + 1) * PIECE / RATE - time.monotonic()))

    def _begin_long(self, rng: random.Random, limit: float) -> None:
        self._settle(limit)
        self.set(max_generate_length=100, max_audio_length=200)
        heard, deadline = self.pieces, time.monotonic() + limit
        while self.pieces == heard:  # random weights now and then end an answer before its first sound
            known = self.answers
            self.prompt.publish(String(data="Tell me a long story."))
            self.wait(
                lambda known=known: self.pieces > heard or (self.answers > known and self.state in ("idle", "error")),
                deadline - time.monotonic(),
                "speech",
            )
        time.sleep(rng.random())
        self.set(max_generate_length=12, max_audio_length=15)

    def _settle(self, limit: float) -> None:
        self.wait(lambda: self.state in ("idle", "error"), limit, "end of the turn before")

    def _finish(self, kind: str, known: int, since: float, limit: float) -> None:
        self.wait(lambda: self.answers > known, limit, f"answer, {kind}")
        self._settle(limit)
        if "speech" not in self.first and self._last_turn("pipeline frames"):
            self.wait(lambda: "speech" in self.first, limit, f"speech, {kind}")
        for what in self.first:
            self.latencies[f"{kind}, first {what}"].append((since, self.first[what] - since))

    def _last_turn(self, what: str) -> int:
        """A number of it that diagnostics tell: an answer of random weights may end before its first word or sound."""
        known = self.diagnostics
        self.wait(lambda: self.diagnostics > known + 1, 10, "diagnostics")  # one may have been under way
        return int(self.diagnostic.get(what, 0))


def sound(pcm: np.ndarray) -> Int16MultiArray:
    return Int16MultiArray(data=array.array("h", pcm.tobytes()))


def compressed(data: bytes, form: str = "jpeg") -> CompressedImage:
    return CompressedImage(format=form, data=array.array("B", data))


def jpeg(rng: random.Random) -> CompressedImage:
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    return compressed(encoded(pixels, "JPEG"))


def encoded(pixels: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def question() -> np.ndarray:
    """int16 [n], 16 kHz: a spoken question, and a second of quiet."""
    with av.open(str(ROOT / "demo" / "questions" / "what_do_you_see.flac")) as file:
        spoken = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    return np.concatenate([np.zeros(4000, np.int16), spoken.astype(np.int16), np.zeros(int(QUIET * RATE), np.int16)])


# ---- garbage ----------------------------------------------------------------------------------------------------------
def strange_texts(client: Client, rng: random.Random) -> None:
    for _ in range(5):
        client.prompt.publish(String(data=rng.choice(TEXTS)[:10000].encode("utf-8", "replace").decode()))


def long_text(client: Client, rng: random.Random) -> None:
    client.prompt.publish(String(data=rng.choice(("a ", "word ", "<|im_start|>", "\u00e4")) * (1 << rng.choice((12, 16, 18)))))


def strange_programs(client: Client, rng: random.Random) -> None:
    """What the robot is to say, and to know; and a button that nobody waits for."""
    for _ in range(5):
        for topic in client.programs:
            topic.publish(String(data=rng.choice(TEXTS)[:20000].encode("utf-8", "replace").decode()))
            topic.publish(String(data='{"' + rng.choice(TEXTS)[:300].encode("utf-8", "replace").decode()))
        client.button.publish(Bool(data=rng.random() < 0.5))
    time.sleep(rng.random())
    client.call("cancel")


def odd_sounds(client: Client, rng: random.Random) -> None:
    noise = np.random.default_rng(rng.randrange(2**32))
    client.audio.publish(sound(np.zeros(0, np.int16)))
    many = sound(np.zeros(100, np.int16))
    many.layout.dim.append(MultiArrayDimension(label="channels", size=7, stride=1))
    client.audio.publish(many)
    for _ in range(5):
        client.audio.publish(sound(noise.integers(-32768, 32768, rng.choice((1, 33, 5000)), dtype=np.int16)))


def large_sounds(client: Client, rng: random.Random) -> None:
    """Ten megabytes, five minutes of it, at once."""
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 3000, 250_000).astype(np.int16)
    for _ in range(20):
        client.audio.publish(sound(noise))
    time.sleep(1)


def broken_pictures(client: Client, rng: random.Random) -> None:
    whole = jpeg(rng).data.tobytes()
    for data in (b"", b"%!PS-Adobe-3.0 EPSF-3.0", whole[: rng.randrange(len(whole))], rng.randbytes(5000)):
        client.camera.publish(compressed(data, rng.choice(("jpeg", "png", "x" * 10000))))
        time.sleep(0.05)


def huge_picture(client: Client, rng: random.Random) -> None:
    """PNG of 13,300 x 13,300 in 50 KB."""
    client.camera.publish(compressed(HUGE, "png"))
    time.sleep(0.05)


def eight_k_picture(client: Client, rng: random.Random) -> None:
    """The largest that is taken."""
    client.camera.publish(compressed(EIGHT_K))
    time.sleep(0.05)


def wrong_requests(client: Client, rng: random.Random) -> None:
    for number in (Transition.TRANSITION_CONFIGURE, 99, 255):
        client.call("change_state", ChangeState.Request(transition=Transition(id=number)))
    client.set(temperature="hot", top_k=-1, engine_dir="/nowhere", nonsense=1)
    client.set(speaker="x" * 1000)
    client.prompt.publish(String(data="Who speaks?"))
    time.sleep(0.2)
    client.call("enable", SetBool.Request(data=False))
    client.prompt.publish(String(data="Nobody hears this."))
    client.call("enable", SetBool.Request(data=True))
    client.set(speaker="")


def forgotten(client: Client, rng: random.Random) -> None:
    client.call("reset")


VISITOR = """
import rclpy
from std_msgs.msg import Int16MultiArray, String
rclpy.init()
node = rclpy.create_node("visitor", namespace="soak")
node.create_subscription(Int16MultiArray, "speech/audio", lambda msg: None, 100)
prompt = node.create_publisher(String, "prompt", 10)
while not prompt.get_subscription_count():
    rclpy.spin_once(node, timeout_sec=0.02)
prompt.publish(String(data="Will you miss me?"))
rclpy.spin(node)
"""


def vanishing_visitor(client: Client, rng: random.Random) -> None:
    """Somebody asks, listens, and is killed: while being discovered, in mid-speech, or after it."""
    visitor = subprocess.Popen([sys.executable, "-c", VISITOR])
    time.sleep(rng.uniform(0.3, 3.0))
    visitor.kill()
    visitor.wait()


ATTACKS: dict[str, Callable[[Client, random.Random], None]] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        strange_texts,
        long_text,
        strange_programs,
        odd_sounds,
        large_sounds,
        broken_pictures,
        huge_picture,
        eight_k_picture,
        wrong_requests,
        forgotten,
        vanishing_visitor,
    )
}


def _flat(width: int, height: int, form: str, mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, form)
    return file.getvalue()


HUGE, EIGHT_K = _flat(13300, 13300, "PNG", "1"), _flat(7680, 4320, "JPEG", "RGB")
