"""The demo with tiny engines: a bag of camera and microphone in, text and speech out, each in its own process."""

import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.check import problems
from demo.make_bag import QUESTIONS, make_bag, read_mono

ROOT = Path(__file__).parent.parent
FRAMES = 10


def test_two_spoken_questions_from_a_bag_are_answered(engine_dirs, tmp_path):
    command = [sys.executable, "-m", "demo.run", "--output", tmp_path, "--engine_dir", engine_dirs["plain"]]
    command += ["--answer_tokens", "8", "--answer_frames", str(FRAMES), "--pause", "1.5"]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(102 - 1 - os.getpid() % 50), "OMP_NUM_THREADS": "1"}
    environment |= {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_PYTHON_CHECK_FIELDS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr

    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["node_exit_code"] == 0
    assert metrics["pictures"] > 50  # of 104: a busy machine may drop some, as the topic is best effort
    assert [turn["speech_s"] for turn in metrics["turns"]] == [round((FRAMES * 1920 - 555) / 24000, 3)] * 2
    for turn in metrics["turns"]:
        assert turn["text"] and turn["text_deltas"] > 1
        assert 0 < turn["first_text_ms"] <= turn["first_speech_ms"] + 1

    with wave.open(str(tmp_path / "speech.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        assert file.getnframes() >= 2 * (FRAMES * 1920 - 555)
        assert any(file.readframes(24000))
    with Image.open(tmp_path / "timeline.png") as plot:
        assert plot.width > 1000
        assert len(plot.convert("RGB").getcolors(1 << 20)) > 10  # something is drawn


def recording(question: np.ndarray, lost: float = 0.0) -> tuple[list, list]:
    """What the demo's recorder has when the node missed the first `lost` seconds of a question: microphone, user_speaking."""
    pcm = np.concatenate([np.zeros(16000, np.int16), question, np.zeros(16000, np.int16)])
    chunks = [((at + 320) / 16000, pcm[at : at + 320]) for at in range(0, pcm.size, 320)]
    loud = [at for at, chunk in chunks if np.abs(chunk.astype(int)).max() > 655]
    return chunks, [(loud[0] + lost + 0.15, True), (loud[-1] + 0.55, False)]


def test_a_question_that_was_not_heard_whole_fails_the_demo():
    question = read_mono(QUESTIONS[0])
    assert problems(*recording(question), [question]) == []
    assert "first words are lost" in problems(*recording(question, lost=1.0), [question])[0]
    chunks, speaking = recording(question)
    assert "2 questions were asked, 1 were heard" in problems(chunks, speaking, [question] * 2)[0]
    assert "cut off" in problems(chunks, [speaking[0], (speaking[1][0] - 1.5, False)], [question])[0]
    half = [chunk for number, chunk in enumerate(chunks) if number > 110]
    assert "did not reach" in problems(half, speaking, [question])[0]


@pytest.mark.parametrize("listeners", [1, 2])
def test_nothing_is_replayed_before_everybody_listens(tmp_path, listeners):
    """One bag, one or two subscribers in another process: the player waits for two."""
    make_bag(tmp_path / "bag", [QUESTIONS[0]], pause=0.1)
    script = """
import sys, rclpy
from std_msgs.msg import Int16MultiArray
from sensor_msgs.msg import CompressedImage
rclpy.init()
node, heard = rclpy.create_node("listener"), []
for number in range(int(sys.argv[1])):
    node.create_subscription(Int16MultiArray, "audio", heard.append, 100)
    node.create_subscription(CompressedImage, "image_raw/compressed", lambda msg: None, 100)
while True:
    rclpy.spin_once(node, timeout_sec=0.1)
"""
    environment = {**os.environ, "ROS_DOMAIN_ID": str(102 - 1 - os.getpid() % 50), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    listener = subprocess.Popen([sys.executable, "-c", script, str(listeners)], env=environment)
    try:
        player = "import sys; from demo import replay_bag; replay_bag.DISCOVERY = 6.0; replay_bag.main()"
        command = [sys.executable, "-c", player, tmp_path / "bag", "--subscribers", "2", "--rate", "10"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    finally:
        listener.kill()
    if listeners == 2:
        assert done.returncode == 0 and "replayed" in done.stdout, done.stderr
    else:
        assert done.returncode == 1 and "not 2 subscribers within 6 s on /audio" in done.stderr
