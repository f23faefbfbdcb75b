"""The tools of a tools file (nodes/tools_file.py) as calls of ROS services, actions and topics."""

import json
from collections.abc import Callable
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import NameValidationException
from rclpy.lifecycle import LifecycleNode

from omni_ros.dialogue.tools import Done, Tool, error
from omni_ros.dialogue.turn import describe
from omni_ros.errors import InputError, ToolError
from omni_ros.nodes.interface_types import interface_type
from omni_ros.nodes.message_schema import as_json
from omni_ros.nodes.tools_file import KINDS, arguments_schema, filler, read_tools_file

TIMEOUTS = {"service": 10.0, "action": 120.0, "topic": 1.0}  # seconds
LOOK_EVERY = 0.5  # seconds between looks at whether the servers of running calls are still there
STATUS = {GoalStatus.STATUS_ABORTED: "aborted", GoalStatus.STATUS_CANCELED: "canceled"}


class RosTools:
    """The tools of a file, with clients and publishers on `node` from construction to `close`.

    Everything that talks to ROS runs on the node's executor. Raises InputError that names file, tool and fix.
    """

    def __init__(self, node: LifecycleNode, path: str) -> None:
        self._node = node
        self._running: list[tuple[_Call, Callable[[], bool], str]] = []  # whether its server is there, and the server's name
        self._undo: list[Callable[[], object]] = []
        try:
            self.tools = [self._tool(name, entry) for name, entry in read_tools_file(path).items()]
        except BaseException:
            self.close()
            raise
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        timer = node.create_timer(LOOK_EVERY, self._look, clock=clock)
        self._undo.append(lambda: node.destroy_timer(timer))

    def close(self) -> None:
        """On the executor's thread, or when that has ended: what runs is told to stop."""
        for call, *_ in self._running:
            call.stop()
        while self._undo:
            self._undo.pop()()

    def _tool(self, name: str, entry: dict[str, Any]) -> Tool:
        try:
            kind = next(kind for kind in KINDS if kind in entry)
            interface = interface_type(entry["type"], KINDS[kind])
            message = {"service": "Request", "action": "Goal"}.get(kind)
            request = getattr(interface, message) if message else interface
            parameters, fields = arguments_schema(request, entry.get("arguments") or {})
            make = filler(request, fields, entry.get("values") or {})
            begin = getattr(self, f"_{kind}")(entry[kind], interface, entry.get("wait", True))
        except (InputError, NameValidationException) as reason:
            raise InputError(f"tools_file: tool {name}: {reason}") from None

        def start(arguments: dict[str, Any], done: Done) -> Callable[[], None]:
            try:
                request = make(arguments)
            except InputError as reason:
                raise ToolError(str(reason)) from None
            return self._on_executor(begin, request, done)

        timeout = float(entry.get("timeout", TIMEOUTS[kind]))
        return Tool(name, entry["description"], parameters, start, entry.get("confirm", False), timeout)

    def _on_executor(self, begin: Callable[[Any, "_Call"], None], request: Any, done: Done) -> Callable[[], None]:
        """`begin` on the thread that also receives the answers: rclpy's action client loses one that comes too soon."""
        executor = self._node.executor
        if executor is None:
            raise ToolError("the node is not running")
        call = _Call(done)
        executor.create_task(call.attempt, lambda: begin(request, call) if call.open else None)
        return lambda: executor.create_task(call.stop)

    def _watch(self, call: "_Call", ready: Callable[[], bool], name: str) -> None:
        self._running.append((call, ready, name))

    def _look(self) -> None:
        self._running = [running for running in self._running if running[0].open]
        for call, ready, name in self._running:
            if not ready():
                call.end(error(f"{name} is gone: it may or may not have been done"), False)

    def _service(self, name: str, interface: Any, wait: bool) -> Callable[[Any, "_Call"], None]:
        if not wait:
            raise InputError("wait: false is for actions: a service always answers")
        client, name = self._node.create_client(interface, name), self._node.resolve_service_name(name)
        self._undo.append(lambda: self._node.destroy_client(client))

        def begin(request: Any, call: "_Call") -> None:
            if not client.service_is_ready():
                raise ToolError(f"not available: nobody offers the service {name}")
            future = client.call_async(request)
            self._watch(call, client.service_is_ready, name)
            call.on_stop = lambda: client.remove_pending_request(future)
            future.add_done_callback(lambda future: call.attempt(lambda: call.answer(future.result())))

        return begin

    def _action(self, name: str, interface: Any, wait: bool) -> Callable[[Any, "_Call"], None]:
        client = ActionClient(self._node, interface, name)
        self._undo.append(client.destroy)

        def begin(goal: Any, call: "_Call") -> None:
            if not client.server_is_ready():
                raise ToolError(f"not available: nobody offers the action {name}")
            self._watch(call, client.server_is_ready, name)
            sent = client.send_goal_async(goal)

            def accepted(handle: Any) -> None:
                if not handle.accepted:
                    call.end(error("the goal was rejected"), False)
                elif not call.open:  # it was stopped meanwhile
                    handle.cancel_goal_async()
                elif not wait:
                    call.end('{"accepted": true}', True)
                else:
                    call.on_stop = handle.cancel_goal_async
                    result = handle.get_result_async()
                    result.add_done_callback(lambda future: call.attempt(lambda: finished(future.result())))

            def finished(answer: Any) -> None:
                if answer.status == GoalStatus.STATUS_SUCCEEDED:
                    call.answer(answer.result)
                else:
                    call.end(error(f"the action was {STATUS.get(answer.status, 'lost')}"), False)

            sent.add_done_callback(lambda future: call.attempt(lambda: accepted(future.result())))

        return begin

    def _topic(self, name: str, interface: Any, wait: bool) -> Callable[[Any, "_Call"], None]:
        publisher = self._node.create_publisher(interface, name, 10)
        self._undo.append(lambda: self._node.destroy_publisher(publisher))

        def begin(message: Any, call: "_Call") -> None:
            if not publisher.get_subscription_count():
                raise ToolError(f"not available: nobody listens to the topic {publisher.topic_name}")
            publisher.publish(message)
            call.end('{"success": true}', True)

        return begin


class _Call:
    """One call that runs. Used on the executor's thread only."""

    def __init__(self, done: Done) -> None:
        self._done = done
        self.open = True
        self.on_stop: Callable[[], object] | None = None

    def attempt(self, step: Callable[[], object]) -> None:
        """A step of a call that is open, or was when it asked for something; whatever it raises costs this call only."""
        try:
            step()
        except Exception as reason:  # noqa: BLE001 - as said
            self.end(error(describe(reason)), False)

    def answer(self, message: Any) -> None:
        """The response of a service or the result of an action; a field `success` says whether it worked."""
        values = as_json(message)
        if "success" in values:
            values["success"] = values.pop("success")  # to the end, as in `error`
        self.end(json.dumps(values, ensure_ascii=False), values.get("success") is not False)

    def end(self, result: str, worked: bool) -> None:
        if self.open:
            self.open = False
            self._done(result, worked)

    def stop(self) -> None:
        if self.open:
            self.open = False
            self.attempt(self.on_stop or (lambda: None))
