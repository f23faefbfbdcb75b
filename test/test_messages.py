"""ROS messages to arrays and back, with rosidl's field checks on; bad messages raise InputError."""

import array
import io
import os
from types import SimpleNamespace

os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"  # read when a message module is imported

import av  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image as Picture  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_msgs.msg import Int16MultiArray, MultiArrayDimension, String  # noqa: E402

from omni_ros.errors import InputError  # noqa: E402
from omni_ros.nodes import messages  # noqa: E402
from omni_ros.preprocess import picture  # noqa: E402

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)


def image(pixels: np.ndarray, encoding: str, padding: int = 0, bigendian: bool = False) -> Image:
    """`pixels` [H, W, ...] with `padding` bytes of rubbish after each row."""
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.concatenate([rows, rng.integers(0, 256, (rows.shape[0], padding), dtype=np.uint8)], axis=1)
    data = array.array("B")
    data.frombytes(rows.tobytes())
    height, width = pixels.shape[:2]
    return Image(height=height, width=width, encoding=encoding, step=rows.shape[1], data=data, is_bigendian=int(bigendian))


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_colour_images(encoding, padding):
    pixels = RGB[..., ::-1] if encoding.startswith("bgr") else RGB
    if encoding.endswith("a8"):
        pixels = np.concatenate([pixels, np.full_like(pixels[..., :1], 9)], axis=-1)
    rgb = messages.image_to_rgb(image(pixels, encoding, padding))
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    assert np.array_equal(rgb, RGB)


@pytest.mark.parametrize("bigendian", [False, True])
def test_mono16_keeps_the_high_byte(bigendian):
    grey = rng.integers(0, 65536, (4, 3), dtype=np.uint16)
    rgb = messages.image_to_rgb(image(grey.astype(">u2" if bigendian else "<u2"), "mono16", 2, bigendian))
    assert np.array_equal(rgb, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_mono8():
    rgb = messages.image_to_rgb(image(RGB[..., 0], "mono8", 1))
    assert np.array_equal(rgb, np.repeat(RGB[..., :1], 3, axis=-1))


def test_yuv422_agrees_with_swscale():
    x, y = np.meshgrid(np.linspace(20, 230, 128), np.linspace(20, 230, 96))  # slow, as swscale smooths the chroma
    slopes = np.stack([x, y, 250 - (x + y) / 2], axis=-1).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(slopes, format="rgb24").reformat(format="yuyv422")
    yuyv = frame.to_ndarray()  # [96, 128, 2]
    expected = frame.reformat(format="rgb24").to_ndarray().astype(int)
    for encoding, pixels in (("yuyv", yuyv), ("yuv422_yuy2", yuyv), ("yuv422", yuyv[..., ::-1])):
        rgb = messages.image_to_rgb(image(pixels, encoding, 4))
        assert np.abs(rgb - expected).max() <= 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encoding": "bayer_rggb8"}, "bayer_rggb8.*not supported.*rgb8"),
        ({"encoding": ""}, "encoding ''"),
        ({"height": 0}, "6x0 pixels is empty"),
        ({"width": 0}, "0x5 pixels is empty"),
        ({"step": 17}, "step 17 is less than a row"),
        ({"data": array.array("B", bytes(89))}, "89 bytes"),
        ({"width": 7, "encoding": "yuyv", "step": 18}, "odd width 7"),
    ],
)
def test_unusable_images(change, reason):
    msg = image(RGB, "rgb8")
    for field, value in change.items():
        setattr(msg, field, value)
    with pytest.raises(InputError, match=reason):
        messages.check_image(msg)
    with pytest.raises(InputError, match=reason):
        messages.image_to_rgb(msg)


def compressed(form: str, **options) -> CompressedImage:
    file = io.BytesIO()
    Picture.fromarray(RGB).resize((60, 50)).save(file, form, **options)
    return CompressedImage(format=form.lower(), data=array.array("B", file.getvalue()))


def test_compressed_image():
    png, jpeg = compressed("PNG"), compressed("JPEG", quality=95)
    expected = np.array(Picture.fromarray(RGB).resize((60, 50)))
    messages.check_compressed(png)
    assert np.array_equal(messages.compressed_to_rgb(png), expected)
    assert np.abs(messages.compressed_to_rgb(jpeg).astype(int) - expected).mean() < 8


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_truncated_compressed_image(form):
    msg = compressed(form)
    msg.data = msg.data[:-100]
    messages.check_compressed(msg)  # the header is whole
    with pytest.raises(InputError, match=f"{form.lower()}.*not a readable image"):
        messages.compressed_to_rgb(msg)


def test_compressed_rubbish():
    with pytest.raises(InputError, match="format 'jpeg': not a readable image"):
        messages.check_compressed(CompressedImage(format="jpeg", data=array.array("B", b"no picture")))


def test_sixteen_bit_grey_keeps_the_high_byte():
    grey = rng.integers(0, 65536, (40, 50), dtype=np.uint16)
    file = io.BytesIO()
    Picture.fromarray(grey).save(file, "PNG")
    rgb = messages.compressed_to_rgb(CompressedImage(format="png", data=array.array("B", file.getvalue())))
    assert np.array_equal(rgb, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_a_camera_picture_is_turned_upright_and_bounded_like_a_file(monkeypatch):
    exif = Picture.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert messages.compressed_to_rgb(compressed("JPEG", exif=exif)).shape == (60, 50, 3)
    monkeypatch.setattr(picture, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="too much for a picture"):
        messages.check_compressed(compressed("PNG"))


@pytest.mark.parametrize("form", ["TIFF", "BMP", "GIF", "PPM"])
def test_formats_that_are_read_from_files_only(form):
    with pytest.raises(InputError, match="none of JPEG, PNG, WEBP"):
        messages.check_compressed(compressed(form))


def test_formats_that_no_camera_sends_are_refused():
    file = io.BytesIO()
    Picture.fromarray(RGB).save(file, "EPS")  # which Pillow reads by starting a program
    with pytest.raises(InputError, match="JPEG, PNG, WEBP"):
        messages.check_compressed(CompressedImage(format="eps", data=array.array("B", file.getvalue())))


def test_a_small_file_of_a_huge_picture_is_not_decoded():
    file = io.BytesIO()
    Picture.new("1", (13300, 13300)).save(file, "PNG")
    with pytest.raises(InputError, match="13300 x 13300 pixels"):
        messages.check_compressed(CompressedImage(format="png", data=array.array("B", file.getvalue())))


def test_foreign_texts_are_cut():
    with pytest.raises(InputError) as caught:
        messages.check_image(image(RGB, "x" * 100_000))
    assert len(str(caught.value)) < 300


def reader(message_type, sample_rate=16000, channels=1):
    return messages.audio_reader(message_type, sample_rate, channels)


def test_pcm_round_trip():
    pcm = np.array([0.0, 0.5, -0.5, 1.0, -1.0, 2.0], np.float32)
    msg = messages.fill_pcm(Int16MultiArray(), pcm)
    assert isinstance(msg.data, array.array)
    got, rate = reader(Int16MultiArray)(msg)
    assert rate == 16000 and got.dtype == np.float32
    assert np.abs(got - np.clip(pcm, -1, 1)).max() < 1e-4


def test_channels_are_averaged():
    msg = Int16MultiArray(data=[16384, 0, -16384, -16384])
    assert np.array_equal(reader(Int16MultiArray, channels=2)(msg)[0], [0.25, -0.5])


def test_bad_int16_arrays():
    with pytest.raises(InputError, match="empty"):
        reader(Int16MultiArray)(Int16MultiArray())
    with pytest.raises(InputError, match="6 bytes is no whole number of 2-channel"):
        reader(Int16MultiArray, channels=2)(Int16MultiArray(data=[1, 2, 3]))
    stereo = Int16MultiArray(data=[1, 2])
    stereo.layout.dim = [MultiArrayDimension(label="channels", size=2)]
    with pytest.raises(InputError, match="2 channels, but parameter channels is 1"):
        reader(Int16MultiArray)(stereo)


def message_type(**fields: str) -> type:
    """A stand-in for a message class of a package that is not on PyPI."""
    return type("Message", (SimpleNamespace,), {"get_fields_and_field_types": classmethod(lambda cls: dict(fields))})


S16 = array.array("B", np.array([8192, -8192, 0, 16384], "<i2").tobytes())


def test_ros_drivers_audio_data():
    plain = message_type(data="sequence<uint8>")
    stamped = message_type(header="std_msgs/Header", audio="audio_common_msgs/AudioData")
    for kind, msg in ((plain, plain(data=S16)), (stamped, stamped(audio=SimpleNamespace(data=S16)))):
        pcm, rate = reader(kind, 44100, 2)(msg)
        assert rate == 44100 and np.array_equal(pcm, [0, 0.25])
    with pytest.raises(InputError, match="3 bytes is no whole number"):
        reader(plain)(plain(data=S16[:3]))
    with pytest.raises(InputError, match="MP3.*format:=wave"):
        reader(plain)(plain(data=array.array("B", bytes([0xFF, 0xFB, 0x90, 0x64] * 100))))


def test_ros_drivers_audio_info():
    info = SimpleNamespace(channels=2, sample_rate=44100, sample_format="S16LE", coding_format="wave")
    assert messages.pcm_format(info) == (44100, 2)
    info.coding_format = "mp3"
    with pytest.raises(InputError, match="mp3.*format:=wave"):
        messages.pcm_format(info)


@pytest.mark.parametrize(("name", "code", "half"), [("float32_data", "f", 0.5), ("int8_data", "b", 64),
                                                    ("int32_data", "i", 2**30), ("uint8_data", "B", 192)])  # fmt: skip
def test_audio_stamped_of_the_other_audio_common_msgs(name, code, half):
    stamped = message_type(header="std_msgs/Header", audio="audio_common_msgs/Audio")
    data = dict.fromkeys(["float32_data", "int32_data", "int16_data", "int8_data", "uint8_data"], array.array("b"))
    data[name] = array.array(code, [half, half])
    info = SimpleNamespace(channels=2, rate=48000)
    pcm, rate = reader(stamped)(stamped(audio=SimpleNamespace(info=info, audio_data=SimpleNamespace(**data))))
    assert rate == 48000 and np.array_equal(pcm, [0.5])
    info.rate = 0
    with pytest.raises(InputError, match="sample rate 0 Hz"):
        reader(stamped)(stamped(audio=SimpleNamespace(info=info, audio_data=SimpleNamespace(**data))))


def test_foxglove_raw_audio():
    raw = message_type(timestamp="builtin_interfaces/Time", data="sequence<uint8>", format="string",
                       sample_rate="uint32", number_of_channels="uint32")  # fmt: skip
    pcm, rate = reader(raw)(raw(data=S16, format="pcm-s16", sample_rate=24000, number_of_channels=1))
    assert rate == 24000 and np.array_equal(pcm, [0.25, -0.25, 0, 0.5])
    with pytest.raises(InputError, match="opus"):
        reader(raw)(raw(data=S16, format="opus", sample_rate=24000, number_of_channels=1))
    with pytest.raises(InputError, match="sample rate 300000 Hz"):
        reader(raw)(raw(data=S16, format="pcm-s16", sample_rate=300000, number_of_channels=1))


def test_not_a_number():
    with pytest.raises(InputError, match="NaN"):
        messages.interleaved_to_mono(array.array("f", [0.0, float("nan")]), "f4", 1)


def test_floating_point_of_another_unit():
    with pytest.raises(InputError, match="1e.30.*between -1 and 1"):
        messages.interleaved_to_mono(array.array("f", [0.0, 1e30]), "f4", 1)


def test_other_types_are_no_audio():
    assert reader(String) is None and reader(Image) is None


def test_a_raw_image_larger_than_8k_is_not_kept():
    with pytest.raises(InputError, match="8000 x 4320 pixels: too many"):
        messages.check_image(Image(height=4320, width=8000, encoding="mono8", step=8000))
