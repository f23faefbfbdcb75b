"""What a robot offers its tools, in a process of its own: `python tool_server.py LOG`. Every call becomes a line of LOG."""

import json
import sys
import time
from pathlib import Path

import rclpy
from diagnostic_msgs.srv import AddDiagnostics
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger
from test_msgs.action import Fibonacci


class ToolServer(Node):
    def __init__(self, log: Path) -> None:
        super().__init__("tool_server")
        self._log = log.open("w")
        both = {"callback_group": ReentrantCallbackGroup()}
        self.create_service(Trigger, "wave", lambda q, r: self._answer(r, "wave"), **both)
        self.create_service(Trigger, "fail", lambda q, r: self._answer(r, "fail", success=False), **both)
        self.create_service(Trigger, "slow", lambda q, r: self._answer(r, "slow", seconds=8.0), **both)
        self.create_service(Trigger, "leave", self._leave, **both)
        self.create_service(SetBool, "lamp", lambda q, r: self._answer(r, "lamp", data=q.data), **both)
        self.create_service(AddDiagnostics, "go_to", lambda q, r: self._answer(r, "go_to", place=q.load_namespace), **both)
        self.create_subscription(Bool, "light", lambda msg: self._note("light", data=msg.data), 10, **both)
        cancel = {"cancel_callback": lambda goal: CancelResponse.ACCEPT}
        ActionServer(self, Fibonacci, "count", self._count, **cancel, **both)

    def _note(self, name: str, **what: object) -> None:
        self._log.write(json.dumps([name, what]) + "\n")
        self._log.flush()

    def _answer(self, response, name: str, success: bool = True, seconds: float = 0.0, **what: object):
        self._note(name, **what)
        time.sleep(seconds)
        response.success = success
        return response

    def _leave(self, request, response):
        """Begins, and is gone before it answers."""
        self._note("leave")
        self.destroy_node()
        rclpy.shutdown()
        return response

    def _count(self, goal) -> Fibonacci.Result:
        """Succeeds after `order` tenths of a second; below 0, never ends."""
        self._note("count", order=goal.request.order)
        until = time.monotonic() + goal.request.order / 10
        while rclpy.ok() and (goal.request.order < 0 or time.monotonic() < until):
            if goal.is_cancel_requested:
                self._note("cancelled")
                goal.canceled()
                return Fibonacci.Result()
            time.sleep(0.02)
        goal.succeed()
        return Fibonacci.Result(sequence=[1, 1, 2])


if __name__ == "__main__":
    rclpy.init()
    executor = MultiThreadedExecutor(4)
    executor.add_node(ToolServer(Path(sys.argv[1])))
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        sys.exit(0)
