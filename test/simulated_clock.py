"""The clock of tests that take no time: a dialogue's own, under the name by which they import it."""

from omni_ros.dialogue.simulated_clock import SimulatedClock

__all__ = ["SimulatedClock"]
