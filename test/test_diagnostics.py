"""The node's health, written by one thread and read by another."""

import sys
import threading

from diagnostic_msgs.msg import DiagnosticStatus

from omni_ros.dialogue.turn import Outcome
from omni_ros.nodes.diagnostics import RECENT, Health


def status(health: Health) -> DiagnosticStatus:
    return health.status("omni", "idle", {})


def test_reading_while_it_is_written():
    """Before it was locked: RuntimeError, dictionary changed size during iteration."""
    health, failures, stop = Health(), [], threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            health.bad_message(f"topic {number % 5000}", "x")
            health.turn_ended(Outcome(f"reason {number % 5000}", metrics={str(number): number}))
            health.condition(f"c{number % 50}", "wrong" * (number % 2))
            number += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            try:
                status(health)
            except RuntimeError as error:
                failures.append(error)
    finally:
        stop.set()
        writer.join()
        sys.setswitchinterval(interval)
    assert failures == []


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
