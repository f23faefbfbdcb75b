"""What the omni node knows about its own health, as a diagnostic_msgs status (REP-107)."""

import threading
import time
from collections import Counter

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from omni_ros.dialogue.latency import Latency
from omni_ros.dialogue.turn import Outcome

RECENT = 10.0  # seconds for which a bad message keeps the status at WARN, and a survived defect at ERROR
LONGEST = 400  # characters of a message or value: an error may quote what somebody sent
CUT_SHORT = {
    "length": "max_audio_length or the engines' --maxCodeLen is too short for it",
    "kv_cache_full": "the Talker's KV cache is full",
}


class Health:
    """Written by the node's and the dialogue's threads, read by the timer: everything under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: Counter[str] = Counter()  # by reason
        self._bad_messages: Counter[str] = Counter()  # by topic
        self._tools: Counter[str] = Counter()  # calls by how they ended
        self._defects = 0
        self._last_turn: Outcome | None = None
        self._last_error = ""
        self._configure_error = ""
        self._conditions: dict[str, tuple[bytes, str]] = {}  # what is wrong as long as it is wrong, and how bad that is
        self._bad = self._defect = ("", float("-inf"))  # the last of each kind, and when

    def bad_message(self, topic: str, reason: str) -> None:
        with self._lock:
            self._bad_messages[topic] += 1
            self._last_error = f"{topic}: {reason}"
            self._bad = self._last_error, time.monotonic()

    def tool_ended(self, how: str) -> None:
        with self._lock:
            self._tools[how] += 1

    def turn_ended(self, outcome: Outcome) -> None:
        with self._lock:
            self._turns[outcome.reason] += 1
            if outcome.reason != "dropped":
                self._last_turn = outcome
                self._last_error = outcome.error or self._last_error

    def forget_turn(self) -> None:
        """The conversation was reset: how its last turn went is of no more interest."""
        with self._lock:
            self._last_turn = None

    def defect(self, reason: str) -> None:
        """Something was raised that nobody expected, and was survived."""
        with self._lock:
            self._defects += 1
            self._last_error = reason
            self._defect = reason, time.monotonic()

    def configured(self, error: str = "") -> None:
        with self._lock:
            self._configure_error = error

    def condition(self, name: str, text: str, level: bytes = DiagnosticStatus.WARN) -> bool:
        """`text` says what is wrong, "" that it no longer is. True when this is news worth a log line."""
        with self._lock:
            before = self._conditions.pop(name, None)
            if text:
                self._conditions[name] = level, text
            return bool(text) and before is None

    def holds(self, name: str) -> bool:
        """Whether that condition was told and not taken back."""
        with self._lock:
            return name in self._conditions

    def status(self, name: str, state: str, facts: dict[str, object]) -> DiagnosticStatus:
        """ERROR: not configured because of an error, the last turn failed, a defect was survived, or a condition as bad as
        these. WARN: bad input, another condition, or a reply or its speech cut short."""
        with self._lock:
            level, message = self._judge(state)
            values: dict[str, object] = {"state": state, **facts, "last error": self._last_error, "defects": self._defects}
            values |= {f"turns {reason}": count for reason, count in self._turns.items()}
            values |= {f"tool calls {how}": count for how, count in self._tools.items()}
            values |= {f"bad messages {topic}": count for topic, count in self._bad_messages.items()}
            if (turn := self._last_turn) is not None:
                values |= {"time to first text s": turn.first_text, "time to first audio s": turn.first_audio}
                values |= {f"latency {key}": value for key, value in in_words(turn.latency).items()}
                values |= {"text ended by": turn.reason, "speech ended by": turn.audio_reason}
                values |= {f"pipeline {key}": value for key, value in turn.metrics.items()}
        pairs = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
        return DiagnosticStatus(level=level, name=name, hardware_id="omni_ros", message=_text(message), values=pairs)

    def _judge(self, state: str) -> tuple[bytes, str]:
        turn, now = self._last_turn, time.monotonic()
        if self._configure_error:
            return DiagnosticStatus.ERROR, self._configure_error
        if turn is not None and turn.error:
            return DiagnosticStatus.ERROR, turn.error
        if now - self._defect[1] < RECENT:
            return DiagnosticStatus.ERROR, f"survived a defect: {self._defect[0]}"
        if errors := [text for level, text in self._conditions.values() if level == DiagnosticStatus.ERROR]:
            return DiagnosticStatus.ERROR, "; ".join(errors)
        warnings = [self._bad[0]] if now - self._bad[1] < RECENT else []
        warnings += [text for _, text in self._conditions.values()]
        if turn is not None and turn.reason == "kv_cache_full":
            warnings.append("the last reply was cut: KV cache full")
        elif turn is not None and turn.audio_reason in CUT_SHORT:
            warnings.append(f"the last reply's speech was cut: {CUT_SHORT[turn.audio_reason]}")
        return (DiagnosticStatus.WARN, "; ".join(warnings)) if warnings else (DiagnosticStatus.OK, state)


def in_words(latency: Latency | None) -> dict[str, float]:
    """`end of turn s`: 0.55, ...; the stages that were reached."""
    return {f"{stage.replace('_', ' ')} s": seconds for stage, seconds in latency.reached().items()} if latency else {}


def latency_status(name: str, outcome: Outcome) -> DiagnosticStatus:
    """Topic `latency`: one answer, with the keys of /diagnostics."""
    pairs = [KeyValue(key=key, value=f"{value:.4f}") for key, value in in_words(outcome.latency).items()]
    level = DiagnosticStatus.ERROR if outcome.error else DiagnosticStatus.OK
    return DiagnosticStatus(level=level, name=name, hardware_id="omni_ros", message=outcome.reason, values=pairs)


def _text(value: object) -> str:
    if value is None:
        return "none"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
