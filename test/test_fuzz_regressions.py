"""Every input that ever broke something, again; and the fuzzers themselves."""

import random
import subprocess
import sys
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
    "code,ended", [("import os; input(); os.abort()", "crash"), ("import time; input(); time.sleep(60)", "hang")]
)
def test_a_worker_that_dies_or_sleeps_is_noticed(monkeypatch, tmp_path, code, ended):
    process = subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    dying = run.Worker.__new__(run.Worker)
    dying.process, dying.tried, dying.first_rss = process, 1, 0.0
    assert dying.attempt(tmp_path / "case", seconds=1)["ended"] == ended
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
