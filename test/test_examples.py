"""examples/, run as their docstrings say."""

import os
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from dds_domain import own_domain

from demo.make_bag import read_mono
from demo.script import TURNS
from omni_ros.devices.paced import read_wav

ROOT = Path(__file__).parent.parent


def test_chat(engine_dirs, tmp_path):
    command = [sys.executable, ROOT / "examples" / "chat.py", engine_dirs["odd"]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, input="hello\nand then?\n", text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2 and done.stdout.strip()
    for number in range(2):
        with wave.open(str(tmp_path / f"answer_{number}.wav")) as wav:
            assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (1, 2, 24000)
            assert wav.getnframes() >= 1920 - 555 and any(wav.readframes(wav.getnframes()))


def test_talk(demo_engine_dir, tmp_path):
    """With files in place of the sound card."""
    pytest.importorskip("pywebrtc_audio", reason="the echo canceller is in extra `devices`")
    sound = read_mono(TURNS[0].sound)
    sound = sound if sound.dtype == np.int16 else (32767 * sound).astype(np.int16)
    with wave.open(str(tmp_path / "in.wav"), "wb") as wav:
        wav.setparams((1, 2, 16000, 0, "NONE", ""))
        wav.writeframes(np.concatenate([np.zeros(8000, np.int16), sound]).tobytes())
    command = [sys.executable, ROOT / "examples" / "talk.py", demo_engine_dir, "file:in.wav", "file:out.wav"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out.wav").exists() or np.abs(read_wav(tmp_path / "out.wav")[0]).max(initial=0) < 0.05:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.5)
    finally:
        process.kill()
        printed = process.communicate()[0].decode()
    assert "listening" in printed and "Traceback" not in printed


def test_act_on_response(monkeypatch):
    pytest.importorskip("rclpy", reason="source a ROS installation")
    monkeypatch.setenv("ROS_DOMAIN_ID", own_domain())
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    import rclpy
    from std_msgs.msg import Float64, String

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("tester", context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    yaws: list[float] = []
    node.create_subscription(Float64, "head_yaw", lambda msg: yaws.append(msg.data), 10)
    response = node.create_publisher(String, "response", 10)
    process = subprocess.Popen([sys.executable, str(ROOT / "examples" / "act_on_response.py")])
    try:
        deadline = time.monotonic() + 60
        while not yaws:  # the other side may not know this one yet
            assert time.monotonic() < deadline and process.poll() is None
            response.publish(String(data="The door is on your left."))
            executor.spin_once(timeout_sec=0.5)
        for text in ("I do not know.", "Bright lights!", "Right of it, not left."):
            response.publish(String(data=text))
        while -0.6 not in yaws and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.1)
        assert yaws == [0.6] * (len(yaws) - 1) + [-0.6]
        process.terminate()  # SIGINT is ignored where a shell runs the tests in the background
        assert process.wait(30) == 0
    finally:
        process.kill()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
