"""What a benchmark measured: one row per number, as text, as JSON and as a page such as docs/benchmarks.md."""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

INTRODUCTION = """\
Written by `{command}`; `make bench` prints the same numbers. Ratios compare things measured in turn within one run,
so that other load on the machine falls on both sides. The checkpoint is `offline.make_checkpoint --size small`: 180 M
random parameters, so its words mean nothing, and its accuracy figures are no guide to a trained model's.
The 30B model's dimensions on an NVIDIA GPU: [benchmarks_gpu.md](benchmarks_gpu.md)."""
PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-bindings",
    "torch",
    "transformers",
    "rclpy",
    "ros-rclpy",
)  # a ROS installation's and PyPI's


@dataclass(frozen=True)
class Row:
    """`goal` is a bound on `value`: (">=", 1.4) or ("<=", 0.25); None for a number without one."""

    name: str
    value: float
    unit: str = ""
    goal: tuple[str, float] | None = None

    @property
    def mark(self) -> str:
        if self.goal is None:
            return ""
        sign, bound = self.goal
        return "PASS" if (self.value >= bound if sign == ">=" else self.value <= bound) else "MISS"


@dataclass(frozen=True)
class Part:
    """One benchmark: its rows, how they were measured (a sentence or two), and everything else worth keeping."""

    title: str
    method: str
    rows: list[Row]
    details: dict[str, Any]


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    info = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())}
    memory = int(_read("/proc/meminfo").split()[1]) / 2**20
    return {
        "processor": f"{info.get('model name', platform.machine())}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        **_gpu(),
        "load before": f"{os.getloadavg()[0]:.2f} processes",
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else "model name: unknown 0"


def _gpu() -> dict[str, str]:
    """Name, memory and driver of the first NVIDIA GPU; nothing without one."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(query, check=True, text=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    name, memory, driver = printed.splitlines()[0].split(", ")
    return {"gpu": f"{name}, {memory}, driver {driver}"}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def text_table(parts: list[Part]) -> str:
    lines = []
    for part in parts:
        lines += ["", part.title]
        for row in part.rows:
            goal = f"goal {row.goal[0]} {row.goal[1]:g}" if row.goal else ""
            lines.append(f"  {row.name:<64} {_number(row.value):>9} {row.unit:<6} {goal:<13} {row.mark}".rstrip())
    return "\n".join(lines).lstrip("\n")


def to_json(parts: list[Part], machine_facts: dict[str, str]) -> str:
    rows = lambda p: [{**asdict(r), "mark": r.mark} for r in p.rows]  # noqa: E731
    return (
        json.dumps(
            {
                "machine": machine_facts,
                "parts": [{"title": p.title, "method": p.method, "rows": rows(p), "details": p.details} for p in parts],
            },
            indent=2,
        )
        + "\n"
    )


def to_markdown(
    parts: list[Part], machine_facts: dict[str, str], command: str, title: str = "Benchmarks", introduction: str = INTRODUCTION
) -> str:
    lines = [
        f"# {title}",
        "",
        introduction.format(command=command),
        "",
        *[f"- {name}: {value}" for name, value in machine_facts.items()],
    ]
    for part in parts:
        lines += ["", f"## {part.title}", "", part.method, "", "| | measured | goal | |", "|---|--:|--:|---|"]
        for row in part.rows:
            goal = f"{row.goal[0].replace('>=', '≥').replace('<=', '≤')} {row.goal[1]:g}" if row.goal else ""
            lines.append(f"| {row.name} | {_number(row.value)} {row.unit} | {goal} | {row.mark} |".replace("  |", " |"))
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
