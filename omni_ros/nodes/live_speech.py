"""What the user said as hri_msgs/LiveSpeech (REP-155), where that package is installed."""

from collections.abc import Callable

from rclpy.node import Node

from omni_ros.nodes.audio_input import message_class


def live_speech(node: Node) -> Callable[[str], None]:
    """Publishes a final text on topic `live_speech`; does nothing without the package."""
    kind = message_class("hri_msgs/msg/LiveSpeech")
    if kind is None:
        return lambda text: None
    publisher = node.create_publisher(kind, "live_speech", 10)

    def publish(text: str) -> None:
        msg = kind(final=text)
        msg.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(msg)

    return publish
