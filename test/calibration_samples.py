"""A calibration folder for tests: two recordings, two pictures, two texts."""

import wave
from pathlib import Path

import numpy as np
from PIL import Image


def write_samples(directory: Path) -> Path:
    random = np.random.default_rng(7)
    for folder in ("audio", "images", "text"):
        (directory / folder).mkdir(parents=True)
    for name, samples in (("short", 9000), ("long", 20000)):
        with wave.open(str(directory / "audio" / f"{name}.wav"), "wb") as f:
            f.setnchannels(1)
            f.setsampwidth(2)
            f.setframerate(16000)
            f.writeframes((random.standard_normal(samples) * 3000).astype("<i2").tobytes())
    for name, size in (("wide", (70, 140, 3)), ("tall", (133, 64, 3))):
        Image.fromarray(random.integers(0, 256, size, np.uint8)).save(directory / "images" / f"{name}.png")
    (directory / "images" / "tall.txt").write_text("What stands here?")
    (directory / "text" / "a.txt").write_text("Tell me about the weather.")
    (directory / "text" / "b.txt").write_text("Where is the red box?\n")
    return directory
