"""The demo with tiny engines: a bag of camera and microphone in, text and speech out, each in its own process."""

import json
import os
import subprocess
import sys
import wave
from pathlib import Path

from PIL import Image

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
