"""Image preprocessing against transformers' Qwen2VLImageProcessorPil."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torchvision_shim  # noqa: F401  (before transformers)
from PIL import Image
from transformers import Qwen2VLVideoProcessor, WhisperFeatureExtractor
from transformers.image_utils import load_image as transformers_load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omni_ros.errors import CheckpointError, InputError
from omni_ros.preprocess.image import VisionConfig, image_patches, load_image

CONFIG = VisionConfig(
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    image_min_pixels=3136,
    image_max_pixels=1_000_000,
    video_min_pixels=131072,
    video_max_pixels=786432,
    min_frames=4,
    max_frames=768,
)
CLIP = dataclasses.replace(
    CONFIG, patch_size=14, image_mean=(0.48145466, 0.4578275, 0.40821073), image_std=(0.26862954, 0.26130258, 0.27577711)
)


def oracle(config: VisionConfig) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        merge_size=config.merge_size,
        image_mean=config.image_mean,
        image_std=config.image_std,
        min_pixels=config.image_min_pixels,
        max_pixels=config.image_max_pixels,
    )


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("config", [CONFIG, CLIP], ids=["qwen3_omni", "clip_mean_patch_14"])
@pytest.mark.parametrize(
    "height,width",
    [
        (32, 32),
        (64, 96),
        (448, 448),  # no resize
        (1, 1),
        (5, 3),
        (17, 33),
        (100, 75),
        (333, 217),
        (480, 640),
        (47, 49),
        (48, 80),  # odd, and halves that round
        (1, 200),
        (600, 3),
        (20, 1999),  # long and thin
        (1080, 1920),
        (2000, 1501),  # above max_pixels
    ],
)
def test_equals_transformers(config, height, width):
    image = noise(height, width)
    expected = oracle(config)(images=[Image.fromarray(image)], return_tensors="np")
    patches, grid = image_patches(image, config)
    assert patches.dtype == np.float32
    np.testing.assert_array_equal(grid, expected["image_grid_thw"][0])
    np.testing.assert_allclose(patches, expected["pixel_values"], atol=1e-6, rtol=0)


def test_modes_and_orientation_equal_transformers(tmp_path):
    """Gray, alpha, palette, 1-bit, CMYK, and an EXIF-rotated photo, through files."""
    rgb = Image.fromarray(noise(50, 70))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    variants = {
        "gray.png": rgb.convert("L"),
        "palette.gif": rgb.convert("P"),
        "bits.png": rgb.convert("1"),
        "alpha.png": Image.fromarray(noise(50, 70, 4), "RGBA"),
        "print.jpg": rgb.convert("CMYK"),
        "web.webp": rgb,
    }
    for name, image in variants.items():
        image.save(tmp_path / name)
    rgb.save(tmp_path / "rotated.jpg", exif=exif)
    for path in sorted(tmp_path.iterdir()):
        ours = load_image(path)
        np.testing.assert_array_equal(ours, np.asarray(transformers_load_image(str(path))), err_msg=path.name)
        expected = oracle(CONFIG)(images=[transformers_load_image(str(path))], return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(image_patches(ours, CONFIG)[0], expected, atol=1e-6, rtol=0, err_msg=path.name)
    assert load_image(tmp_path / "rotated.jpg").shape == (70, 50, 3)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp"])
def test_truncated_file_is_named(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(noise(60, 60)).save(buffer, kind)
    whole = buffer.getvalue()
    for size in (0, 1, 9, 30, len(whole) // 2):
        path = tmp_path / f"cut_{size}.{kind}"
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=path.name):
            load_image(path)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    for path in (tmp_path / "text.png", tmp_path / "missing.png", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            load_image(path)


@pytest.mark.parametrize(
    "image,message",
    [
        (np.zeros((4, 4), np.uint8), "uint8 RGB"),
        (np.zeros((4, 4, 4), np.uint8), "uint8 RGB"),
        (np.zeros((4, 4, 3), np.float32), "uint8 RGB"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((1, 201, 3), np.uint8), "too narrow"),
        (None, "uint8 RGB"),
    ],
)
def test_unusable_arrays(image, message):
    with pytest.raises(InputError, match=message):
        image_patches(image, CONFIG)


def published() -> dict:
    """preprocessor_config.json as in the published Qwen3-Omni-30B-A3B repositories, which have no other file."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 128,
        "hop_length": 160,
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_pixels": 12845056,
        "merge_size": 2,
        "min_pixels": 3136,
        "n_fft": 400,
        "patch_size": 16,
        "processor_class": "Qwen3OmniMoeProcessor",
        "sampling_rate": 16000,
        "temporal_patch_size": 2,
    }


def test_config_of_the_published_repositories(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published()))
    assert VisionConfig.from_files(tmp_path) == dataclasses.replace(CONFIG, image_max_pixels=12845056)


def test_config_as_transformers_saves_it(tmp_path):
    """processor_config.json is what Qwen3OmniMoeProcessor.save_pretrained writes: its parts' to_dict, by modality."""
    sections = {
        "image_processor": oracle(CONFIG).to_dict(),
        "feature_extractor": WhisperFeatureExtractor(128).to_dict(),
        "video_processor": Qwen2VLVideoProcessor(patch_size=16, min_frames=6, max_frames=32).to_dict(),
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(sections, default=list))
    want = dataclasses.replace(CONFIG, min_frames=6, max_frames=32)
    assert VisionConfig.from_files(tmp_path) == want


@pytest.mark.parametrize("change", [{"do_resize": False}, {"resample": 2}, {"rescale_factor": 1.0}, {"patch_size": None}])
def test_unsupported_config_is_refused(tmp_path, change):
    config = {k: v for k, v in {**published(), **change}.items() if v is not None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        VisionConfig.from_files(tmp_path)


def test_missing_or_broken_config_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="preprocessor_config.json"):
        VisionConfig.from_files(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="preprocessor_config.json"):
        VisionConfig.from_files(tmp_path)
