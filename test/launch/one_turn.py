"""A launch_testing file: the real launch file brings the node up, one typed turn is answered, Ctrl-C ends it with code 0.

test_launch.py runs it; by hand, where the package is installed: launch_test test/launch/one_turn.py engine_dir:=ENGINES
"""

import unittest
from collections.abc import Callable

import launch_testing
import launch_testing.asserts
import rclpy
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare
from launch_testing.actions import ReadyToTest
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

NAMESPACE = "launch_test"


def generate_test_description() -> LaunchDescription:
    file = PathJoinSubstitution([FindPackageShare("omni_ros"), "launch", "omni.launch.py"])
    arguments = {"engine_dir": LaunchConfiguration("engine_dir"), "namespace": NAMESPACE}
    return LaunchDescription(
        [
            DeclareLaunchArgument("engine_dir"),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(file), launch_arguments=arguments.items()),
            ReadyToTest(),
        ]
    )


class TestNode(unittest.TestCase):
    def setUp(self) -> None:
        rclpy.init()
        self.node = rclpy.create_node("tester", namespace=NAMESPACE)

    def tearDown(self) -> None:
        self.node.destroy_node()
        rclpy.shutdown()

    def spin(self, what: str, done: Callable[[], object], seconds: float) -> None:
        deadline = self.node.get_clock().now().nanoseconds + seconds * 1e9
        while not done():
            self.assertLess(self.node.get_clock().now().nanoseconds, deadline, f"{what} took more than {seconds} s")
            rclpy.spin_once(self.node, timeout_sec=0.1)

    def test_a_typed_turn_is_answered(self) -> None:
        states, responses = [], []
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.node.create_subscription(String, "state", lambda msg: states.append(msg.data), latched)
        self.node.create_subscription(String, "response", lambda msg: responses.append(msg.data), 10)
        prompt = self.node.create_publisher(String, "prompt", 10)
        self.spin("loading", lambda: "idle" in states and prompt.get_subscription_count(), 60)

        client = self.node.create_client(GetState, "omni/get_state")
        self.assertTrue(client.wait_for_service(10))
        future = client.call_async(GetState.Request())
        self.spin("get_state", future.done, 10)
        self.assertEqual(future.result().current_state.id, State.PRIMARY_STATE_ACTIVE)

        prompt.publish(String(data="hello"))
        self.spin("the answer", lambda: responses, 60)
        self.assertTrue(responses[0])


@launch_testing.post_shutdown_test()
class TestEnd(unittest.TestCase):
    """After launch has ended the node with SIGINT."""

    def test_exit_code(self, proc_info) -> None:
        launch_testing.asserts.assertExitCodes(proc_info)
