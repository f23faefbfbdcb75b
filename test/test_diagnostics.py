"""The node's health, written by one thread and read by another."""

import threading

import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from omni_ros.dialogue.turn import Outcome
from omni_ros.nodes.diagnostics import RECENT, Health


def status(health: Health) -> DiagnosticStatus:
    return health.status("omni", "idle", {})


class Watched(str):
    """A name. While a diagnostic is made of it, `meanwhile` begins on another thread and is given time to end."""

    meanwhile: threading.Thread | None = None

    def __format__(self, spec: str) -> str:
        if self.meanwhile is not None and self.meanwhile.ident is None:
            self.meanwhile.start()
            self.meanwhile.join(0.2)
        return str(self)


@pytest.mark.parametrize(
    "write",
    [
        lambda health, name: health.turn_ended(Outcome(name)),
        lambda health, name: health.bad_message(name, "wrong"),
        lambda health, name: health.tool_ended(name),
    ],
)
def test_what_is_written_while_it_is_read_comes_after_it(write):
    """Before it was locked: RuntimeError, dictionary changed size during iteration."""
    health, name = Health(), Watched("first")
    write(health, name)
    name.meanwhile = threading.Thread(target=write, args=(health, "second"))
    assert not any("second" in pair.key for pair in status(health).values)
    name.meanwhile.join()
    assert any("second" in pair.key for pair in status(health).values)


def test_speech_cut_short_is_a_warning():
    health = Health()
    health.turn_ended(Outcome("stop", "stop"))
    assert status(health).level == DiagnosticStatus.OK
    health.turn_ended(Outcome("stop", "length"))
    assert status(health).level == DiagnosticStatus.WARN and "--maxCodeLen" in status(health).message
    health.turn_ended(Outcome("stop", "kv_cache_full"))
    assert "KV cache is full" in status(health).message
    health.turn_ended(Outcome("dropped"))  # a turn that was never begun says nothing about the last answer
    assert "KV cache is full" in status(health).message


def test_a_condition_is_there_as_long_as_it_holds():
    health = Health()
    assert health.condition("rate", "too fast") and not health.condition("rate", "too fast")  # news only once
    assert status(health).level == DiagnosticStatus.WARN and status(health).message == "too fast"
    assert not health.condition("rate", "")
    assert status(health).level == DiagnosticStatus.OK


def test_a_defect_is_an_error_for_a_while_and_counted_for_ever(monkeypatch):
    health = Health()
    health.defect("RuntimeError: broken")
    assert status(health).level == DiagnosticStatus.ERROR
    import time

    now = time.monotonic()
    monkeypatch.setattr("omni_ros.nodes.diagnostics.time.monotonic", lambda: now + RECENT + 1)
    assert status(health).level == DiagnosticStatus.OK
    assert {pair.key: pair.value for pair in status(health).values}["defects"] == "1"
