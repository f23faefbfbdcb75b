"""The camera topic: hands on the newest usable picture."""

from collections.abc import Callable

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

from omni_ros.errors import InputError
from omni_ros.nodes import messages

# Best effort matches every publisher; depth 1 keeps no stale picture.
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class Camera:
    """Subscribes `image_raw` or `image_raw/compressed` from construction to `close`."""

    def __init__(
        self,
        node: LifecycleNode,
        *,
        transport: str,
        see: Callable[[Callable[[], np.ndarray]], None],  # Dialogue.see: decodes to uint8 RGB [H, W, 3], if ever
        on_bad: Callable[[str], None],
    ) -> None:
        if transport not in ("raw", "compressed"):
            raise InputError(f"image_transport is {messages.shown(transport)}, but must be raw or compressed")
        self._node = node
        self._see = see
        self._on_bad = on_bad
        kind, topic = (Image, "image_raw") if transport == "raw" else (CompressedImage, "image_raw/compressed")
        options = QoSOverridingOptions.with_default_policies()
        create = node.create_subscription
        self._subscription = create(kind, topic, self._receive, NEWEST, qos_overriding_options=options)

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def _receive(self, msg: Image | CompressedImage) -> None:
        raw = isinstance(msg, Image)
        try:
            messages.check_image(msg) if raw else messages.check_compressed(msg)
        except InputError as error:
            self._on_bad(str(error))
        else:
            self._see(lambda: messages.image_to_rgb(msg) if raw else messages.compressed_to_rgb(msg))
