"""Video -> flat patches for the vision encoder (transformers `Qwen2VLVideoProcessor` and `Qwen3OmniMoeProcessor`).

Frames are resized with Pillow, as pictures are. transformers resizes them with torch, whose integer bicubic differs
from Pillow's by one or two of 255 levels in less than 1 % of the values; frames that need no resize are equal.
"""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from omni_ros.errors import InputError
from omni_ros.preprocess.image import VisionConfig, check_pixels, check_tokens, resize, smart_resize, to_patches
from omni_ros.preprocess.media import MAX_FRAME_PIXELS, VIDEO_CODECS, check_codec, open_container

MAX_DECODED_PIXELS = 2**35  # of all frames up to the last that is wanted: 20 minutes of 1280 x 720 at 30 frames per second


def load_video(path: str | Path, fps: float, config: VisionConfig, max_tokens: int | None = None) -> np.ndarray:
    """Decode about `fps` frames per second of a video file: uint8 [T, H, W, 3] RGB, already of the encoder's size.

    Each sampled frame is resized at once, no other is kept. Raises InputError naming the file when it cannot be decoded
    or holds no picture, and PromptTooLongError, before a frame is decoded, when they need more than `max_tokens` rows.
    """
    with open_container(path, "video") as container:
        if not container.streams.video:
            raise InputError(f"{path}: has no video stream")
        stream = container.streams.video[0]
        check_codec(path, stream.codec_context, VIDEO_CODECS)
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        total = stream.frames or _count_frames(container, stream)
        rate = stream.average_rate or stream.guessed_rate
        if not total or not rate:
            raise InputError(f"{path}: holds no video frames")
        wanted = sample_indices(total, rate, fps, config)
        height, width = stream.codec_context.height, stream.codec_context.width
        if not 0 < height * width <= MAX_FRAME_PIXELS:
            raise InputError(
                f"{path}: frames of {width} x {height} pixels: damaged, or more than {MAX_FRAME_PIXELS}; make them smaller"
            )
        size = fitted(height, width, config)
        check_tokens(-(-len(wanted) // config.temporal_patch_size), *size, config, max_tokens, str(path))
        if int(wanted[-1]) * width * height > MAX_DECODED_PIXELS:
            raise InputError(
                f"{path}: is too long: {len(wanted)} frames are wanted, {wanted[-1]} would have to be decoded; cut it"
            )
        frames = np.empty((len(wanted), *size, 3), np.uint8)
        found = 0
        for i, frame in enumerate(container.decode(stream)):
            if i == wanted[found]:
                if (frame.height, frame.width) != (height, width):
                    raise InputError(f"{path}: changes its size from {width} x {height} to {frame.width} x {frame.height}")
                frames[found] = resize(frame.to_image(), *size)
                found += 1
            if found == len(wanted):
                break
    if not found:
        raise InputError(f"{path}: holds no video frames")
    return frames[:found]


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


def video_patches(
    frames: np.ndarray, fps: float, config: VisionConfig, max_tokens: int | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """uint8 [T, H, W, 3] sampled at `fps` -> (patches float32 [t*h*w, C*T*P*P], grid_thw int64 [3], seconds per grid).

    An incomplete last group of frames is filled with its last frame. Raises InputError for a wrong array or fps,
    PromptTooLongError for more than `max_tokens` prompt rows.
    """
    check_pixels(frames, "video frames")
    if frames.ndim != 4:
        raise InputError(f"video frames must be [frames, height, width, 3], got {list(frames.shape)}")
    if fps <= 0:
        raise InputError(f"video fps must be positive, got {fps}")
    depth = config.temporal_patch_size
    height, width = fitted(frames.shape[1], frames.shape[2], config)
    grids = -(-len(frames) // depth)
    check_tokens(grids, height, width, config, max_tokens, "video")
    per_grid = height * width // config.patch_size**2
    patches = np.empty((grids * per_grid, 3 * depth * config.patch_size**2), np.float32)
    for grid in range(grids):  # one at a time: nothing is held twice
        group = frames[np.minimum(np.arange(grid * depth, (grid + 1) * depth), len(frames) - 1)]
        resized = (
            group if group.shape[1:3] == (height, width) else np.stack([resize(Image.fromarray(f), height, width) for f in group])
        )
        patches[grid * per_grid : (grid + 1) * per_grid] = to_patches(resized, config)[0]
    grid_thw = np.array([grids, height // config.patch_size, width // config.patch_size], np.int64)
    return patches, grid_thw, depth / fps


def fitted(height: int, width: int, config: VisionConfig) -> tuple[int, int]:
    """The size that frames of this size get."""
    factor = config.patch_size * config.merge_size
    return smart_resize(height, width, factor, config.video_min_pixels, config.video_max_pixels)
