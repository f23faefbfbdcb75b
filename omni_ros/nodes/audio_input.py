"""The microphone topic, whatever its message type, as 16 kHz mono chunks."""

import importlib
import time
from collections.abc import Callable

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription

from omni_ros.dialogue.resample import Resampler
from omni_ros.errors import InputError
from omni_ros.nodes.first_stream import FirstStream
from omni_ros.nodes.messages import AUDIO_TYPES, array_bytes, audio_reader, pcm_format, shown
from omni_ros.nodes.streams import Streams

# Best effort matches reliable and best-effort publishers; deep, because a lost chunk is a hole in a word.
QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
INFO_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# Seconds between looks at the graph for a publisher, whose first words are lost until then: see AudioInput.
LOOK_EVERY = 0.02
AUDIO_PROBLEMS = ("audio rate", "audio publishers")


def message_class(name: str) -> type | None:
    """`package/msg/Type`, one of AUDIO_TYPES or AudioInfo -> its class, or None when it is not installed or broken."""
    package, _, kind = name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind, None)
    except Exception:  # noqa: BLE001 - a package built for another ROS fails in any way while it is imported
        return None


class AudioInput:
    """Hears topic `audio` from construction to `close`, while `streams` are open.

    With type `auto` it waits for a publisher and takes its type: two subscriptions of different types on one topic are not
    possible in DDS. A publisher that starts later is heard from the moment at which both ends know each other. What that
    takes was measured with Fast DDS on one machine: of a new publisher in a process that is known, nothing is lost where the
    type is given, 20-60 ms with `auto`. A new process is discovered after 1.5 to 2.4 s (at most 3 s, the period at which
    the node announces itself); with nodes/fastdds.xml after 0.15 s at most in six runs.
    """

    def __init__(
        self,
        node: LifecycleNode,
        streams: Streams,
        *,
        type_name: str,
        sample_rate: int,
        channels: int,
        hear: Callable[[Callable[[], np.ndarray], int], None],  # Dialogue.hear: makes float32 [n] at 16 kHz, later
        on_bad: Callable[[str], None],
    ) -> None:
        self._node = node
        self._streams = streams
        self._layout = sample_rate, channels
        self._hear = hear
        self._on_bad = on_bad
        self._resamplers: dict[int, Resampler] = {}
        self._first = FirstStream()
        self._stream: tuple[float, float, int] | None = None  # first and last arrival, samples after the first
        self._declared = sample_rate
        self._info: Subscription | None = None
        self._timer = None
        self._reported = ""
        self.type_name = ""
        if type_name == "auto":
            clock = Clock(clock_type=ClockType.STEADY_TIME)  # a paused simulation must not stop the search
            self._timer = node.create_timer(LOOK_EVERY, self._look, clock=clock)
        else:
            self._subscribe(type_name)

    def close(self) -> None:
        if self._info is not None:
            self._node.destroy_subscription(self._info)
            self._info = None
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None

    @property
    def topic(self) -> str:
        """As it is called after remapping."""
        return self._node.resolve_topic_name("audio")

    def problems(self) -> tuple[str, str]:
        """What is wrong with the stream now, as AUDIO_PROBLEMS; "" where nothing is (also while it is too short to tell)."""
        others = self._first.others(time.monotonic())
        two = ""
        if others:
            names = sorted({p.node_name for p in self._node.get_publishers_info_by_topic("audio")})
            two = f"{others + 1} publishers send on {self.topic} ({shown(', '.join(names))}): only the first is heard"
        return self._rate_problem(), two

    def _rate_problem(self) -> str:
        if self._stream is None:
            return ""
        first, last, samples = self._stream
        if time.monotonic() - last > 2.0 or last - first < 3.0 or abs(samples / (last - first) / self._declared - 1) < 0.2:
            return ""
        return (
            f"audio arrives at {samples / (last - first):.0f} samples per second, "
            f"but its sample rate is given as {self._declared} Hz: correct sample_rate or the driver"
        )

    def _look(self) -> None:
        types = [p.topic_type for p in self._node.get_publishers_info_by_topic("audio")]
        known = next((name for name in types if self._reader(name) is not None), None)
        if known is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
            self._subscribe(known)
        elif types and types[0] != self._reported:
            self._reported = types[0]
            self._on_bad(f"audio is published as {shown(types[0])}, which is no supported audio type or is not installed")

    def _reader(self, name: str):
        kind = message_class(name) if name in AUDIO_TYPES else None
        return None if kind is None else audio_reader(kind, *self._layout)

    def _subscribe(self, name: str) -> None:
        kind = message_class(name)
        if kind is None or self._reader(name) is None:
            raise InputError(f"audio_in_type {shown(name)} is no supported audio type or its package is not installed")
        self.type_name = name
        self._read = self._reader(name)
        self._streams.subscribe(kind, "audio", self._receive, QOS)
        info = message_class("audio_common_msgs/msg/AudioInfo") if name.startswith("audio_common_msgs/msg/AudioData") else None
        if hasattr(info, "coding_format"):  # ros-drivers
            self._info = self._node.create_subscription(info, "audio_info", self._on_info, INFO_QOS)

    def _on_info(self, msg) -> None:
        try:
            self._layout = pcm_format(msg)
            self._read = self._reader(self.type_name)
        except InputError as error:
            self._on_bad(str(error))

    def _receive(self, msg, info: dict) -> None:
        now = time.monotonic()
        if self._first.accepts(info, now, lambda: self._node.count_publishers(self.topic)):
            self._hear(lambda: self._samples(msg, now), array_bytes(msg))

    def _samples(self, msg, arrived: float) -> np.ndarray:  # float32 [n] at 16 kHz
        pcm, rate = self._read(msg)
        self._time(rate, pcm.size, arrived)
        if rate not in self._resamplers:
            self._resamplers = {rate: Resampler(rate)}
        return self._resamplers[rate](pcm)

    def _time(self, rate: int, samples: int, now: float) -> None:
        if self._stream is None or rate != self._declared or now - self._stream[1] > 0.5:  # a new run of chunks
            self._stream, self._declared = (now, now, 0), rate
        else:
            self._stream = self._stream[0], now, self._stream[2] + samples
