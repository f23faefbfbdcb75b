"""A lifecycle node that answers whatever transition it is asked for, and says what went wrong in one."""

from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

from omni_ros.dialogue.turn import describe
from omni_ros.nodes.diagnostics import LONGEST, Health

DONE, FAILED = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def refuse_what_is_not_possible(node: LifecycleNode) -> None:
    """For the service `change_state`: rclpy would raise, and leave the caller without an answer."""
    transition = node._service_change_state.callback

    def change_state(request, response):
        wanted = request.transition
        possible = {number: name for number, name, *_ in node._state_machine.available_transitions}
        if wanted.label not in possible.values() if wanted.label else wanted.id not in possible:
            state = node._state_machine.current_state[1]
            choices = ", ".join(f"{name} ({number})" for number, name in possible.items()) or "none"
            name = wanted.label or wanted.id
            node.get_logger().warning(f"transition {name} is refused: the node is {state}, where these are possible: {choices}")
            response.success = False
            return response
        return transition(request, response)

    node._service_change_state.callback = change_state


def attempt(node: LifecycleNode, health: Health, what: str, step: Callable[[], None]) -> TransitionCallbackReturn:
    """rclpy drops what a transition raises without a word."""
    try:
        step()
    except Exception as error:  # noqa: BLE001 - as said
        health.configured(describe(error))
        node.get_logger().fatal(f"cannot {what}: {describe(error)[:LONGEST]}")
        return FAILED
    health.configured()
    return DONE
