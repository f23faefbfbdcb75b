"""The real launch file under `launch`, with the package installed as colcon does. Skipped where ROS's launch is absent: PyPI
does not have it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dds_domain import own_domain

reason = "launch is part of a ROS installation: source one"
pytest.importorskip("launch_ros", reason=reason)
pytest.importorskip("launch_testing", reason=reason)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def environment(setup_arguments, tmp_path_factory) -> dict[str, str]:
    """Of a process that finds the package through ament's index, installed from this checkout."""
    prefix = tmp_path_factory.mktemp("prefix")
    for target, files in setup_arguments["data_files"]:
        for file in files:
            (prefix / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, prefix / target)
    for script in setup_arguments["entry_points"]["console_scripts"]:
        name, module = script.split("=")[0].strip(), script.split("=")[1].split(":")[0].strip()
        executable = prefix / "lib" / "omni_ros" / name
        executable.parent.mkdir(parents=True, exist_ok=True)
        executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        executable.chmod(0o755)
    paths = [str(prefix), *filter(None, [os.environ.get("AMENT_PREFIX_PATH")])]
    return {
        **os.environ,
        "AMENT_PREFIX_PATH": os.pathsep.join(paths),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "ROS_DOMAIN_ID": own_domain(),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(prefix / "log"),
        "OMP_NUM_THREADS": "1",
    }


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, timeout=180, **pipes)


def test_one_turn(environment, engine_dirs):
    file = ROOT / "test" / "launch" / "one_turn.py"
    main = "from launch_testing.launch_test import main; main()"
    done = run(environment, "-c", main, file, f"engine_dir:={engine_dirs['plain']}")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Ran 1 test") == 2, done.stdout


LAUNCH = """
import sys
import time
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService()
source = PythonLaunchDescriptionSource("launch/omni.launch.py")
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=[("engine_dir", sys.argv[1])])])
)
sys.exit(service.run())
"""


def test_launch_ends_when_the_node_cannot_start(environment, tmp_path):
    """And does not wait for ever for a lifecycle node that is gone."""
    done = run(environment, "-c", LAUNCH, tmp_path / "nothing")
    assert "config.json: not found" in done.stdout
    assert "exit code 1" in done.stdout


ROBOT = LAUNCH.replace("omni.launch.py", "robot.launch.py").replace(
    '("engine_dir", sys.argv[1])', '*(tuple(pair.split(":=")) for pair in sys.argv[1:])'
)
SILENT = ("microphone:=null", "speaker:=null", "namespace:=robot_launch")


def test_the_robot_is_brought_up_in_order_and_a_killed_node_again(environment, engine_dirs, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", ROBOT, f"engine_dir:={engine_dirs['plain']}", *SILENT]

    def active() -> list[str]:
        return [line.split("]: ")[1].split()[0] for line in log.read_text().splitlines() if line.endswith(" is active")]

    def wait(wanted: list[str]) -> None:
        deadline = time.monotonic() + 90
        while active() != wanted:
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.2)

    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait(["speaker", "microphone", "omni"])
        started = [line for line in log.read_text().splitlines() if "[microphone" in line and "started with pid" in line]
        os.kill(int(started[-1].split("[")[-1].rstrip("]")), signal.SIGKILL)
        wait(["speaker", "microphone", "omni", "microphone"])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def test_the_robot_s_launch_ends_where_a_node_cannot_be_configured(environment, tmp_path):
    done = run(environment, "-c", ROBOT, f"engine_dir:={tmp_path / 'nothing'}", *SILENT)
    assert "config.json: not found" in done.stdout
