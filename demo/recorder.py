"""Record what goes into and comes out of the omni node, with arrival times."""

import threading
import time
from collections.abc import Callable

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Bool, Int16MultiArray, String

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
INPUT = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)


class Recorder:
    """Lists of (seconds since construction or rewind(), payload), filled by a thread of its own; prints what is said."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.state = ""
        self.microphone: list[tuple[float, np.ndarray]] = []  # int16, 16 kHz
        self.pictures: list[tuple[float, bytes]] = []  # JPEG
        self.deltas: list[tuple[float, str]] = []
        self.answers: list[tuple[float, str]] = []
        self.speech: list[tuple[float, np.ndarray]] = []  # int16, 24 kHz
        self.user_speaking: list[tuple[float, bool]] = []
        self.remembered: list[tuple[float, str]] = []  # the last answer in the node's history, when it changes
        self._node = rclpy.create_node("demo_recorder")
        self._listen(Int16MultiArray, "audio", INPUT, self._keep(self.microphone, np.array))
        self._listen(CompressedImage, "image_raw/compressed", INPUT, self._keep(self.pictures, bytes))
        self._listen(String, "response_stream", 100, self._on_delta)
        self._listen(String, "response", 10, self._on_answer)
        self._listen(Int16MultiArray, "speech/audio", 100, self._keep(self.speech, np.array))
        self._listen(Bool, "user_speaking", LATCHED, self._on_user_speaking)
        self._listen(Bool, "speaking", 10, self._on_speaking)
        self._listen(String, "state", LATCHED, self._on_state)
        self._listen(DiagnosticArray, "/diagnostics", 10, self._on_diagnostics)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def rewind(self) -> None:
        """Time counts from now on."""
        self.started = time.monotonic()

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()

    @property
    def now(self) -> float:
        return time.monotonic() - self.started

    def _say(self, text: str) -> None:
        print(f"[{self.now:6.2f} s] {text}", flush=True)

    def _listen(self, kind: type, topic: str, qos, callback: Callable) -> None:
        self._node.create_subscription(kind, topic, callback, qos)

    def _keep(self, where: list, convert: Callable) -> Callable:
        return lambda msg: where.append((self.now, convert(msg.data)))

    def _on_state(self, msg: String) -> None:
        self.state = msg.data

    def _on_delta(self, msg: String) -> None:
        self.deltas.append((self.now, msg.data))

    def _on_answer(self, msg: String) -> None:
        self.answers.append((self.now, msg.data))
        self._say(f"the robot answers: {msg.data}")

    def _on_speaking(self, msg: Bool) -> None:
        if self.speech or msg.data:
            self._say("the robot begins to speak" if msg.data else "the robot is silent")

    def _on_user_speaking(self, msg: Bool) -> None:
        if self.user_speaking or msg.data:  # the first message only says that nobody speaks yet
            self.user_speaking.append((self.now, msg.data))
            self._say(f"the user {'begins' if msg.data else 'has ended'}")

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        text = next((pair.value for pair in msg.status[0].values if pair.key == "answer remembered"), "")
        if text and (not self.remembered or self.remembered[-1][1] != text):
            self.remembered.append((self.now, text))
