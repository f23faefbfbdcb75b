"""Attack omni_ros with damaged and hostile input, and report what it does not survive.

    python -m fuzz.run --minutes 10 [--target sounds] [--seed 0] [--keep findings/]

Targets: sounds, pictures, videos (files), templates (chat templates), requests (on engines of a random checkpoint),
folders (damaged engine folders). Case n of a target depends on the seed and n only. Each is tried in a worker process; a
finding is a crash of it, a case that takes longer than --hang seconds, an error that is not an OmniError, a case that needs
more than 300 MB, or memory that a worker does not give back (50 MB over its life). Findings are written to --keep, and a
finding belongs into fuzz/regressions/TARGET/, which the tests replay. Exit status 1 when there are any.
"""

import argparse
import json
import random
import select
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fuzz.targets import ROOT, TARGETS, engines

PEAK_MB, GROWTH_MB, WARM = 300, 50, 100  # the first WARM cases of a worker load what is loaded once, and size its arenas


class Worker:
    def __init__(self, target: str):
        command = [sys.executable, "-m", "fuzz.worker", target]
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.tried, self.first_rss = 0, 0.0

    def attempt(self, path: Path, seconds: float) -> dict[str, Any]:
        """What fuzz.worker answers, or {"ended": "crash" | "hang"}; after those the worker is gone."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(f"{path}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"ended": "crash", "text": f"the worker ended with status {self.process.wait()} before the case"}
        grace = 60 if self.tried == 0 else 0  # imports, engines
        if not select.select([self.process.stdout], [], [], seconds + grace)[0]:
            self.close()
            return {"ended": "hang", "text": f"no answer within {seconds:g} s"}
        line = self.process.stdout.readline()
        if not line:
            return {"ended": "crash", "text": f"the worker ended with status {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        self.tried += 1
        if self.tried == WARM:
            self.first_rss = answer["rss_mb"]
        if answer["ended"] in ("taken", "refused") and answer["peak_mb"] > PEAK_MB and self.tried > 1:
            return {**answer, "ended": "memory", "text": f"{answer['peak_mb']:.0f} MB"}
        return answer

    def grown(self, rss: float) -> float:
        return rss - self.first_rss if self.tried > WARM else 0.0

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def fuzz(target: str, seconds: float, seed: int, hang: float, keep: Path) -> Counter[str]:
    """Try cases for that long; print and keep the findings. Counts of how the cases ended."""
    counts: Counter[str] = Counter()
    worker, rss, stop, number = Worker(target), 0.0, time.monotonic() + seconds, 0
    with TemporaryDirectory() as folder:
        while time.monotonic() < stop:
            path = Path(folder) / f"case_{number}"
            path.write_bytes(TARGETS[target].make(random.Random(f"{target} {seed} {number}")))
            answer = worker.attempt(path, hang)
            counts[answer["ended"]] += 1
            if answer["ended"] not in ("taken", "refused"):
                keep.mkdir(parents=True, exist_ok=True)
                kept = keep / f"{target}_{answer['ended']}_{seed}_{number}"
                kept.write_bytes(path.read_bytes())
                print(f"{answer['ended']}: {kept}\n{answer['text']}", flush=True)
            rss = answer.get("rss_mb", rss)
            if answer["ended"] in ("crash", "hang"):
                worker.close()
                worker = Worker(target)
            path.unlink()
            number += 1
    if worker.grown(rss) > GROWTH_MB:
        counts["growth"] += 1
        print(f"growth: {target}: {worker.grown(rss):.0f} MB over {worker.tried} cases")
    worker.close()
    print(f"{target}: {number} cases, {dict(counts)}, {worker.grown(rss):+.0f} MB after {worker.tried}", flush=True)
    return counts


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
    total = sum((fuzz(t, 60 * args.minutes, args.seed, args.hang, args.keep) for t in targets), Counter())
    return 1 if set(total) - {"taken", "refused"} else 0


if __name__ == "__main__":
    sys.exit(main())
