"""Live with the omni node for a while: does anything grow?

    python -m bench.soak --minutes 30

Starts the node on tiny engines and talks to it over DDS from this process: typed and spoken turns, interruptions, and garbage on
every topic and service, in an order that --seed decides. Once a second it writes down the node's resident memory, threads and
open descriptors. Prints a table; writes soak.json and, where matplotlib is installed, soak.png into the output folder. Exit
status 1 when the node ended, left a turn unanswered, or something of it grew.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bench.soak_client import Client

ROOT = Path(__file__).parents[1]
START, TURN = 60, 60  # seconds that the node's start and one turn may take
ALLOWED = {"rss_mb": 50.0, "threads": 2.0, "descriptors": 4.0}  # from the second quarter of the time to the last
ABOVE_IDLE_MB, STAYS_MB = 300.0, 50.0  # under the attack, and after it
PARAMETERS = {
    "vad": "energy",
    "turn_detector": "silence",
    "audio_in_type": "std_msgs/msg/Int16MultiArray",
    "image_transport": "compressed",
    "max_generate_length": 12,
    "max_audio_length": 15,
    "threads": 1,
    "runaway_limit": 0,  # random weights do nothing but run away
}
MIX = {"typed": 5, "spoken": 2, "cancelled": 2, "interrupted": 2, "attacked": 3}  # how often each comes, of 14


class Watched:
    """The node's process, and what /proc says of it every second."""

    def __init__(self, output: Path, engines: Path):
        parameters = {**PARAMETERS, "engine_dir": engines}
        words = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", "omni_ros.nodes.omni_node", "--ros-args", "-r", "__ns:=/soak", *words]
        with (output / "soak_node.log").open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        self.started, self.samples, self.stop = time.monotonic(), [], threading.Event()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def sample(self) -> dict[str, float]:
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return {
            "seconds": time.monotonic() - self.started,
            "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
            "peak_mb": int(status["VmHWM"].split()[0]) / 1024,
            "threads": int(status["Threads"]),
            "descriptors": len(list((proc / "fd").iterdir())),
        }

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _watch(self) -> None:
        while not self.stop.wait(1.0):
            try:
                self.samples.append(self.sample())
            except (OSError, KeyError):  # it has ended, which is noticed elsewhere
                return

    def end(self) -> int:
        self.stop.set()
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(10)


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """By how much the median of the last quarter is above that of the second; the first is for what is made once."""
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    return {name: float(np.median([s[name] for s in last]) - np.median([s[name] for s in second])) for name in ALLOWED}


def problems(result: dict[str, Any]) -> list[str]:
    found = [f"{name} grew by {value:.1f}" for name, value in result["growth"].items() if value > ALLOWED[name]]
    if (code := result["exit"]) != 0:
        found.append(f"the node ended with {code}")
    if result["peak_above_idle_mb"] > ABOVE_IDLE_MB:
        found.append(f"memory rose {result['peak_above_idle_mb']:.0f} MB above idle")
    if result["stays_mb"] > STAYS_MB:
        found.append(f"{result['stays_mb']:.0f} MB above idle stay")
    if result["defects"]:
        found.append(f"{result['defects']} defects were survived: see soak_node.log")
    return found + result["unanswered"]


def soak(minutes: float, seed: int, output: Path, engines: Path) -> dict[str, Any]:
    os.environ.update(
        ROS_DOMAIN_ID=str(102 + os.getpid() % 100), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST", ROS_LOG_DIR=str(output)
    )
    from bench.soak_client import ATTACKS, Client

    rng, client = random.Random(seed), Client("soak")
    watched = Watched(output, engines)  # from here on somebody has to end it
    counts: Counter[str] = Counter()
    unanswered: list[str] = []
    try:
        client.wait(lambda: client.state == "idle" and client.connected, START, "state idle")
        for _ in range(5):
            client.typed(rng, TURN)
        client.latencies.clear()
        watched.forget_peak()
        idle = watched.sample()
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end and watched.process.poll() is None:
            kind = rng.choices(list(MIX), list(MIX.values()))[0]
            attack = rng.choice(list(ATTACKS)) if kind == "attacked" else ""
            try:
                if attack:
                    ATTACKS[attack](client, rng)
                    client.typed(rng, TURN)  # it still answers
                else:
                    getattr(client, kind)(rng, TURN)
            except TimeoutError as error:
                unanswered.append(f"{kind} {attack}: {error}")
            counts[attack or kind] += 1
        client.call("cancel")
        time.sleep(3)
        after, defects = watched.sample(), client.defects()
    finally:
        client.close()
        code = watched.end()
    return {
        "minutes": minutes,
        "idle": idle,
        "after": after,
        "peak_above_idle_mb": after["peak_mb"] - idle["rss_mb"],
        "stays_mb": after["rss_mb"] - idle["rss_mb"],
        "growth": growth(watched.samples),
        "turns": dict(counts),
        "unanswered": unanswered,
        "defects": defects,
        "exit": code,
        "latency_s": summary(client),
        "latencies": {name: [(at - watched.started, s) for at, s in v] for name, v in client.latencies.items()},
        "samples": watched.samples,
    }


def summary(client: "Client") -> dict[str, dict[str, float]]:
    """Of each kind of latency: how many, median, 99th percentile, longest."""
    seconds = {name: [s for _, s in v] for name, v in sorted(client.latencies.items())}
    return {
        name: {"n": len(v), "median": float(np.median(v)), "p99": float(np.quantile(v, 0.99)), "max": max(v)}
        for name, v in seconds.items()
    }


def table(result: dict[str, Any]) -> str:
    idle, after, grown = result["idle"], result["after"], result["growth"]
    lines = ["| | idle | after | second to last quarter |", "|---|---|---|---|"]
    lines += [f"| {name} | {idle[name]:.0f} | {after[name]:.0f} | {grown[name]:+.1f} |" for name in ALLOWED]
    lines += ["", "| latency in s | turns | median | 99 % | longest |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {row['n']} | {row['median']:.3f} | {row['p99']:.3f} | {row['max']:.3f} |"
        for name, row in result["latency_s"].items()
    ]
    turns = ", ".join(f"{name} {count}" for name, count in sorted(result["turns"].items()))
    memory = f"highest memory {result['peak_above_idle_mb']:.0f} MB above idle"
    return "\n".join([*lines, "", f"{result['minutes']:g} minutes, {memory}, {result['defects']} defects; {turns}"])


def plot(result: dict[str, Any], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    figure = Figure(figsize=(8, 8), layout="constrained")
    minutes = [s["seconds"] / 60 for s in result["samples"]]
    *rows, axes = figure.subplots(4, 1, sharex=True)
    for row, (name, label) in zip(rows, (("rss_mb", "RSS, MB"), ("threads", "threads"), ("descriptors", "descriptors"))):
        row.plot(minutes, [s[name] for s in result["samples"]], linewidth=0.8)
        row.set_ylabel(label)
        row.set_ylim(bottom=0)
    for name in ("typed, first speech", "spoken, from the end of the recording, first speech", "cancel until idle"):
        points = result["latencies"].get(name, [])
        axes.plot([at / 60 for at, _ in points], [s for _, s in points], ".", markersize=2, label=name)
    axes.set_ylabel("latency, s")
    axes.set_yscale("log")
    axes.legend(fontsize="x-small", markerscale=3)
    axes.set_xlabel("minutes")
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "bench_output")
    parser.add_argument("--engines", type=Path, help="default: engines of a tiny random checkpoint, made when needed")
    args = parser.parse_args(argv)
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if args.engines is None:
        from fuzz.targets import engines

        args.engines = engines()
    result = soak(args.minutes, args.seed, output, args.engines)
    (output / "soak.json").write_text(json.dumps(result))
    plot(result, output / "soak.png")
    print(table(result))
    found = problems(result)
    for text in found:
        print(f"PROBLEM: {text}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
