"""Pictures of every depth and of hostile size: 8-bit RGB as a person sees it, or one typed error."""

import dataclasses
import io
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from test_preprocess_image import CONFIG, noise, oracle

from omni_ros.errors import InputError, PromptTooLongError
from omni_ros.preprocess.image import image_patches, load_image
from omni_ros.preprocess.picture import FORMATS, open_picture

RAMP = np.linspace(0, 65535, 64 * 48).round().astype(np.uint16).reshape(48, 64)  # from black to white


def png(rows: np.ndarray, colour: int, bits: int = 16) -> bytes:
    """A PNG of big-endian samples [H, W * channels], which Pillow cannot write for 16-bit colour."""
    height, width = rows.shape[0], rows.shape[1] // {0: 1, 2: 3, 4: 2, 6: 4}[colour]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("colour,channels", [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "rgb", "grey+alpha", "rgba"])
def test_sixteen_bit_png(tmp_path, colour, channels):
    """16-bit grey was white all over: Pillow clips it at 255."""
    samples = np.repeat(RAMP[:, :, None], channels, axis=2)
    (tmp_path / "deep.png").write_bytes(png(samples.reshape(48, -1), colour))
    got = load_image(tmp_path / "deep.png")
    np.testing.assert_array_equal(got, np.repeat((RAMP >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("name", ["deep.tiff", "deep.pgm", "deep.png"])
def test_sixteen_bit_grey(tmp_path, name):
    Image.fromarray(RAMP).save(tmp_path / name)
    got = load_image(tmp_path / name)
    np.testing.assert_array_equal(got[..., 0], RAMP >> 8)
    np.testing.assert_array_equal(image_patches(tmp_path / name, CONFIG)[0], image_patches(got, CONFIG)[0])


def test_sixteen_bit_tiff_of_the_other_byte_order(tmp_path):
    image = Image.fromarray(RAMP)
    with Image.open(io.BytesIO(png(RAMP, 0))) as opened:
        assert opened.mode.startswith("I")
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    little = buffer.getvalue()
    assert little[:2] == b"II"
    (tmp_path / "big.tiff").write_bytes(big_endian_tiff(RAMP))
    np.testing.assert_array_equal(load_image(tmp_path / "big.tiff")[..., 0], RAMP >> 8)


def big_endian_tiff(samples: np.ndarray, bits: int = 16, kind: int = 1) -> bytes:
    """One strip of grey samples; kind 1 unsigned, 2 signed, 3 float."""
    data = samples.tobytes() if samples.dtype.byteorder == ">" else samples.byteswap().tobytes()
    tags = [(256, samples.shape[1]), (257, samples.shape[0]), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, samples.shape[0]), (279, len(data)), (339, kind)]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    return b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + struct.pack(">H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    "samples,bits,kind",
    [
        (np.ones((48, 64), np.float32), 32, 3),
        (np.ones((48, 64), np.int32), 32, 2),
        (np.ones((48, 64), np.int16), 16, 2),
        (np.ones((48, 64), np.uint32), 32, 1),
        (np.ones((48, 64), np.float64), 64, 3),
    ],
)
def test_samples_without_a_defined_white_are_refused(tmp_path, samples, bits, kind):
    """A float TIFF was black."""
    (tmp_path / "odd.tiff").write_bytes(big_endian_tiff(samples, bits, kind))
    with pytest.raises(InputError, match=r"odd\.tiff"):
        load_image(tmp_path / "odd.tiff")


def test_float_tiff_and_pfm(tmp_path):
    for name in ("a.tiff", "a.pfm"):
        Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name}.*8 bits"):
            load_image(tmp_path / name)


def test_twelve_bits_are_refused(tmp_path):
    """Pillow unpacks them to 0..4095 and calls that 16 bits: nearly black."""
    rows = np.zeros((4, 12), np.uint8)  # 8 pixels of 12 bits a row
    (tmp_path / "twelve.tiff").write_bytes(little_endian_twelve_bits(rows))
    with pytest.raises(InputError, match=r"twelve\.tiff"):
        load_image(tmp_path / "twelve.tiff")


def little_endian_twelve_bits(rows: np.ndarray) -> bytes:
    tags = [(256, 8), (257, len(rows)), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, len(rows)), (279, rows.size)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + rows.size) + rows.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4)


# ---- formats --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PCX", "TGA", "SGI", "IM", "JPEG2000", "DDS", "ICNS", "MSP"])
def test_other_formats_are_refused(tmp_path, kind):
    assert kind not in FORMATS
    image = Image.fromarray(noise(64, 64)).convert({"MSP": "1"}.get(kind, "RGB"))
    try:
        image.save(tmp_path / "picture.png", kind)
    except (KeyError, OSError) as e:
        pytest.skip(f"this Pillow does not write {kind}: {e}")
    with pytest.raises(InputError, match=r"picture\.png"):
        load_image(tmp_path / "picture.png")


def test_eps_starts_no_other_program(tmp_path, monkeypatch):
    """Pillow decodes EPS with Ghostscript: `gs` on the path would be started."""
    Image.fromarray(noise(64, 64)).save(tmp_path / "picture.png", "EPS")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert shutil.which("gs") == str(tmp_path / "gs")
    subprocess.run(["gs"], check=True)
    (tmp_path / "started").unlink()
    with pytest.raises(InputError):
        load_image(tmp_path / "picture.png")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "PNG", "JPEG", "WEBP", "BMP", "GIF"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_cut_anywhere_is_one_typed_error(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 40)).save(buffer, kind)
    whole = buffer.getvalue()
    for keep in [*range(0, 200, 3), *range(200, len(whole) // 2, 199)]:
        (tmp_path / "cut").write_bytes(whole[:keep])
        with pytest.raises(InputError, match="cut"):
            load_image(tmp_path / "cut")


def test_a_compressed_picture_in_memory():
    """What a camera sends: the same limits, under the name that the caller gives."""
    buffer = io.BytesIO()
    image = Image.fromarray(noise(40, 60))
    image.save(buffer, "PNG")
    with open_picture(buffer.getvalue(), "image_raw/compressed") as picture:
        assert picture.size == (40, 60)
        np.testing.assert_array_equal(np.asarray(picture.rgb()), noise(40, 60))
    with pytest.raises(InputError, match="image_raw/compressed"):
        with open_picture(buffer.getvalue()[:50], "image_raw/compressed") as picture:
            picture.rgb()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_exif_that_is_garbage(tmp_path):
    image = Image.fromarray(noise(40, 60))
    for n, exif in enumerate((b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(100))):
        path = tmp_path / f"{n}.jpg"
        image.save(path, exif=exif)
        try:
            assert load_image(path).shape == (40, 60, 3)
        except InputError as e:
            assert path.name in str(e)


# ---- size -----------------------------------------------------------------------------------------------------------
def bomb(path: Path, width: int, height: int) -> Path:
    """A black picture of any size in a file of nearly none."""
    row = b"\0" + bytes(width // 8 + 1)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width,height", [(13300, 13300), (7681, 4320), (10**6, 10**6), (2**31 - 1, 1)])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, width, height, monkeypatch):
    path = bomb(tmp_path / "bomb.png", width, min(height, 64))
    whole = bytearray(path.read_bytes())
    whole[20:24] = struct.pack(">I", height)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    path.write_bytes(whole)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    for load in (load_image, lambda p: image_patches(p, CONFIG)):
        with pytest.raises(InputError, match=r"bomb\.png"):
            load(path)


def test_more_rows_than_the_prompt_has_are_refused_before_decoding(tmp_path, monkeypatch):
    path = bomb(tmp_path / "large.png", 3200, 3200)
    patches, grid = image_patches(path, CONFIG, max_tokens=961)
    assert grid.tolist() == [1, 62, 62] and len(patches) == 4 * 961
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(PromptTooLongError, match=r"large\.png takes 961 rows.*960"):
        image_patches(path, CONFIG, max_tokens=960)
    with pytest.raises(PromptTooLongError, match="image takes 961 rows"):
        image_patches(np.zeros((3200, 3200, 3), np.uint8), CONFIG, max_tokens=960)


@pytest.mark.parametrize(
    "size,max_pixels,tokens", [((720, 1280), 307200, 276), ((1080, 1920), 307200, 276), ((480, 640), 307200, 300)]
)
def test_one_resize_to_the_limit_that_is_asked_for(tmp_path, size, max_pixels, tokens):
    """A camera picture was shrunk by the node, then again for the encoder: 299 tokens, and not transformers' picture."""
    image = noise(*size)
    config = dataclasses.replace(CONFIG, image_max_pixels=12845056)
    want = oracle(dataclasses.replace(config, image_max_pixels=max_pixels))(images=[Image.fromarray(image)], return_tensors="np")
    Image.fromarray(image).save(tmp_path / "camera.png")
    for source in (image, tmp_path / "camera.png", str(tmp_path / "camera.png")):
        patches, grid = image_patches(source, config, max_pixels)
        assert grid.prod() == 4 * tokens
        np.testing.assert_array_equal(grid, want["image_grid_thw"][0])
        np.testing.assert_allclose(patches, want["pixel_values"], atol=1e-6, rtol=0)


def test_a_limit_above_the_checkpoints_own_changes_nothing():
    image = noise(1100, 1000)
    np.testing.assert_array_equal(image_patches(image, CONFIG, 10**9)[0], image_patches(image, CONFIG)[0])


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "307200", float("nan")])
def test_impossible_limit(limit):
    with pytest.raises(InputError, match="max_pixels"):
        image_patches(noise(64, 64), CONFIG, limit)
