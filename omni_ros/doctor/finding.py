"""What a check finds, and what all checks may ask about.

Nothing here or at the top of a check's file needs a package: that one is missing or broken is what they are there to find.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, WARNING, FAILURE = "ok", "warning", "failure"
PATIENCE = 60.0  # seconds for a program that tries something out


@dataclass(frozen=True)
class Finding:
    check: str
    level: str  # OK, WARNING: the robot works, worse than it could; FAILURE: it does not
    text: str
    fix: str = ""


@dataclass
class Subject:
    """What is examined."""

    engine_dir: Path | None = None
    params_file: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)  # the node's parameters, once they have been read
    backends: set[str] = field(default_factory=set)  # of the engines, once they have been read
    engine_bytes: int = 0  # of all files of all engines
    whole: set[str] = field(default_factory=set)  # engines whose files are as they were built
    too_large: bool = False  # for the memory that is free


@dataclass(frozen=True)
class Tried:
    code: int  # exit code; negative: killed by that signal; None would be a timeout, which counts as -9
    lines: list[Any]  # of JSON that it printed
    error: str  # the last line of its stderr


def try_out(program: str, *arguments: str) -> Tried:
    """Run a Python program in a process of its own: what it imports may end it in any way.

    It has this process's environment, and with it what omni_ros/__init__.py says to ONNX Runtime.
    """
    command = [sys.executable, "-c", program, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, errors="replace")
    except subprocess.TimeoutExpired:
        return Tried(-9, [], f"no end after {PATIENCE:.0f} s")
    lines = []
    for line in done.stdout.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue  # something that a library has printed
    words = [line for line in done.stderr.splitlines() if line.strip()]
    return Tried(done.returncode, lines, words[-1].strip()[:400] if words else f"exit code {done.returncode}")
