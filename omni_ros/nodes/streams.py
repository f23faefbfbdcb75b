"""Topics that never pause: what comes on them is taken on a thread of its own."""

import threading
from collections.abc import Callable

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from omni_ros.nodes.messages import shown

TOGETHER = 0.1  # seconds: less than the voice that begins an utterance lasts


class Streams:
    """The subscriptions of microphone and camera, from `subscribe` to `close`. Callbacks are called one after another.

    Before it waits for a message and again after it, rclpy's executor makes a wait set of all that a node has. With fifty
    messages of a microphone and thirty of a camera a second, that was most of what the idle node took. The wait set here
    has nothing but the streams; their QoS events would wake the executor for every message, so `problem` is to be asked. And
    while nobody speaks, what comes within TOGETHER is taken at once: each waking costs more than what there is to do.
    """

    def __init__(self, node: Node, at_rest: Callable[[], bool], survived: Callable[[Exception], None]) -> None:
        self._node = node
        self._at_rest = at_rest  # whether messages may come together
        self._survived = survived  # is told what a callback raises
        self._group = _TakenElsewhere()
        self._subscriptions: list[Subscription] = []  # never changed in place
        self._closed = threading.Event()
        self._changed = GuardCondition(None, None, context=node.context)
        self._thread = threading.Thread(target=self._run, name="streams", daemon=True)
        self._thread.start()

    def subscribe(self, kind: type, topic: str, receive: Callable, qos: QoSProfile) -> None:
        """`receive` as of Node.create_subscription, but no coroutine. Called by the thread that calls `close`."""
        options = QoSOverridingOptions.with_default_policies()
        subscription = self._node.create_subscription(
            kind,
            topic,
            receive,
            qos,
            callback_group=self._group,
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
            qos_overriding_options=options,
        )
        self._subscriptions = [*self._subscriptions, subscription]
        self._changed.trigger()

    def problem(self) -> str:
        """Who is not heard because it offers other QoS than is asked for; "" while there is nobody."""
        for subscription in self._subscriptions:
            for publisher in self._node.get_publishers_info_by_topic(subscription.topic_name):
                compatibility, reason = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
                if compatibility == QoSCompatibility.ERROR:
                    why = reason.removeprefix("ERROR: ").rstrip(";")
                    return f"nothing arrives from {shown(publisher.node_name)} on {subscription.topic_name}: {why}"
        return ""

    def close(self) -> None:
        """No callback is called any more when this returns."""
        self._closed.set()
        self._changed.trigger()
        self._thread.join()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._changed.destroy()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._wait_and_take(self._subscriptions)
            except Exception as error:  # noqa: BLE001 - of any callback, and of a context that was shut down
                self._survived(error)
                self._closed.wait(0.01)  # should it never get better

    def _wait_and_take(self, subscriptions: list[Subscription]) -> None:
        """Until `subscriptions` are no longer those to be served."""
        ready = rclpy_implementation.WaitSet(len(subscriptions), 1, 0, 0, 0, 0, self._node.context.handle)
        while subscriptions is self._subscriptions and not self._closed.is_set():
            ready.clear_entities()
            for subscription in subscriptions:
                ready.add_subscription(subscription.handle)
            ready.add_guard_condition(self._changed.handle)
            ready.wait(-1)
            pointers = ready.get_ready_entities("subscription")
            for subscription in subscriptions:
                if subscription.handle.pointer in pointers:
                    _take_waiting(subscription)
            if self._at_rest():
                self._closed.wait(TOGETHER)


class _TakenElsewhere(ReentrantCallbackGroup):
    """Keeps subscriptions out of the executor's wait set."""

    def can_execute(self, entity: object) -> bool:
        return False


def _take_waiting(subscription: Subscription) -> None:
    """No more than the queue holds: others must have their turn when messages come without end."""
    for _ in range(subscription.qos_profile.depth):
        taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)  # message, its info
        if taken is None:
            return
        only_message = subscription._callback_type is Subscription.CallbackType.MessageOnly
        subscription.callback(*taken[: 1 if only_message else 2])
