"""Is this machine fit for the omni node? Looks at software, ROS, devices, engines, GPU, clocks and memory; changes nothing.

  ros2 run omni_ros doctor --engine_dir ENGINES            or, without ROS: python -m omni_ros.doctor
  ros2 run omni_ros doctor --params_file my.yaml --json

Every failure comes with its fix. Exit code 0, or 1 when there is a failure; warnings do not count. Engines are read whole,
loaded and asked: that takes as long as starting the node, and its memory.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from omni_ros.doctor import devices, engines, gpu, machine, ros, software
from omni_ros.doctor.finding import FAILURE, OK, WARNING, Finding, Subject

# In this order: later ones know what the engines need.
CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    software.python,
    software.packages,
    engines.parameters,
    engines.files,
    software.onnxruntime,
    software.vad,
    ros.ros,
    ros.middleware,
    ros.domain,
    ros.shared_memory,
    ros.profile,
    machine.clocks,
    machine.sound,
    devices.microphone,
    devices.speaker,
    machine.camera,
    machine.memory,
    gpu.gpu,
    gpu.cuda,
    gpu.tensorrt,
    engines.gpu_match,
    engines.limits,
    engines.answers,
)
MARKS = {OK: "ok  ", WARNING: "WARN", FAILURE: "FAIL"}


def examine(subject: Subject) -> Iterator[Finding]:
    """The findings of every check. One that raises is a failure of its own, and holds up no other."""
    for check in CHECKS:
        try:
            yield from check(subject)
        except Exception as error:  # noqa: BLE001 - on a broken machine anything may be raised
            name = check.__name__.replace("_", " ")
            text = f"could not be looked at ({type(error).__name__}: {error})"
            yield Finding(name, FAILURE, text, "mend what is said above first, then ask again")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine_dir", type=Path, help="folder that offline.build_engines made")
    parser.add_argument("--params_file", type=Path, help="parameters of the node; its engine_dir counts unless one is given")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    args = parser.parse_args(arguments)
    found = []
    for finding in examine(Subject(args.engine_dir, args.params_file)):
        found.append(finding)
        if not args.json:
            print(f"{MARKS[finding.level]}  {finding.check:<24}{finding.text}", flush=True)
            if finding.fix:
                print(f"{'':30}fix: {finding.fix}", flush=True)
    failures, warnings = (sum(finding.level == level for finding in found) for level in (FAILURE, WARNING))
    if args.json:
        print(json.dumps({"ok": not failures, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        print(f"{failures} failures, {warnings} warnings")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
