"""Video -> flat patches for the vision encoder (transformers `Qwen2VLVideoProcessor` and `Qwen3OmniMoeProcessor`).

Frames are resized with Pillow, as pictures are. transformers resizes them with torch, whose integer bicubic differs
from Pillow's by one or two of 255 levels in less than 1 % of the values; frames that need no resize are equal.
"""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from omni_ros.errors import InputError
from omni_ros.preprocess.image import VisionConfig, check_pixels, resize, smart_resize, to_patches


def load_video(path: str | Path, fps: float, config: VisionConfig) -> np.ndarray:
    """Decode about `fps` frames per second of a video file: uint8 [T, H, W, 3] RGB, already of the encoder's size.

    Raises InputError naming the file when it cannot be decoded or holds no picture.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            total = stream.frames or _count_frames(container, stream)
            rate = stream.average_rate or stream.guessed_rate
            if not total or not rate:
                raise InputError(f"{path}: holds no video frames")
            wanted = set(sample_indices(total, rate, fps, config).tolist())
            frames = []
            for i, frame in enumerate(container.decode(stream)):
                if i in wanted:
                    frames.append(_fit(frame.to_ndarray(format="rgb24"), config))
                if len(frames) == len(wanted):
                    break
    except (av.FFmpegError, OSError, ValueError) as e:
        raise InputError(f"{path}: not a readable video file ({e})") from e
    if not frames:
        raise InputError(f"{path}: holds no video frames")
    return np.stack(frames)


def _count_frames(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """For containers that do not say how many frames they hold (Matroska, WebM)."""
    total = sum(1 for packet in container.demux(stream) if packet.size)
    container.seek(0)
    return total


def sample_indices(total: int, video_fps: float | Fraction, fps: float, config: VisionConfig) -> np.ndarray:
    """Which of `total` frames to keep, int64, evenly spaced (transformers `Qwen2VLVideoProcessor.sample_frames`).

    Their number is a multiple of temporal_patch_size between min_frames and max_frames, as far as the video allows.
    """
    if fps <= 0:
        raise InputError(f"video fps must be positive, got {fps}")
    if total < config.temporal_patch_size:
        return np.arange(total)  # transformers cannot take such a clip; its last frame is repeated later
    most = min(config.max_frames, total) // config.temporal_patch_size * config.temporal_patch_size
    count = min(max(total / float(video_fps) * fps, config.min_frames), most)
    count = math.floor(count / config.temporal_patch_size) * config.temporal_patch_size
    # float32, as torch.arange rounds before it truncates
    return np.arange(0, total, total / count).astype(np.float32).astype(np.int64)


def video_patches(frames: np.ndarray, fps: float, config: VisionConfig) -> tuple[np.ndarray, np.ndarray, float]:
    """uint8 [T, H, W, 3] sampled at `fps` -> (patches float32 [t*h*w, C*T*P*P], grid_thw int64 [3], seconds per grid).

    An incomplete last group of frames is filled with its last frame. Raises InputError for a wrong array or fps.
    """
    check_pixels(frames, "video frames")
    if frames.ndim != 4:
        raise InputError(f"video frames must be [frames, height, width, 3], got {list(frames.shape)}")
    if fps <= 0:
        raise InputError(f"video fps must be positive, got {fps}")
    frames = np.stack([_fit(f, config) for f in frames])
    missing = -len(frames) % config.temporal_patch_size
    frames = np.concatenate([frames, frames[-1:].repeat(missing, axis=0)])
    return *to_patches(frames, config), config.temporal_patch_size / fps


def _fit(frame: np.ndarray, config: VisionConfig) -> np.ndarray:
    """One frame at the size that the encoder wants; unchanged when it has that size already."""
    height, width = smart_resize(
        *frame.shape[:2], config.patch_size * config.merge_size, config.video_min_pixels, config.video_max_pixels
    )
    return frame if frame.shape[:2] == (height, width) else resize(frame, height, width)
