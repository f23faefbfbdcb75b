"""What the microphone and the loudspeaker node have in common: lifecycle, parameters, diagnostics."""

import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from omni_ros.dialogue.turn import describe
from omni_ros.nodes import parameters
from omni_ros.nodes.bond import Bond
from omni_ros.nodes.diagnostics import LONGEST, RECENT, Health
from omni_ros.nodes.parameters import Parameter
from omni_ros.nodes.transitions import DONE, attempt, refuse_what_is_not_possible


class DeviceNode(LifecycleNode):
    """A subclass has `check()`, which raises what keeps it from being configured, `start`, `stop`, `facts` and `conditions`."""

    def __init__(self, name: str, table: dict[str, Parameter]) -> None:
        super().__init__(name)
        self._table = table
        self._in_use = False
        self._bond: Bond | None = None  # while active
        self._counted: dict[str, tuple[int, float]] = {}  # irregularities: how many, and when the last was noticed
        self.health = Health()
        parameters.declare(self, is_configured=lambda: self._in_use, table=table)
        refuse_what_is_not_possible(self)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A steady clock: diagnostics go on when simulated time stands still.
        self.create_timer(1.0, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.state = "unconfigured"

    def value(self, name: str):
        return self.get_parameter(name).value

    def survived(self, error: Exception) -> None:
        """Something was raised by a callback, timer or thread."""
        self.health.defect(describe(error))
        self.get_logger().error(f"survived a defect: {describe(error)[:LONGEST]}")

    def hung(self) -> bool:
        """As OmniNode's. A device is never waited for."""
        return False

    def bad(self, topic: str, reason: str) -> None:
        """A message that cannot be used."""
        self.health.bad_message(topic, reason)
        self.get_logger().warning(f"{topic}: {reason[:LONGEST]}", throttle_duration_sec=5.0)

    # ---- lifecycle ----------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        def configure() -> None:
            for text in parameters.unknown(self, self._table):
                self.get_logger().error(text)
            self.check()
            self._in_use, self.state = True, "inactive"

        return attempt(self, self.health, "configure", configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        done = attempt(self, self.health, "activate", self.start)
        if done == DONE:
            self.state = "active"
            done = super().on_activate(state)
            self._bond = Bond(self)
        return done

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end()
        self.state = "inactive"
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._in_use, self.state = False, "unconfigured"
        return DONE

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end()
        self._in_use, self.state = False, "finalized"
        return DONE

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.get_logger().error(f"a lifecycle transition from '{state.label}' failed; back to unconfigured")
        self._end()
        return self.on_cleanup(state)

    def _end(self) -> None:
        if self._bond is not None:
            self._bond.close()
            self._bond = None
        self.stop()

    # ---- health -------------------------------------------------------------------------------------------------

    def judge(self, condition: str, text: str, level: bytes = DiagnosticStatus.WARN) -> None:
        known = self.health.holds(condition)
        if self.health.condition(condition, text, level):
            self.get_logger().warning(text[:LONGEST])
        elif known and not text:
            self.get_logger().info(f"{condition}: all right again")

    def rising(self, what: str, count: object) -> str:
        """`what` as a condition while its count has risen in the last seconds, else ""."""
        before, at = self._counted.get(what, (0, float("-inf")))
        if int(count) > before:  # type: ignore[call-overload]
            at = time.monotonic()
        self._counted[what] = int(count), at  # type: ignore[call-overload]
        return f"{what}: {count}" if time.monotonic() - at < RECENT else ""

    def _publish_diagnostics(self) -> None:
        for condition, (text, level) in self.conditions().items():
            self.judge(condition, text, level)
        name = f"{self.get_fully_qualified_name().lstrip('/')}: device"
        msg = DiagnosticArray(status=[self.health.status(name, self.state, self.facts())])
        msg.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(msg)
