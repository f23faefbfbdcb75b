"""What `activate` makes and `deactivate` takes away: the subscriptions that feed a dialogue."""

import functools
from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Bool, String

from omni_ros.dialogue.dialogue import Dialogue
from omni_ros.errors import InputError
from omni_ros.nodes.audio_input import AUDIO_PROBLEMS, AudioInput
from omni_ros.nodes.camera import Camera
from omni_ros.nodes.outputs import Outputs
from omni_ros.nodes.point_cloud import DISTANCE
from omni_ros.nodes.streams import Streams

PROBLEMS = (*AUDIO_PROBLEMS, "stream QoS")


class Inputs:
    """Camera, microphone and texts, from construction to `close`."""

    def __init__(self, node: LifecycleNode, dialogue: Dialogue, outputs: Outputs) -> None:
        def value(name: str):
            return node.get_parameter(name).value

        def taker(topic: str, take: Callable) -> Callable[[String | Bool], None]:
            def receive(msg: String | Bool) -> None:
                try:
                    take(msg.data)
                except InputError as error:
                    outputs.bad(topic, str(error))

            return receive

        self._node = node
        self._dialogue = dialogue
        self._streams = Streams(node, lambda: outputs.at_rest, outputs.failed)
        try:
            self._camera = Camera(
                self._streams,
                transport=value("image_transport"),
                see=dialogue.see,
                measure=functools.partial(dialogue.perception.put, DISTANCE),
                on_bad=functools.partial(outputs.bad, "camera"),
            )
            self.audio = AudioInput(
                node,
                self._streams,
                type_name=value("audio_in_type"),
                sample_rate=value("sample_rate"),
                channels=value("channels"),
                hear=dialogue.hear,
                on_bad=functools.partial(outputs.bad, "audio"),
            )
        except BaseException:
            self._streams.close()
            raise
        options = QoSOverridingOptions.with_default_policies()
        self._subscriptions = [
            node.create_subscription(kind, topic, taker(topic, take), 10, qos_overriding_options=options)
            for topic, kind, take in (
                ("prompt", String, dialogue.ask),
                ("say", String, dialogue.say),
                ("facts", String, dialogue.perceive),
                ("push_to_talk", Bool, dialogue.push_to_talk),
            )
        ]

    def problems(self) -> dict[str, str]:
        """What is wrong with what comes in now, by PROBLEMS; "" where nothing is."""
        return dict(zip(PROBLEMS, (*self.audio.problems(), self._streams.problem()), strict=True))

    def close(self) -> None:
        self._streams.close()
        self.audio.close()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._dialogue.stop_listening()
        self._dialogue.forget_picture()
        self._dialogue.perception.clear()
