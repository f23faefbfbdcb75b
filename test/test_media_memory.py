"""Files that want to be large: bounded memory, bounded time, and nothing of it stays."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.bombs import BOMBS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def exploded() -> dict[str, dict]:
    done = subprocess.run([sys.executable, "-m", "fuzz.bombs"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", BOMBS)
def test_memory_of_one_file(exploded, name):
    assert exploded[name]["peak_mb"] <= 300, exploded[name]
    assert exploded[name]["seconds"] < 10


def test_memory_after_all_of_them(exploded):
    assert exploded["after all"]["stays_mb"] <= 50


@pytest.mark.parametrize(
    "name,result",
    [
        ("one_hertz.wav", "sample rate"),
        ("two_hours.wav", "PromptTooLongError"),
        ("two_hours.flac", "PromptTooLongError"),
        ("13300x13300.png", "13300 x 13300 pixels"),
        ("thirty_seconds_1080p.mp4", "PromptTooLongError"),
        ("larger_than_4k.avi", "9437184"),
        ("8k.jpg", "taken"),
        ("8k_rgba.png", "taken"),
        ("two_frames_4k.mp4", "taken"),
    ],
)
def test_what_comes_of_them(exploded, name, result):
    assert result in exploded[name]["result"]
