"""What microphone and camera send is taken on a thread of its own, over real DDS."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import threading
import time
from collections.abc import Callable

import pytest
from omni_process import ros, wait  # noqa: F401 - one is a fixture
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

from omni_ros.nodes.streams import Streams

QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)


@pytest.fixture
def node(ros):
    node = Node("streams")
    yield node
    node.destroy_node()


def publish(node: Node, streams: Streams, receive: Callable, count: int) -> None:
    """`count` messages of "0", "1", ..., 20 ms apart."""
    streams.subscribe(String, "stream", receive, QOS)
    publisher = node.create_publisher(String, "stream", QOS)
    wait(lambda: publisher.get_subscription_count() > 0, 20)
    for number in range(count):
        publisher.publish(String(data=str(number)))
        time.sleep(0.02)
    node.destroy_publisher(publisher)


def test_messages_are_taken_in_order_and_not_by_the_executor(node):
    executor, seen, problems = SingleThreadedExecutor(), [], []
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin)
    spinning.start()
    streams = Streams(node, lambda: False, problems.append)

    def receive(msg: String, info: dict) -> None:
        seen.append((msg.data, info["source_timestamp"] > 0, threading.current_thread().name))
        if msg.data == "3":
            raise RuntimeError("3 is broken")

    publish(node, streams, receive, 10)
    wait(lambda: len(seen) == 10, 5)
    assert seen == [(str(n), True, "streams") for n in range(10)]
    assert list(map(str, problems)) == ["3 is broken"]
    streams.close()
    executor.shutdown()
    spinning.join()
    assert "streams" not in {thread.name for thread in threading.enumerate()} and not list(node.subscriptions)


def test_at_rest_messages_come_together_and_none_is_lost(node):
    seen: list[tuple[str, float]] = []
    streams = Streams(node, lambda: True, lambda error: None)
    publish(node, streams, lambda msg: seen.append((msg.data, time.monotonic())), 50)
    wait(lambda: len(seen) == 50, 5)
    streams.close()
    assert [data for data, _ in seen] == list(map(str, range(50)))
    alone = sum(later - earlier > 0.01 for (_, earlier), (_, later) in zip(seen, seen[1:]))  # else all but the first
    assert alone <= 25


def test_nothing_comes_after_close(node):
    seen: list[str] = []
    streams = Streams(node, lambda: False, lambda error: None)
    publish(node, streams, lambda msg: seen.append(msg.data), 1)
    publisher = node.create_publisher(String, "stream", QOS)
    wait(lambda: publisher.get_subscription_count() > 0, 20)
    streams.close()
    count = len(seen)
    publisher.publish(String(data="too late"))
    time.sleep(0.2)
    assert len(seen) == count
    node.destroy_publisher(publisher)
