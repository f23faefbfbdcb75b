"""Latencies of many answers: as a bag's `latency` topic has them, in numbers, and as a plot."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from omni_ros.dialogue.latency import STAGES
from omni_ros.errors import InputError
from omni_ros.replay.bag import Bag

PERCENTILES = (50, 90, 99)
Latencies = Sequence[dict[str, float]]  # of each answer: stage -> seconds since the user's last sound
_STAGE_OF = {f"{stage.replace('_', ' ')} s": stage for stage in STAGES}  # as nodes/diagnostics.py writes them


def recorded(bag: Bag) -> list[dict[str, float]]:
    """What the robot measured while the bag was recorded; empty without the topic."""
    found = []
    for arrival in bag.arrivals("latency"):
        for status in arrival.message.status:
            try:
                values = {_STAGE_OF[pair.key]: float(pair.value) for pair in status.values if pair.key in _STAGE_OF}
            except ValueError as error:
                raise InputError(f"{bag.path}: {bag.topics['latency']} has a latency that is no number ({error})") from error
            if values:
                found.append(values)
    return found


def percentiles(latencies: Latencies) -> dict[str, dict[str, float]]:
    """Stage -> p50, p90, p99, max and the number of answers that reached it."""
    table = {}
    for stage in STAGES:
        if values := [answer[stage] for answer in latencies if stage in answer]:
            row = {f"p{p}": round(float(np.percentile(values, p)), 4) for p in PERCENTILES}
            table[stage] = {**row, "max": round(max(values), 4), "answers": len(values)}
    return table


def in_lines(table: dict[str, dict[str, float]], before: dict[str, dict[str, float]] | None = None) -> list[str]:
    """The table for a terminal; `before` is an earlier run's, whose medians stand beside it."""
    columns = [*(f"p{p}" for p in PERCENTILES), "max"]
    lines = [f"{'seconds since the last sound':<30}" + "".join(f"{c:>8}" for c in columns) + f"{'answers':>9}"]
    lines[0] += f"{'p50 before':>12}" * bool(before)
    for stage, row in table.items():
        line = f"{stage.replace('_', ' '):<30}" + "".join(f"{row[c]:8.3f}" for c in columns) + f"{row['answers']:9d}"
        earlier = (before or {}).get(stage)
        lines.append(line + (f"{earlier['p50']:12.3f}" if earlier else ""))
    return lines


def plot(latencies: Latencies, title: str, path: Path) -> None:
    """Bars of each answer, coloured by the stage that the time led to, above the percentiles of each stage."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = {stage: f"C{number}" for number, stage in enumerate(STAGES)}
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    bars, steps = figure.subplots(2, 1, height_ratios=(3, 2))
    for number, answer in enumerate(latencies, 1):
        at = 0.0
        # In the order of time: an answer that was begun early has its first stages before the end of the turn.
        for stage, seconds in sorted(answer.items(), key=lambda item: item[1]):
            bars.bar(number, max(0.0, seconds - at), bottom=at, color=colours[stage], width=0.8)
            at = max(at, seconds)
    for stage in STAGES:
        bars.bar(0, 0, color=colours[stage], label=f"until {stage.replace('_', ' ')}")
    bars.set_xlim(0.4, len(latencies) + 0.6)
    bars.set_ylabel("seconds since the last sound")
    bars.set_xlabel("answer")
    bars.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    bars.set_title(title, loc="left")
    table = percentiles(latencies)
    for number, name in enumerate([*(f"p{p}" for p in PERCENTILES), "max"]):
        places = np.arange(len(table)) + 0.2 * (number - 1.5)
        steps.bar(places, [row[name] for row in table.values()], width=0.18, label=name, color=str(0.75 - 0.22 * number))
    steps.set_xticks(range(len(table)), [stage.replace("_", " ") for stage in table])
    steps.set_ylabel("seconds")
    steps.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, dpi=100, format="png")
