"""The camera topic: keeps the newest usable picture."""

import time
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

    def __init__(self, node: LifecycleNode, *, transport: str, on_bad: Callable[[str], None]) -> None:
        if transport not in ("raw", "compressed"):
            raise InputError(f"image_transport is '{transport}', but must be raw or compressed")
        self._node = node
        self._on_bad = on_bad
        self._msg: Image | CompressedImage | None = None
        self._arrived = float("-inf")  # monotonic: stamps of a bag or another machine say nothing about age
        kind, topic = (Image, "image_raw") if transport == "raw" else (CompressedImage, "image_raw/compressed")
        options = QoSOverridingOptions.with_default_policies()
        create = node.create_subscription
        self._subscription = create(kind, topic, self._receive, NEWEST, qos_overriding_options=options)

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    @property
    def age(self) -> float:
        """Seconds since the newest picture arrived; infinite before the first."""
        return time.monotonic() - self._arrived

    def picture(self, max_age: float, max_pixels: int) -> Callable[[], np.ndarray] | None:
        """The newest picture if it is young enough: a function that decodes it to uint8 RGB [H, W, 3]."""
        msg = self._msg
        if msg is None or self.age > max_age:
            return None
        convert = messages.image_to_rgb if isinstance(msg, Image) else messages.compressed_to_rgb
        return lambda: messages.fit_pixels(convert(msg), max_pixels)

    def _receive(self, msg: Image | CompressedImage) -> None:
        try:
            messages.check_image(msg) if isinstance(msg, Image) else messages.open_compressed(msg)
        except InputError as error:
            self._on_bad(str(error))
        else:
            self._msg, self._arrived = msg, time.monotonic()
