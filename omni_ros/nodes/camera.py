"""The camera topic: hands on the newest usable picture."""

from collections.abc import Callable

import numpy as np
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from omni_ros.errors import InputError
from omni_ros.nodes import messages
from omni_ros.nodes.point_cloud import check_cloud, cloud_to_rgb, distances
from omni_ros.nodes.streams import Streams

# Best effort matches every publisher; depth 1 keeps no stale picture.
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


# Parameter image_transport -> message type, topic, whether a message can be used (cheap), the picture in it.
TRANSPORTS: dict[str, tuple[type, str, Callable, Callable]] = {
    "raw": (Image, "image_raw", messages.check_image, messages.image_to_rgb),
    "compressed": (CompressedImage, "image_raw/compressed", messages.check_compressed, messages.compressed_to_rgb),
    "points": (PointCloud2, "points", check_cloud, cloud_to_rgb),
}


class Camera:
    """One topic of TRANSPORTS, while `streams` are open."""

    def __init__(
        self,
        streams: Streams,
        *,
        transport: str,
        see: Callable[[Callable[[], np.ndarray], int], None],  # Dialogue.see: decodes to uint8 RGB [H, W, 3], if ever
        measure: Callable[[Callable[[], str]], None],  # takes the distances of what is seen, in words, if ever asked
        on_bad: Callable[[str], None],
    ) -> None:
        if transport not in TRANSPORTS:
            raise InputError(f"image_transport is {messages.shown(transport)}, but must be one of {', '.join(TRANSPORTS)}")
        self._see = see
        self._measure = measure
        self._on_bad = on_bad
        kind, topic, self._check, self._decode = TRANSPORTS[transport]
        streams.subscribe(kind, topic, self._receive, NEWEST)

    def _receive(self, msg: Image | CompressedImage | PointCloud2) -> None:
        try:
            self._check(msg)
        except InputError as error:
            self._on_bad(str(error))
        else:
            self._see(lambda: self._decode(msg), messages.array_bytes(msg))
            if isinstance(msg, PointCloud2):
                self._measure(lambda: distances(msg))
