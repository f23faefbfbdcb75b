"""The main function of a lifecycle node's executable."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.signals import SignalHandlerOptions

from omni_ros.errors import OmniError
from omni_ros.nodes import heap, middleware

# Seconds that the node is given to end after a signal. Loading and prefill cannot be interrupted, and nothing is lost with
# them, so the process then ends without them: a supervisor waits for two seconds at most.
END_WITHIN = 1.3


def run(make_node: Callable[[], LifecycleNode], args: list[str] | None = None) -> int:
    """Spin until SIGINT or SIGTERM and return the exit code: 1 when the node cannot be made, when parameter `autostart` is true
    and it cannot be configured and activated, or when it says that it is `hung`.

    The node lives on a thread of its own, because Python hears a signal only on the main thread and only between two calls
    into C, and loading engines is one long call. The handlers are ours, because rclpy's close the context at once, under
    threads that still have to publish.
    """
    # The interpreter's default lets a busy stage keep the others from publishing for 5 ms at a time.
    sys.setswitchinterval(5e-4)
    heap.settle()
    middleware.settle()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # what counts is that it writes to the pipe
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    life = _Life(make_node, wake)
    while not life.ended.is_set() and not select.select([woken], [], [], 1.0)[0]:
        if life.hung():
            break
    life.end(END_WITHIN)
    if threading.active_count() > 1:
        # A long step is still computing. A normal exit would destroy what it computes with under its feet.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(life.code)
    return life.code


class _Life:
    """One node from its making to its end, on a thread."""

    def __init__(self, make_node: Callable[[], LifecycleNode], wake: int) -> None:
        self._make_node = make_node
        self._wake = wake
        self._node: LifecycleNode | None = None
        self._executor: SingleThreadedExecutor | None = None
        self._stop = threading.Event()
        self.ended = threading.Event()
        self.code = 0
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)
        self._thread.start()

    def hung(self) -> bool:
        """Whether the node cannot go on, nor be waited for."""
        if self._node is None or not self._node.hung():
            return False
        self.code = 1
        return True

    def end(self, timeout: float) -> None:
        """Wait until the node has ended, `timeout` seconds at most."""
        self._stop.set()
        if (executor := self._executor) is not None:  # the node's thread may end just now, too
            executor.create_task(lambda: None)  # `wake` alone does not end its wait
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._live()
        except OmniError as error:
            self.code = 1
            get_logger("omni_ros").fatal(str(error))
        except BaseException:
            self.code = 1
            raise
        finally:
            rclpy.try_shutdown()
            self.ended.set()
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake, b"\0")

    def _live(self) -> None:
        node = self._node = self._make_node()
        executor = self._executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            if node.get_parameter("autostart").value and not _start(node):
                self.code = 1
                return
            while not self._stop.is_set():
                try:
                    executor.spin_once()
                except (ExternalShutdownException, ShutdownException):
                    return
                except Exception as error:  # noqa: BLE001 - of any callback, timer or service
                    node.survived(error)
                    self._stop.wait(0.01)  # should it never get better
        finally:
            self._node = self._executor = None
            node.on_shutdown(None)
            executor.shutdown()
            node.destroy_node()


def _start(node: LifecycleNode) -> bool:
    done = TransitionCallbackReturn.SUCCESS
    return node.trigger_configure() == done and node.trigger_activate() == done
