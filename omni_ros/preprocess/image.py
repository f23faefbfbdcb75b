"""Pictures -> flat patches for the vision encoder, equal to transformers' `Qwen2VLImageProcessorPil`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from omni_ros.errors import CheckpointError, InputError, PromptTooLongError
from omni_ros.preprocess.picture import open_picture

# What `Qwen3OmniMoeProcessor` passes to its video processor, whatever that one's own config says.
VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS = 128 * 32 * 32, 768 * 32 * 32
MAX_ASPECT_RATIO = 200
BICUBIC = 3  # PIL's number, as the processor configs write it


@dataclass(frozen=True)
class VisionConfig:
    """How pictures and video frames are resized, normalised and cut; pixel limits are height * width."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    image_mean: tuple[float, ...]  # one number per RGB channel, of pixels scaled to 0..1
    image_std: tuple[float, ...]
    image_min_pixels: int
    image_max_pixels: int
    video_min_pixels: int
    video_max_pixels: int
    min_frames: int
    max_frames: int

    @classmethod
    def from_files(cls, directory: str | Path) -> "VisionConfig":
        """Read the processor config of a checkpoint directory.

        transformers 5 writes processor_config.json with one section per modality; the published Qwen3-Omni
        repositories have a flat preprocessor_config.json instead. Raises CheckpointError when neither is usable.
        """
        directory = Path(directory)
        merged = directory / "processor_config.json"
        flat = directory / "preprocessor_config.json"
        path = merged if merged.is_file() else flat
        image = _read_json(path)
        video = image.get("video_processor", {})
        if "image_processor" in image:
            image = image["image_processor"]
        elif path == merged and flat.is_file():  # transformers 4 kept only the chat settings in processor_config.json
            path, image = flat, _read_json(flat)
        wanted = {
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "resample": BICUBIC,
            "rescale_factor": 1 / 255,
        }
        for key, value in wanted.items():
            if image.get(key, value) != value:
                raise CheckpointError(f"{path}: {key} is {image[key]!r}, supported is {value!r}")
        size = image.get("size") or {}
        try:
            return cls(
                image["patch_size"],
                image["temporal_patch_size"],
                image["merge_size"],
                tuple(image["image_mean"]),
                tuple(image["image_std"]),
                image.get("min_pixels") or size["shortest_edge"],
                image.get("max_pixels") or size["longest_edge"],
                VIDEO_MIN_PIXELS,
                VIDEO_MAX_PIXELS,
                video.get("min_frames", 4),
                video.get("max_frames", 768),
            )
        except KeyError as e:
            raise CheckpointError(f"{path}: has no {e}; copy it again from the checkpoint's repository") from e


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path}: cannot be read ({e}); copy it again from the checkpoint's repository") from e


def load_image(path: str | Path) -> np.ndarray:
    """Decode a picture file to uint8 [height, width, 3] RGB, upright; see `picture.open_picture` for what it raises."""
    with open_picture(path) as picture:
        return np.asarray(picture.rgb())


def check_pixels(image: np.ndarray, what: str) -> None:
    """Raise InputError unless `image` is uint8 [..., height, width, 3] with pixels in it."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim < 3 or image.shape[-1] != 3:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"{what} must be uint8 RGB [height, width, 3], got {found}")
    if image.size == 0:
        raise InputError(f"{what} is empty: {list(image.shape)}")


def check_tokens(grids: int, height: int, width: int, config: VisionConfig, max_tokens: int | None, what: str) -> None:
    """Raise PromptTooLongError if `grids` pictures of this size (or pairs of video frames) need more rows than fit."""
    tokens = grids * (height * width // (config.patch_size * config.merge_size) ** 2)
    if max_tokens is not None and tokens > max_tokens:
        raise PromptTooLongError(
            f"{what} takes {tokens} rows of the prompt, the Thinker engine was built for {max_tokens}; "
            "ask for fewer pixels or frames, or build with a larger --maxInputLen"
        )


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Nearest size whose sides are multiples of `factor`, area within the limits, aspect kept (transformers' own)."""
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise InputError(
            f"image of {width} x {height} pixels is too narrow: "
            f"the longer side may be at most {MAX_ASPECT_RATIO} times the shorter"
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def resize(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Pillow's antialiased bicubic; RGB -> uint8 [height, width, 3]. A picture that has the size already is unchanged."""
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def to_patches(frames: np.ndarray, config: VisionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Normalise and cut resized frames, uint8 [T, H, W, 3] with T a multiple of temporal_patch_size.

    Returns patches float32 [t*h*w, 3 * temporal_patch_size * patch_size^2], where merge_size x merge_size
    neighbours follow each other, and grid_thw int64 [3] = (t, h, w).
    """
    size, depth, merge = config.patch_size, config.temporal_patch_size, config.merge_size
    t, h, w = frames.shape[0] // depth, frames.shape[1] // size, frames.shape[2] // size
    mean, std = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
    shades = (np.arange(256) * (1 / 255)).astype(np.float32)
    values = (shades - mean[:, None]) / std[:, None]  # of each channel's bytes
    #                      0  1      2           3      4     5           6      7     8
    pixels = frames.reshape(t, depth, h // merge, merge, size, w // merge, merge, size, 3)
    pixels = pixels.transpose(8, 0, 2, 5, 3, 6, 1, 4, 7).reshape(3, t * h * w, -1)  # 3, t h w merge merge, depth size size
    patches = np.empty((t * h * w, 3, pixels.shape[-1]), np.float32)
    for channel in range(3):
        patches[:, channel] = values[channel][pixels[channel]]
    return patches.reshape(t * h * w, -1), np.array([t, h, w], np.int64)


def image_patches(
    image: np.ndarray | str | Path, config: VisionConfig, max_pixels: int | None = None, max_tokens: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A picture, uint8 [H, W, 3] or a file -> (patches float32 [h*w, C*T*P*P], grid_thw int64 [3] with t = 1).

    It is resized once, to at most `max_pixels` (height * width) where that is less than the config's own limit: the same
    picture as transformers' with that `max_pixels`. A still picture is a clip of temporal_patch_size equal frames.

    Raises InputError for a wrong array, a file that cannot be used or an extreme aspect ratio, and PromptTooLongError,
    before a pixel of a file is decoded, for more than `max_tokens` prompt rows.
    """
    if max_pixels is not None and (type(max_pixels) is not int or max_pixels < 1):
        raise InputError(f"max_pixels = {max_pixels!r} must be a whole number above 0")
    most = config.image_max_pixels if max_pixels is None else min(max_pixels, config.image_max_pixels)
    factor = config.patch_size * config.merge_size

    def fitted(height: int, width: int) -> tuple[int, int]:
        return smart_resize(height, width, factor, config.image_min_pixels, most)

    if isinstance(image, (str, Path)):
        with open_picture(image) as picture:
            check_tokens(1, *fitted(*picture.size), config, max_tokens, str(image))
            rgb = picture.rgb()
    else:
        check_pixels(image, "image")
        check_tokens(1, *fitted(*image.shape[:2]), config, max_tokens, "image")
        rgb = Image.fromarray(image)
    pixels = resize(rgb, *fitted(rgb.height, rgb.width))
    return to_patches(np.repeat(pixels[None], config.temporal_patch_size, axis=0), config)
