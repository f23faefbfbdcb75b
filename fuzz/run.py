"""Attack omni_ros with damaged and hostile input, and report what it does not survive.

    python -m fuzz.run --minutes 10 [--target sounds] [--seed 0] [--keep findings/]

Targets: sounds, pictures, videos (files), templates (chat templates), tool_calls (replies of a model), requests (on engines of
a random checkpoint), folders (damaged engine folders). As many of them at a time as there are cores. Case n of a target depends
on the seed and n only. Each is tried in a worker process; a finding is a crash of it, a case that takes more than --hang
seconds of CPU time or six times that on the clock, an error that is not an OmniError, a case that needs more than 300 MB, or
growth: in the last two fifths of its time a worker gets the same cases again, and whatever is made once or fits itself to them
(heaps that glibc gives to threads, caches) has done so by then, so its memory may not rise by 50 MB. Findings are written to
--keep, and a finding belongs into fuzz/regressions/TARGET/, which the tests replay. Exit status 1 when there are any.
"""

import argparse
import json
import os
import random
import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fuzz.targets import ROOT, TARGETS, engines

PEAK_MB, GROWTH_MB = 300, 50
NEW = 0.6  # this share of the time is for new cases, the rest for the same ones again
STARVED = 6  # on a busy machine the clock runs ahead of the CPU time, by no more than this
TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    def __init__(self, target: str):
        command = [sys.executable, "-m", "fuzz.worker", target]
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.tried = 0

    def attempt(self, path: Path, seconds: float) -> dict[str, Any]:
        """What fuzz.worker answers, or {"ended": "crash" | "hang"}; after those the worker is gone."""
        assert self.process.stdin and self.process.stdout
        began, used = time.monotonic(), self.cpu_seconds()
        try:
            self.process.stdin.write(f"{path}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"ended": "crash", "text": f"the worker ended with status {self.process.wait()} before the case"}
        grace = 60 if self.tried == 0 else 0  # imports, engines
        while not select.select([self.process.stdout], [], [], 0.5)[0]:
            clock, cpu = time.monotonic() - began, self.cpu_seconds() - used
            if cpu > seconds + grace or clock > STARVED * seconds + grace:
                self.close()
                return {"ended": "hang", "text": f"no answer after {cpu:.0f} s of CPU time, {clock:.0f} s on the clock"}
        line = self.process.stdout.readline()
        if not line:
            return {"ended": "crash", "text": f"the worker ended with status {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        self.tried += 1
        if answer["ended"] in ("taken", "refused") and answer["peak_mb"] > PEAK_MB and self.tried > 1:
            return {**answer, "ended": "memory", "text": f"{answer['peak_mb']:.0f} MB"}
        return answer

    def cpu_seconds(self) -> float:
        """Of the worker and of its children that have ended."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def fuzz(target: str, seconds: float, seed: int, hang: float, keep: Path) -> Counter[str]:
    """Try cases for that long; print and keep the findings. Counts of how the cases ended."""
    counts: Counter[str] = Counter()
    worker, number, began = Worker(target), 0, time.monotonic()
    tried: list[int] = []  # cases that this worker has survived
    again: list[float] = []  # its memory after each of them, the second time and later
    with TemporaryDirectory() as folder:
        while (elapsed := time.monotonic() - began) < seconds:
            new = elapsed < NEW * seconds or not tried
            case = number if new else tried[len(again) % len(tried)]
            path = Path(folder) / f"case_{case}"
            path.write_bytes(TARGETS[target].make(random.Random(f"{target} {seed} {case}")))
            answer = worker.attempt(path, hang)
            counts[answer["ended"]] += new
            if answer["ended"] not in ("taken", "refused"):
                counts[answer["ended"]] += not new  # it is a finding the second time, too
                keep.mkdir(parents=True, exist_ok=True)
                kept = keep / f"{target}_{answer['ended']}_{seed}_{case}"
                kept.write_bytes(path.read_bytes())
                print(f"{answer['ended']}: {kept}\n{answer['text']}", flush=True)
            if answer["ended"] in ("crash", "hang"):
                worker.close()
                worker, tried, again = Worker(target), [], []
            elif new:
                tried.append(case)
            else:
                again.append(answer["rss_mb"])
            path.unlink()
            number += new
    worker.close()
    grown = growth(again)
    if grown > GROWTH_MB:
        counts["growth"] += 1
        print(f"growth: {target}: {grown:.0f} MB while cases were tried again")
    print(f"{target}: {number} cases, {dict(counts)}, {grown:+.0f} MB in {len(again)} cases tried again", flush=True)
    return counts


def growth(again: list[float]) -> float:
    """By how much the median of the last quarter is above that of the first, MB."""
    quarter = len(again) // 4
    return statistics.median(again[-quarter:]) - statistics.median(again[:quarter]) if quarter else 0.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    parser.add_argument("--target", choices=TARGETS, action="append", help="may be given more than once; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hang", type=float, default=10.0, help="seconds that a case may take")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_findings"), help="folder for the cases that were findings")
    args = parser.parse_args(argv)
    targets = args.target or list(TARGETS)
    if any(TARGETS[t].needs_engines for t in targets):
        engines()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a worker process keeps one core busy
        ended = pool.map(lambda target: fuzz(target, 60 * args.minutes, args.seed, args.hang, args.keep), targets)
        total = sum(ended, Counter())
    return 1 if set(total) - {"taken", "refused"} else 0


if __name__ == "__main__":
    sys.exit(main())
