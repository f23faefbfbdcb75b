"""Video preprocessing against transformers' Qwen2VLVideoProcessor, sized as Qwen3OmniMoeProcessor asks for."""

from types import SimpleNamespace

import av
import numpy as np
import pytest
import torchvision_shim  # noqa: F401  (before transformers)
from transformers import Qwen2VLVideoProcessor, Qwen3OmniMoeProcessor
from transformers.video_utils import load_video as transformers_load_video

from omni_ros.errors import InputError
from omni_ros.preprocess.image import VisionConfig
from omni_ros.preprocess.video import load_video, sample_indices, video_patches

SIZE = Qwen3OmniMoeProcessor.videos_kwargs["size"]
ORACLE = Qwen2VLVideoProcessor(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, size=SIZE)
CONFIG = VisionConfig(
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    image_min_pixels=3136,
    image_max_pixels=12845056,
    video_min_pixels=SIZE["shortest_edge"],
    video_max_pixels=SIZE["longest_edge"],
    min_frames=4,
    max_frames=768,
)
LEVEL = 2 / 255  # one step of uint8 after normalisation to -1..1


def clip(frames: int, height: int, width: int) -> np.ndarray:
    """Something like a picture: smooth gradients with an edge that moves, and a little noise."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(frames)
    moving = [np.stack([x * 255 / width, y * 255 / height, 255 * (x > 9 * t)], axis=-1) for t in range(frames)]
    return np.clip(np.stack(moving) + rng.normal(0, 4, (frames, height, width, 3)), 0, 255).astype(np.uint8)


def expected(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    out = ORACLE(videos=[frames], return_tensors="np", do_sample_frames=False, input_data_format="channels_last")
    return out["pixel_values_videos"], out["video_grid_thw"][0]


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_equals_transformers_without_resize(frames):
    video = clip(frames, 352, 384)
    patches, grid, seconds = video_patches(video, 2.0, CONFIG)
    want, want_grid = expected(video)
    np.testing.assert_array_equal(grid, want_grid)
    np.testing.assert_allclose(patches, want, atol=1e-6, rtol=0)
    assert seconds == 1.0  # two frames at 2 fps


@pytest.mark.parametrize("height,width", [(120, 160), (97, 333), (480, 640), (721, 1283), (1200, 1000)])
def test_resize_is_within_two_levels_of_transformers(height, width):
    video = clip(2, height, width)
    patches, grid, _ = video_patches(video, 2.0, CONFIG)
    want, want_grid = expected(video)
    np.testing.assert_array_equal(grid, want_grid)
    difference = np.abs(patches - want)
    assert difference.max() < 2.01 * LEVEL
    assert (difference > 0.01 * LEVEL).mean() < 0.01


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 3.0, 7.5])
@pytest.mark.parametrize("video_fps", [10.0, 23.976, 30.0])
def test_sampling_equals_transformers(fps, video_fps):
    for total in [*range(2, 300), 1000, 12345]:
        want = ORACLE.sample_frames(SimpleNamespace(total_num_frames=total, fps=video_fps), fps=fps)
        np.testing.assert_array_equal(sample_indices(total, video_fps, fps, CONFIG), want.numpy(), err_msg=f"{total}")


def test_one_frame_is_enough():
    assert sample_indices(1, 30, 2.0, CONFIG).tolist() == [0]


def write(path, video: np.ndarray, codec: str, rate: int = 10) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("name,codec", [("clip.mp4", "mpeg4"), ("clip.mkv", "mpeg4"), ("clip.avi", "mjpeg")])
def test_decoded_file_equals_transformers(tmp_path, name, codec):
    path = tmp_path / name
    write(path, clip(25, 352, 384), codec)

    def sample(metadata, **_):
        metadata.total_num_frames = 25  # which Matroska does not say
        return ORACLE.sample_frames(metadata, fps=2.0).numpy()

    want, _ = transformers_load_video(str(path), backend="pyav", sample_indices_fn=sample)
    got = load_video(path, 2.0, CONFIG)
    assert len(got) == 4
    np.testing.assert_array_equal(got, want)


def test_loading_resizes_as_it_goes(tmp_path):
    """Only frames of the encoder's size are kept in memory, and resizing them again changes nothing."""
    write(tmp_path / "large.mp4", clip(5, 960, 1280), "mpeg4")
    frames = load_video(tmp_path / "large.mp4", 10.0, CONFIG)
    assert frames.shape == (4, 768, 1024, 3)
    assert video_patches(frames, 10.0, CONFIG)[1].tolist() == expected(clip(4, 960, 1280))[1].tolist() == [2, 48, 64]


def test_unusable_files_are_named(tmp_path):
    write(tmp_path / "clip.avi", clip(3, 64, 64), "mjpeg")
    (tmp_path / "cut.avi").write_bytes((tmp_path / "clip.avi").read_bytes()[:3000])
    (tmp_path / "text.mp4").write_text("not a video")
    for name in ("cut.avi", "text.mp4", "missing.mp4"):
        with pytest.raises(InputError, match=name):
            load_video(tmp_path / name, 2.0, CONFIG)


@pytest.mark.parametrize(
    "frames,fps,message",
    [
        (np.zeros((4, 4, 3), np.uint8), 2.0, "must be"),
        (np.zeros((0, 64, 64, 3), np.uint8), 2.0, "empty"),
        (np.zeros((2, 64, 64, 3), np.float32), 2.0, "uint8"),
        (np.zeros((2, 64, 64, 3), np.uint8), 0.0, "fps"),
    ],
)
def test_unusable_arrays(frames, fps, message):
    with pytest.raises(InputError, match=message):
        video_patches(frames, fps, CONFIG)
