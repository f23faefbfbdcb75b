"""The main function of a lifecycle node's executable."""

import os
import signal
import sys
import threading
from collections.abc import Callable

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

WAKE_EVERY = 0.1  # seconds: Python sees a signal only between two waits for messages


def run(make_node: Callable[[], LifecycleNode], args: list[str] | None = None) -> int:
    """Spin until SIGINT or SIGTERM and return the exit code: 1 when parameter `autostart` is true and the node cannot
    be configured and activated.

    The signal handlers are our own: rclpy's close the context at once, under threads that still have to publish.
    """
    # The interpreter's default lets a busy stage keep the others from publishing for 5 ms at a time.
    sys.setswitchinterval(5e-4)
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    node = make_node()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    code = 0
    try:
        if node.get_parameter("autostart").value and not _start(node):
            code = 1
            stop.set()
        while not stop.is_set():
            executor.spin_once(timeout_sec=WAKE_EVERY)
    finally:
        node.on_shutdown(None)
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    if threading.active_count() > 1:
        # A long step (the prefill of a large prompt) is still computing. Nothing is left to save, and a normal exit
        # would destroy what it computes with under its feet.
        os._exit(code)
    return code


def _start(node: LifecycleNode) -> bool:
    done = TransitionCallbackReturn.SUCCESS
    return node.trigger_configure() == done and node.trigger_activate() == done
