"""Spoken words for tests, int16 [n] at 16 kHz."""

from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).parent.parent


def load(path: Path) -> np.ndarray:
    with av.open(path) as file:
        spoken = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    assert spoken.dtype == np.int16
    return spoken


def silence(seconds: float) -> np.ndarray:
    """Of a quiet room."""
    return np.random.default_rng(0).normal(0, 30, round(16000 * seconds)).astype(np.int16)


def okay_nabu() -> np.ndarray:
    return load(ROOT / "test" / "sounds" / "okay_nabu.flac")


def question() -> np.ndarray:
    return load(ROOT / "demo" / "questions" / "is_there_a_yellow_triangle.flac")
