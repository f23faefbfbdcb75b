"""Play a rosbag2 at the speed it was recorded, with rclpy alone; the recorded CDR bytes go out unchanged."""

import argparse
import importlib
import sys
import time
from pathlib import Path

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosbags.interfaces import QosReliability
from rosbags.rosbag2 import Reader

DISCOVERY = 15.0  # seconds to wait for subscribers: a process is discovered within three, on a busy machine later


def message_class(name: str) -> type:
    """`package/msg/Type` -> its class."""
    package, _, kind = name.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), kind)


def publisher(node, connection):
    """With the bag's reliability: a best-effort recording must not reach a subscriber that wants reliable data."""
    offered = connection.ext.offered_qos_profiles
    best_effort = bool(offered) and offered[0].reliability == QosReliability.BEST_EFFORT
    reliability = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
    qos = QoSProfile(depth=100, reliability=reliability)
    return node.create_publisher(message_class(connection.msgtype), connection.topic, qos)


def wait_for_subscribers(publishers: list, count: int, seconds: float) -> None:
    """Until each topic has `count` subscribers: what is published earlier is lost to those that come. SystemExit if they
    do not come."""
    deadline = time.monotonic() + seconds
    while missing := [p.topic_name for p in publishers if p.get_subscription_count() < count]:
        if time.monotonic() > deadline:
            sys.exit(f"not {count} subscribers within {seconds:g} s on {', '.join(missing)}: nothing was replayed")
        time.sleep(0.02)


def replay(node, path: Path, rate: float, subscribers: int) -> tuple[int, float]:
    """Publish every message once each topic has its subscribers; returns their number and the worst lateness in seconds."""
    with Reader(path) as bag:
        publishers = {connection.id: publisher(node, connection) for connection in bag.connections}
        wait_for_subscribers(list(publishers.values()), subscribers, DISCOVERY)
        started, first, worst, count = time.monotonic(), None, 0.0, 0
        for connection, stamp, raw in bag.messages():
            first = stamp if first is None else first
            wait = (stamp - first) / 1e9 / rate - (time.monotonic() - started)
            if wait > 0:
                time.sleep(wait)
            worst = max(worst, -wait)
            publishers[connection.id].publish(bytes(raw))
            count += 1
    return count, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", type=Path)
    parser.add_argument("--rate", type=float, default=1.0, help="speed, 1: as recorded")
    parser.add_argument("--subscribers", type=int, default=1, help="wait until each topic has so many")
    args = parser.parse_args()
    rclpy.init()
    node = rclpy.create_node("replay_bag")
    try:
        count, worst = replay(node, args.bag, args.rate, args.subscribers)
        print(f"replayed {count} messages, at most {1000 * worst:.1f} ms late", flush=True)
        time.sleep(0.5)  # let the last messages leave before the publishers go
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
