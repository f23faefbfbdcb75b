"""`speaker`: plays topic `speech/audio` on a sound card, stops with `speaking`, obeys `speech_gain`, tells what it plays.

ros2 run omni_ros speaker --ros-args -p device:=USB
"""

import math
import sys
import time
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Bool, Float32, Int16MultiArray

from omni_ros.devices.device import check_sink, open_sink
from omni_ros.devices.player import Player
from omni_ros.devices.speech_queue import RATE
from omni_ros.dialogue.clock import Clock
from omni_ros.errors import InputError
from omni_ros.nodes.device_node import DeviceNode
from omni_ros.nodes.device_parameters import SPEAKER_TABLE
from omni_ros.nodes.lifecycle_main import run
from omni_ros.nodes.messages import audio_reader, fill_pcm

QOS = QoSProfile(depth=100)
OVERTAKEN = 1.0  # seconds after a stop in which speech that was sent before it may still come; later, the clock was set back


class SpeakerNode(DeviceNode):
    def __init__(self) -> None:
        super().__init__("speaker", SPEAKER_TABLE)
        self._player: Player | None = None  # while active
        self._publisher: Any = None  # rclpy's, while active
        self._subscriptions_made: list = []
        self._read: Any = audio_reader(Int16MultiArray, RATE, 1)
        # When the newest stop was sent, and came: topics overtake each other, and speech that was sent before must not be heard.
        self._stopped, self._stopped_at = 0.0, float("-inf")

    def check(self) -> None:
        check_sink(self.value("device"))

    def start(self) -> None:
        options = QoSOverridingOptions.with_default_policies()
        publisher = self.create_publisher(Int16MultiArray, "speech_played", QOS, qos_overriding_options=options)
        self._publisher = publisher

        def publish(pcm: np.ndarray) -> None:
            publisher.publish(fill_pcm(Int16MultiArray(), pcm))

        device, rate, channels = self.value("device"), self.value("rate"), self.value("channels")
        clock = Clock()
        self._player = Player(
            lambda: open_sink(device, rate, channels, clock),
            on_played=publish,
            on_failure=self.survived,
            clock=clock,
        )
        for kind, topic, callback in (
            (Float32, "speech_gain", self._on_gain),
            (Bool, "speaking", self._on_speaking),
            (Int16MultiArray, "speech/audio", self._on_speech),
        ):
            subscription = self.create_subscription(kind, topic, callback, QOS, qos_overriding_options=options)
            self._subscriptions_made.append(subscription)

    def stop(self) -> None:
        player, self._player = self._player, None
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self._subscriptions_made.clear()
        if player is not None:
            player.close()
        if self._publisher is not None:
            self.destroy_publisher(self._publisher)
            self._publisher = None

    def _on_speech(self, msg: Int16MultiArray, info: dict) -> None:
        sent = info["source_timestamp"] / 1e9
        if self._player is None or sent and sent <= self._stopped and time.monotonic() - self._stopped_at < OVERTAKEN:
            return
        try:
            self._player.push(self._read(msg)[0])
        except InputError as error:
            self.bad("speech/audio", str(error))

    def _on_speaking(self, msg: Bool, info: dict) -> None:
        if self._player is not None and not msg.data:
            self._note_stop(info)
            self._player.stop()

    def _on_gain(self, msg: Float32, info: dict) -> None:
        if not math.isfinite(msg.data):
            self.bad("speech_gain", f"{msg.data} is no gain: it lies between 0 and 1")
        elif self._player is not None:
            if msg.data <= 0:
                self._note_stop(info)
            self._player.set_gain(msg.data)

    def _note_stop(self, info: dict) -> None:
        self._stopped, self._stopped_at = info["source_timestamp"] / 1e9, time.monotonic()

    def facts(self) -> dict[str, object]:
        return self._player.facts() if self._player is not None else {}

    def conditions(self) -> dict[str, tuple[str, bytes]]:
        if self._player is None:
            return dict.fromkeys(("device", "underflows", "underruns"), ("", DiagnosticStatus.OK))
        facts = self.facts()
        if facts["gain"] != 1.0 and not self.count_publishers(self.resolve_topic_name("speech_gain")):
            self._player.set_gain(1.0)  # whoever turned it down is gone
        return {
            "device": (self._player.problem, DiagnosticStatus.ERROR),
            "underflows": (self.rising("device underflows", facts["device underflows"]), DiagnosticStatus.WARN),
            "underruns": (self.rising("speech underruns", facts["speech underruns"]), DiagnosticStatus.WARN),
        }


def main(args: list[str] | None = None) -> int:
    return run(SpeakerNode, args)


if __name__ == "__main__":
    sys.exit(main())
