"""`omni`: camera, microphone and text in; streamed text and speech out. A lifecycle node around a dialogue.

Callbacks only check and hand over: listening, answering and speaking happen on the dialogue's threads.
"""

import sys
import time
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import SetBool, Trigger

from omni_ros.dialogue.turn import describe
from omni_ros.nodes import heap, parameters
from omni_ros.nodes.bond import Bond
from omni_ros.nodes.configured import Configured
from omni_ros.nodes.diagnostics import LONGEST, Health
from omni_ros.nodes.inputs import PROBLEMS, Inputs
from omni_ros.nodes.lifecycle_main import run
from omni_ros.nodes.outputs import Outputs
from omni_ros.nodes.tools import RosTools
from omni_ros.nodes.transitions import DONE, attempt, refuse_what_is_not_possible
from omni_ros.pipeline.watchdog import Watchdog

CONFIGURING = 10.0  # times as long may a call of an engine take while the first ones compile and plan


class OmniNode(LifecycleNode):
    def __init__(self) -> None:
        super().__init__("omni")
        self._configured: Configured | None = None  # from configure to cleanup
        self._inputs: Inputs | None = None  # while active
        self._bond: Bond | None = None
        self._enabled = True
        parameters.declare(self, is_configured=lambda: self._configured is not None)
        self._health = Health()
        self._watchdog = Watchdog()
        self._outputs = Outputs(self, self._health)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(Trigger, "~/cancel", self._service(lambda request: self._cancel()))
        self.create_service(Trigger, "~/reset", self._service(lambda request: self._reset()))
        self.create_service(SetBool, "~/enable", self._service(lambda request: self._enable(request.data)))
        refuse_what_is_not_possible(self)
        self.add_post_set_parameters_callback(self._on_parameters)
        # A steady clock: diagnostics go on when simulated time stands still.
        self.create_timer(1.0, self._every_second, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def survived(self, error: Exception) -> None:
        """Something was raised by a callback, timer or service."""
        self._outputs.failed(error)

    def hung(self) -> bool:
        """Called every second from a thread of its own: whether a call of an engine does not return, so that only the end of
        the process helps. It was told then."""
        limit = self.get_parameter("engine_timeout").value * (1 if self._configured is not None else CONFIGURING)
        error = self._watchdog.look(time.monotonic(), limit)
        if error is None:
            return False
        try:
            self.get_logger().fatal(str(error))
            self._health.condition("engine", str(error), DiagnosticStatus.ERROR)
            if self._configured is not None:
                self._configured.dialogue.give_up(error)
            self._publish_diagnostics()
        except Exception as defect:  # noqa: BLE001 - the process has to end, whatever else is broken
            self.survived(defect)
        return True

    # ---- lifecycle ----------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return attempt(self, self._health, "configure", self._configure)

    def _configure(self) -> None:
        for text in parameters.unknown(self):
            self.get_logger().error(text)
        configured = Configured(self, self._outputs, open_tools=lambda path: RosTools(self, path))
        configured.dialogue.enable(self._enabled)
        self._configured = configured
        vad = configured.dialogue.facts()["vad"]
        self.get_logger().info(f"the engines are loaded and warm ({configured.load_seconds:.1f} s); vad: {vad}")
        self._judge("vad", configured.vad_problem)
        self._outputs.lifecycle("inactive")

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        done = attempt(self, self._health, "activate", self._activate)
        if done == DONE:
            done = super().on_activate(state)
            self._bond = Bond(self)
            self._outputs.lifecycle("")
        return done

    def _activate(self) -> None:
        assert self._configured is not None  # the state machine sees to it
        self._inputs = Inputs(self, self._configured.dialogue, self._outputs)
        self._outputs.quiet()
        self._judge_surroundings()

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        done = super().on_deactivate(state)
        self._outputs.lifecycle("inactive")
        return done

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._free()
        self._outputs.lifecycle("unconfigured")
        return DONE

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        self._free()
        self._outputs.lifecycle("finalized")
        return DONE

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.get_logger().error(f"a lifecycle transition from '{state.label}' failed; back to unconfigured")
        self._stop()
        return self.on_cleanup(state)

    def _stop(self) -> None:
        if self._bond is not None:
            self._bond.close()
            self._bond = None
        inputs, self._inputs = self._inputs, None
        if inputs is not None:
            inputs.close()
        if self._configured is not None:
            self._configured.dialogue.cancel()

    def _free(self) -> None:
        configured, self._configured = self._configured, None
        if configured is not None:
            configured.close()
        self._health.condition("vad", "")

    # ---- health -------------------------------------------------------------------------------------------------

    def _judge(self, condition: str, text: str) -> None:
        if self._health.condition(condition, text):
            self.get_logger().warning(text)

    def _judge_surroundings(self) -> None:
        """What may be wrong around the node for a while."""
        own = self.get_name(), self.get_namespace()
        twins = self.get_node_names_and_namespaces().count(own) - 1
        others = f"{twins} other node{'s' * (twins > 1)} of the name {self.get_fully_qualified_name()}"
        self._judge("twin", f"{others} may speak on the same topics" if twins > 0 else "")
        problems = self._inputs.problems() if self._inputs is not None else dict.fromkeys(PROBLEMS, "")
        for condition, text in problems.items():
            self._judge(condition, text)
        damage = self._configured.damage if self._configured is not None else ""
        if self._health.condition("damage", damage, DiagnosticStatus.ERROR):
            self.get_logger().error(damage[:LONGEST])

    def _every_second(self) -> None:
        self._publish_diagnostics()
        if self._outputs.at_rest:
            heap.give_back()

    def _publish_diagnostics(self) -> None:
        self._judge_surroundings()
        facts: dict[str, object] = {}
        if self._configured is not None:
            facts = self._configured.dialogue.facts() | {"engine files verified": self._configured.files_verified}
        if self._inputs is not None:
            facts["audio type"] = self._inputs.audio.type_name or "no publisher yet"
        name = f"{self.get_fully_qualified_name().lstrip('/')}: dialogue"
        msg = DiagnosticArray(status=[self._health.status(name, self._outputs.shown_state, facts)])
        msg.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(msg)

    # ---- services and parameters --------------------------------------------------------------------------------

    def _service(self, serve: Callable) -> Callable:
        """A callback that answers in any case: a caller must not wait for ever for a service that has raised."""

        def answer(request, response):
            try:
                response.success, response.message = serve(request)
            except Exception as error:  # noqa: BLE001 - as said
                self.survived(error)
                response.success, response.message = False, describe(error)[:LONGEST]
            return response

        return answer

    def _cancel(self) -> tuple[bool, str]:
        if self._configured is None or not self._configured.dialogue.cancel():
            return False, "there was nothing to stop"
        return True, "stopped"

    def _reset(self) -> tuple[bool, str]:
        if self._configured is None:
            return False, "the node is not configured"
        self._configured.dialogue.reset()
        self._health.forget_turn()
        return True, "the conversation is forgotten"

    def _enable(self, enabled: bool) -> tuple[bool, str]:
        self._enabled = enabled
        if self._configured is not None:
            self._configured.dialogue.enable(enabled)
        return True, "listening" if enabled else "ignoring microphone and prompts"

    def _on_parameters(self, _) -> None:
        if self._configured is not None:
            self._configured.dialogue.settings = parameters.settings(self)


def main(args: list[str] | None = None) -> int:
    return run(OmniNode, args)


if __name__ == "__main__":
    sys.exit(main())
