"""`microphone`: a sound card's input as topic `audio`, without the robot's own voice if wanted.

ros2 run omni_ros microphone --ros-args -p device:=USB -p echo:=aec
"""

import sys
import time
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Int16MultiArray

from omni_ros.devices.device import check_source, open_source
from omni_ros.devices.echo import RATE, Echo
from omni_ros.devices.recorder import Recorder
from omni_ros.devices.reference import PLAYED_RATE
from omni_ros.dialogue.clock import Clock
from omni_ros.errors import InputError
from omni_ros.nodes.audio_output import audio_type, audio_writer
from omni_ros.nodes.device_node import DeviceNode
from omni_ros.nodes.device_parameters import MICROPHONE_TABLE
from omni_ros.nodes.first_stream import FirstStream
from omni_ros.nodes.lifecycle_main import run
from omni_ros.nodes.messages import audio_reader

QOS = QoSProfile(depth=100)  # reliable: a lost message is a hole in a word, or in the canceller's time
NO_REFERENCE = "echo is cancelled only if a speaker node publishes what it plays on {}: is it running?"


class MicrophoneNode(DeviceNode):
    def __init__(self) -> None:
        super().__init__("microphone", MICROPHONE_TABLE)
        self._recorder: Recorder | None = None  # while active
        self._publisher: Any = None  # rclpy's, while active
        self._played: Any = None
        self._first = FirstStream()
        self._read_played: Any = audio_reader(Int16MultiArray, PLAYED_RATE, 1)

    def check(self) -> None:
        check_source(self.value("device"))
        self._echo()
        audio_type(self.value("audio_out_type"))

    def start(self) -> None:
        options = QoSOverridingOptions.with_default_policies()
        kind = audio_type(self.value("audio_out_type"))
        write = audio_writer(kind, RATE)
        publisher = self.create_publisher(kind, "audio", QOS, qos_overriding_options=options)
        self._publisher = publisher

        def publish(pcm: np.ndarray) -> None:
            publisher.publish(write(pcm, self.get_clock().now().to_msg()))

        device, rate, channels = self.value("device"), self.value("rate"), self.value("channels")
        clock = Clock()
        self._recorder = Recorder(
            lambda: open_source(device, rate, channels, clock),
            self._echo(),
            on_pcm=publish,
            on_failure=self.survived,
            clock=clock,
        )
        if self.value("echo") != "none":
            create = self.create_subscription
            self._played = create(Int16MultiArray, "speech_played", self._on_played, QOS, qos_overriding_options=options)

    def stop(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close()
        if self._played is not None:
            self.destroy_subscription(self._played)
        if self._publisher is not None:
            self.destroy_publisher(self._publisher)
        self._played = self._publisher = None

    def _echo(self) -> Echo:
        mode = self.value("echo")
        aec = mode == "aec"
        return Echo(
            mode,
            noise_suppression=aec and self.value("noise_suppression"),
            gain_control=aec and self.value("gain_control"),
        )

    def _on_played(self, msg: Int16MultiArray, info: dict) -> None:
        publishers = self.resolve_topic_name("speech_played")
        if self._recorder is None or not self._first.accepts(info, time.monotonic(), lambda: self.count_publishers(publishers)):
            return
        try:
            self._recorder.played(self._read_played(msg)[0])
        except InputError as error:
            self.bad("speech_played", str(error))

    def facts(self) -> dict[str, object]:
        return self._recorder.facts() if self._recorder is not None else {}

    def conditions(self) -> dict[str, tuple[str, bytes]]:
        if self._recorder is None:
            return dict.fromkeys(("device", "overflows", "echo", "speakers"), ("", DiagnosticStatus.OK))
        topic = self.resolve_topic_name("speech_played")
        blind = self.value("echo") != "none" and not self._recorder.knows_what_is_played
        others = self._first.others(time.monotonic())
        two = f"{others + 1} speakers publish on {topic}: only the first one's echo is known" if others else ""
        return {
            "device": (self._recorder.problem, DiagnosticStatus.ERROR),
            "overflows": (self.rising("device overflows", self.facts()["device overflows"]), DiagnosticStatus.WARN),
            "echo": (NO_REFERENCE.format(topic) if blind else "", DiagnosticStatus.WARN),
            "speakers": (two, DiagnosticStatus.WARN),
        }


def main(args: list[str] | None = None) -> int:
    return run(MicrophoneNode, args)


if __name__ == "__main__":
    sys.exit(main())
