"""Fast DDS as the nodes need it; other middlewares read none of this."""

import os
from pathlib import Path

PROFILE = Path(__file__).with_name("fastdds.xml")
VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # that name a profile


def settle() -> None:
    """To be called before rclpy.init. A profile that the environment names is left alone.

    By default each queue keeps its buffers for ever: 100 messages of 10 MB on topic audio, which anybody may publish, are 1 GB.
    """
    if not any(map(os.environ.get, VARIABLES)):
        os.environ[VARIABLES[0]] = str(PROFILE)
        os.environ.setdefault("RMW_FASTRTPS_USE_QOS_FROM_XML", "1")
