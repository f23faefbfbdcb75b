"""A disk that is full: a real one, of 64 KB to 2 MB in memory, which needs the right to mount (root)."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import json
import os
import subprocess
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from omni_process import SHORT, OmniProcess, answer, engine_dir, ros, wait  # noqa: F401 - some are fixtures
from std_msgs.msg import String
from test_infer_cli import cli, user
from test_node_devices import RATE, Robot, robot  # noqa: F401 - a fixture
from test_node_faults import start  # noqa: F401 - a fixture
from test_replay import GREEDY, replayed, words, write_bag

from omni_ros.devices.paced import PacedSink
from omni_ros.devices.player import Player
from omni_ros.dialogue.simulated_clock import SimulatedClock
from omni_ros.engines.cuda import compiler


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Makes a disk of a size such as 64k, empty."""
    mounted: list[Path] = []

    def make(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, leave: int = 0) -> None:
    """All but `leave` bytes."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - leave))


def test_a_node_whose_logs_do_not_fit_answers(start, disk):
    """Its output and rcl's own log files lie on the full disk."""
    folder = disk("64k")
    fill(folder)
    process, client = start(env={"ROS_LOG_DIR": str(folder)}, **SHORT)
    process.process.kill()
    process.process.wait()
    with pytest.raises(OSError):
        (folder / "file").write_text("does not fit")

    small = OmniProcess(folder / "log", client.node.get_namespace().strip("/"), **_parameters(process), **SHORT)
    try:
        wait(lambda: client.state == "idle" and client.connected, 30)
        for count in (1, 2):
            client.prompt.publish(String(data="Are you there?"))
            answer(client, count)
        assert (folder / "log").read_text() == "" and small.process.poll() is None
        assert small.stop()[0] == 0
    finally:
        small.process.kill()


def _parameters(process: OmniProcess) -> dict[str, str]:
    """What another one was started with."""
    given = [word.split(":=", 1) for word in process.process.args if ":=" in word and not word.startswith("__ns")]
    return {name: value for name, value in given if name not in ("runaway_limit", *SHORT)}


def test_a_recording_on_a_full_disk_keeps_what_it_has_and_the_loudspeaker_tells(robot, disk, tmp_path):
    folder = disk("256k")
    process = OmniProcess(tmp_path / "log", module="omni_ros.nodes.speaker_node", device=f"file:{folder / 'spoken.wav'}")
    try:
        wait(lambda: robot.speech.get_subscription_count(), 20)
        wait(lambda: "cannot be written any more" in robot.status.get("speaker: device", {}).get("message", ""), 20)
        status = robot.status["speaker: device"]
        assert "spoken.wav" in status["message"] and "No space left on device" in status["message"]
        assert status["device"] == "none" and status["defects"] == "0"
        size = (folder / "spoken.wav").stat().st_size
        time.sleep(2.0)  # it is not begun again
        assert (folder / "spoken.wav").stat().st_size == size > 200_000 and process.process.poll() is None
        assert "Traceback" not in process.log.read_text()
    finally:
        process.stop()


def test_what_was_recorded_until_then_can_be_played(disk):
    folder = disk("64k")
    clock = SimulatedClock()
    failures: list[Exception] = []
    played: list[int] = []
    player = Player(
        lambda: PacedSink(folder / "spoken.wav", RATE, 1, clock),
        on_played=lambda pcm: played.append(pcm.size),
        on_failure=failures.append,
        clock=clock,
    )
    clock.sleep(5.0)
    player.close()
    assert failures == [] and "No space left on device" in player.problem and player.facts()["device opened"] == 1
    with wave.open(str(folder / "spoken.wav")) as file:
        assert 0.5 * RATE < file.getnframes() < 65536 // 2
    assert sum(played) <= 65536 // 2


def test_answers_before_the_disk_was_full_are_kept(engine_dir, disk, tmp_path):
    """`offline.infer` writes the first answer's speech, and has no room for the second one's."""
    folder = disk("256k")
    request = {"messages": user("Hello."), "max_generate_length": 6, "temperature": 0, "talker_temperature": 0}
    requests = {"requests": [request | {"max_audio_length": 20}, request | {"max_audio_length": 100}]}
    (tmp_path / "in.json").write_text(json.dumps(requests))
    output = folder / "out.json"
    done = cli(
        "offline.infer",
        "--engineDir",
        engine_dir,
        "--inputFile",
        tmp_path / "in.json",
        "--outputFile",
        output,
        "--enableAudioOutput",
    )
    assert done.returncode == 1 and "No space left on device" in done.stderr and "audio_req1" in done.stderr
    assert "Traceback" not in done.stderr
    responses = json.loads(output.read_text())["responses"]
    with wave.open(responses[0]["audio_file"]) as file:
        assert file.getnframes() == responses[0]["audio_samples"]
    assert sorted(path.name for path in folder.iterdir()) == ["audio_req0_batch0.wav", "out.json"]  # no half of a file


def test_a_replay_that_does_not_fit_leaves_nothing(engine_dir, disk, tmp_path, capsys):
    folder = disk("64k")
    bag = write_bag(tmp_path / "bag", [(0.5, "/prompt", words("Hello.")), (6.0, "/prompt", words("And now?"))])
    options = ["--engine_dir", engine_dir, *GREEDY, "max_generate_length=6", "max_audio_length=40", "runaway_limit=0"]
    assert replayed(bag, folder / "out", *options) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'out'}: cannot be written" in error and "No space left on device" in error and "Traceback" not in error
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("command", ["export", "build"])
def test_engines_that_do_not_fit_are_not_begun(checkpoints, engine_dirs, disk, command):
    folder = disk("1m")
    if command == "export":
        done = cli("offline.export_onnx", checkpoints["plain"], folder / "onnx", "--dtype", "float32")
    else:
        done = cli("offline.build_engines", engine_dirs["plain"].with_name("plain-onnx"), folder / "engines")
    assert done.returncode == 1 and "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert str(folder) in done.stderr
    assert not any(path.is_file() for path in folder.rglob("*.onnx*"))


def test_kernels_that_cannot_be_kept_are_compiled_at_each_start(disk):
    folder = disk("64k")
    assert not compiler._write(folder / "kernels-sm_90-x.cubin", np.random.default_rng(0).bytes(1 << 20))
    assert os.listdir(folder) == [] and compiler._read(folder / "kernels-sm_90-x.cubin") is None
    assert compiler._write(folder / "small.cubin", b"code") and compiler._read(folder / "small.cubin") == b"code"
