"""The bond to nav2_lifecycle_manager, where package bond is installed: both sides say that they live, ten times a second.

Both publish bond/Status on topic `bond` under the node's name, each with an instance of its own. The manager takes all its nodes
down when one of them says that it has died, or says nothing for `bond_timeout`. As Nav2's nodes do, this one minds no silence.
"""

import uuid
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode

from omni_ros.nodes.audio_input import message_class

PERIOD, TIMEOUT = 0.1, 4.0  # seconds, as Nav2's nodes


class Bond:
    """Held from construction, when the node becomes active, to `close`. Does nothing without the package."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._instance = str(uuid.uuid4())
        self._timer: Any = None
        self._kind: Any = message_class("bond/msg/Status")
        if self._kind is None:
            return
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._publisher = node.create_publisher(self._kind, "bond", 5)
        self._subscription = node.create_subscription(self._kind, "bond", self._hear, 100)
        self._timer = node.create_timer(PERIOD, lambda: self._say(alive=True), clock=self._clock)

    def close(self) -> None:
        """The node is not active any more."""
        if self._kind is None:
            return
        if self._timer is not None:
            self._end()
        self._node.destroy_publisher(self._publisher)
        self._node.destroy_subscription(self._subscription)
        self._kind = None

    def _hear(self, msg: Any) -> None:
        ours = msg.id == self._node.get_name() and msg.instance_id != self._instance
        if ours and not msg.active and self._timer is not None:
            self._end()  # the manager lets go, and waits for us to do the same

    def _end(self) -> None:
        self._node.destroy_timer(self._timer)
        self._timer = None
        self._say(alive=False)

    def _say(self, alive: bool) -> None:
        msg = self._kind(
            id=self._node.get_name(),
            instance_id=self._instance,
            active=alive,
            heartbeat_timeout=TIMEOUT,
            heartbeat_period=PERIOD,
        )
        msg.header.stamp = self._clock.now().to_msg()
        self._publisher.publish(msg)
