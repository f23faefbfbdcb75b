"""A robot that does what its answer says: the head turns to the side that the omni node speaks of.

    ros2 launch omni_ros omni.launch.py engine_dir:=ENGINES        # in one terminal
    python3 examples/act_on_response.py                            # in another: listens to `response`, publishes `head_yaw`

What a model writes is not to be trusted with more than a fixed list of harmless actions.
"""

import re
import signal
from contextlib import suppress

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Float64, String

YAW = {"left": 0.6, "right": -0.6, "ahead": 0.0}  # radians, positive to the left (REP 103)


class ActOnResponse(Node):
    def __init__(self) -> None:
        super().__init__("act_on_response")
        self.head_yaw = self.create_publisher(Float64, "head_yaw", 10)
        # `response` is the whole answer, once; `response_stream` has its pieces as they are written.
        self.create_subscription(String, "response", self.act, 10)

    def act(self, response: String) -> None:
        for word in re.findall(r"\w+", response.data.lower()):
            if word in YAW:
                self.head_yaw.publish(Float64(data=YAW[word]))
                return


def main() -> None:
    # rclpy's own signal handlers close the context while spin uses it, which now and then ends in an error instead of an end.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    executor = SingleThreadedExecutor()
    executor.add_node(ActOnResponse())
    with suppress(KeyboardInterrupt):
        while True:
            executor.spin_once(timeout_sec=0.2)  # Python hears a signal between two of them
    rclpy.shutdown()


if __name__ == "__main__":
    main()
