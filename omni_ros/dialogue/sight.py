"""What the robot sees: the newest picture, or the last frames as a short video. Nothing is decoded before a turn needs it."""

import functools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from omni_ros.errors import InputError

Picture = np.ndarray  # uint8 RGB [H, W, 3]
Look = Callable[[], dict[str, Any] | None]  # decodes to an image or video part; None where that cannot be done

STOPPED = 1.0  # seconds without a frame, or three that were due: what comes then is another scene
MOST_BYTES = 128 << 20  # of undecoded frames; the newest is kept in any case


@dataclass(frozen=True)
class Frame:
    decode: Callable[[], Picture]  # may raise InputError
    size: int  # bytes that it holds until then
    arrived: float


class Sight:
    """Frames come from one thread and are asked for by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: deque[Frame] = deque()  # oldest first

    def see(self, frame: Frame, frames: int, fps: float) -> None:
        """The newest frame; of those before it, at most `frames` - 1 are kept, 1 / `fps` seconds apart."""
        with self._lock:
            kept = self._frames
            # The last is the newest, however soon it came: it stays if the one before it is old enough.
            if frames < 2 or (len(kept) > 1 and kept[-1].arrived - kept[-2].arrived < 0.99 / fps):
                kept.pop() if kept else None
            kept.append(frame)
            while len(kept) > max(1, frames) or (len(kept) > 1 and sum(f.size for f in kept) > MOST_BYTES):
                kept.popleft()

    def forget(self) -> None:
        with self._lock:
            self._frames.clear()

    def age(self, now: float) -> float:
        """Seconds since the newest frame."""
        with self._lock:
            return now - self._frames[-1].arrived if self._frames else float("inf")

    def look(
        self, now: float, *, max_age: float, max_pixels: int, frames: int, fps: float, on_bad: Callable[[InputError], None]
    ) -> Look | None:
        """What is seen now, to be decoded later and once; None without a frame that is young enough.

        A video of `frames` is as large as a picture of `max_pixels`, together. A frame that cannot be decoded is told, and is
        missing; the words are worth an answer without it.
        """
        with self._lock:
            seen = list(self._frames)[-max(1, frames) :]
        if not seen or now - seen[-1].arrived > max_age:
            return None
        for i in range(len(seen) - 1, 0, -1):
            if seen[i].arrived - seen[i - 1].arrived > max(STOPPED, 3 / fps):
                seen = seen[i:]  # the camera had stopped: one rate is right for the last scene only
                break

        @functools.cache
        def decoded() -> dict[str, Any] | None:
            pictures: list[tuple[Picture, float]] = []
            for frame in reversed(seen):
                try:
                    picture = frame.decode()
                except InputError as error:
                    on_bad(error)
                    continue
                if len(seen) > 1:
                    picture = _shrunk(picture, max_pixels * 2 // len(seen))
                if pictures and picture.shape != pictures[0][0].shape:
                    break  # the camera was switched over
                pictures.append((picture, frame.arrived))
            if len(pictures) < 2:
                return {"type": "image", "image": pictures[0][0], "max_pixels": max_pixels} if pictures else None
            seconds = max(pictures[0][1] - pictures[-1][1], 1e-3)
            video = np.stack([picture for picture, _ in reversed(pictures)])
            return {"type": "video", "video": video, "fps": (len(pictures) - 1) / seconds}

        return decoded


def _shrunk(picture: Picture, most: int) -> Picture:
    """Of at most so many pixels, in proportion."""
    height, width = picture.shape[:2]
    scale = (most / (height * width)) ** 0.5
    if scale >= 1:
        return picture
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
