"""Every input that ever broke something, again; and the fuzzers themselves."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuzz import run, worker
from fuzz.targets import ROOT, TARGETS, Target, engines
from omni_ros.errors import InputError

REGRESSIONS = ROOT / "fuzz" / "regressions"


@pytest.mark.parametrize("target", TARGETS)
def test_what_once_broke(target):
    if TARGETS[target].needs_engines:
        engines()
    process = run.Worker(target)
    try:
        for path in sorted((REGRESSIONS / target).iterdir()):
            answer = process.attempt(path, seconds=60)
            assert answer["ended"] in ("taken", "refused"), f"{path}: {answer}"
    finally:
        process.close()


@pytest.mark.parametrize("target", TARGETS)
def test_a_case_depends_on_seed_and_number_only(target):
    cases = [TARGETS[target].make(random.Random(f"{target} 0 {n}")) for n in range(20)]
    assert cases == [TARGETS[target].make(random.Random(f"{target} 0 {n}")) for n in range(20)]
    assert len(set(cases)) > 10


def test_folders_of_regressions_are_targets():
    assert {path.name for path in REGRESSIONS.iterdir()} == set(TARGETS)


def fails_with(error: BaseException) -> Target:
    def attempt(path: Path) -> None:
        raise error

    return Target(lambda rng: b"", attempt)


@pytest.mark.parametrize("error,ended", [(InputError("no"), "refused"), (KeyError("x"), "untyped"), (SystemExit(1), "untyped")])
def test_how_a_case_ends(monkeypatch, tmp_path, error, ended):
    monkeypatch.setitem(worker.TARGETS, "sounds", fails_with(error))
    assert worker.attempt("sounds", tmp_path)["ended"] == ended


@pytest.mark.parametrize(
    "code,ended",
    [
        ("import os; input(); os.abort()", "crash"),
        ("import time; input(); time.sleep(60)", "hang"),
        ("input()\nwhile True: pass", "hang"),
    ],
)
def test_a_worker_that_dies_or_sleeps_is_noticed(monkeypatch, tmp_path, code, ended):
    process = subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    dying = run.Worker.__new__(run.Worker)
    dying.process, dying.tried = process, 1
    assert dying.attempt(tmp_path / "case", seconds=0.5)["ended"] == ended
    dying.close()


def test_a_finding_is_kept_and_ends_the_run_with_1(monkeypatch, tmp_path, capsys):
    """The case itself, under a name that says what it did."""

    class Broken(run.Worker):
        def attempt(self, path: Path, seconds: float) -> dict:
            return {"ended": "untyped", "text": "KeyError", "rss_mb": 1.0}

    monkeypatch.setattr(run, "Worker", Broken)
    arguments = ["--minutes", "0.001", "--target", "sounds", "--keep", str(tmp_path / "kept")]
    assert run.main(arguments) == 1
    kept = tmp_path / "kept" / "sounds_untyped_0_0"
    assert kept.read_bytes() == TARGETS["sounds"].make(random.Random("sounds 0 0"))
    assert "KeyError" in capsys.readouterr().out


@pytest.mark.parametrize("leak,found", [(20.0, True), (0.0, False)])
def test_growth_is_what_the_same_cases_need_more_the_second_time(monkeypatch, tmp_path, leak, found):
    """What is made once for the largest case so far is none: here, a megabyte for every new case."""
    seen: list[bytes] = []

    class Growing(run.Worker):
        def attempt(self, path: Path, seconds: float) -> dict:
            time.sleep(0.001)
            seen.append(path.read_bytes())
            return {"ended": "taken", "text": "", "rss_mb": len(set(seen)) + leak * len(seen)}

    monkeypatch.setattr(run, "Worker", Growing)
    counts = run.fuzz("sounds", 1.0, 0, 10, tmp_path)
    assert len(seen) > len(set(seen)) > 10
    assert counts["taken"] >= len(set(seen)) and (counts["growth"] == 1) is found


def test_a_busy_machine_is_no_hang(monkeypatch, tmp_path):
    """The clock may run ahead of the CPU time."""
    code = 'import time; input(); time.sleep(2); print(\'{"ended": "taken", "peak_mb": 0}\', flush=True); time.sleep(60)'
    process = subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    starved = run.Worker.__new__(run.Worker)
    starved.process, starved.tried = process, 1
    assert starved.attempt(tmp_path / "case", seconds=1)["ended"] == "taken"
    starved.close()
