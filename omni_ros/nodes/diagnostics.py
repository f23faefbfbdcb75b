"""What the omni node knows about its own health, as a diagnostic_msgs status (REP-107)."""

import time
from collections import Counter
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from omni_ros.nodes.turn_worker import Outcome

RECENT = 10.0  # seconds for which a bad message keeps the status at WARN


@dataclass
class Health:
    turns: Counter = field(default_factory=Counter)  # by reason
    bad_messages: Counter = field(default_factory=Counter)  # by topic
    last_turn: Outcome | None = None
    last_error: str = ""
    configure_error: str = ""
    _bad_at: float = float("-inf")

    def bad_message(self, topic: str, reason: str) -> None:
        self.bad_messages[topic] += 1
        self.last_error = f"{topic}: {reason}"
        self._bad_at = time.monotonic()

    def turn_ended(self, outcome: Outcome) -> None:
        self.turns[outcome.reason] += 1
        self.last_turn = outcome
        self.last_error = outcome.error or self.last_error

    def status(self, name: str, state: str, rate_problem: str, facts: dict[str, object]) -> DiagnosticStatus:
        """ERROR: not configured because of an error, or the last turn failed. WARN: bad input, or a reply cut short."""
        turn = self.last_turn
        level, message = DiagnosticStatus.OK, state
        if time.monotonic() - self._bad_at < RECENT:
            level, message = DiagnosticStatus.WARN, self.last_error
        if rate_problem:
            level, message = DiagnosticStatus.WARN, rate_problem
        if turn is not None and turn.reason == "kv_cache_full":
            level, message = DiagnosticStatus.WARN, "the last reply was cut: KV cache full"
        if turn is not None and turn.error:
            level, message = DiagnosticStatus.ERROR, turn.error
        if self.configure_error:
            level, message = DiagnosticStatus.ERROR, self.configure_error
        values: dict[str, object] = {"state": state, **facts, "last error": self.last_error}
        values |= {f"turns {reason}": count for reason, count in self.turns.items()}
        values |= {f"bad messages {topic}": count for topic, count in self.bad_messages.items()}
        if turn is not None:
            values |= {"time to first text s": turn.first_text, "time to first audio s": turn.first_audio}
            values |= {f"pipeline {key}": value for key, value in turn.metrics.items()}
        pairs = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
        return DiagnosticStatus(level=level, name=name, hardware_id="omni_ros", message=message, values=pairs)


def _text(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
