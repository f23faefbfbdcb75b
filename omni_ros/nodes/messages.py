"""ROS messages to arrays and back. Everything that cannot be used raises InputError with the reason."""

import array
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from omni_ros.errors import InputError
from omni_ros.preprocess.picture import MAX_PIXELS, Picture, open_picture, rgb_array

# The message types that topic `audio` may have. Nothing else is ever imported because some publisher names it.
AUDIO_TYPES = (
    "std_msgs/msg/Int16MultiArray",
    "audio_common_msgs/msg/AudioDataStamped",
    "audio_common_msgs/msg/AudioData",
    "audio_common_msgs/msg/AudioStamped",
    "foxglove_msgs/msg/RawAudio",
)
COMPRESSED_FORMATS = ("JPEG", "PNG", "WEBP")  # what cameras send
LOUDEST = 100.0  # of floating-point PCM, whose full scale is 1: more is another unit, or garbage

# sensor_msgs/image_encodings.hpp: encoding -> (bytes per pixel, order of R, G, B among a pixel's samples).
_PACKED = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC1": (1, (0, 0, 0)),
    "mono16": (2, (0, 0, 0)),
}
# 4:2:2, two pixels in four bytes: encoding -> places of Y0, Y1, U, V. `yuv422` means UYVY.
_YUV422 = {"yuv422": (1, 3, 0, 2), "uyvy": (1, 3, 0, 2), "yuv422_yuy2": (0, 2, 1, 3), "yuyv": (0, 2, 1, 3)}


def shown(text: str, most: int = 80) -> str:
    """A foreign text as it may appear in a log or diagnostic: in one line, cut."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return repr(text)


def check_image(msg) -> None:
    """Whether a sensor_msgs/Image can be converted, without touching a pixel (cheap enough for a callback)."""
    if msg.encoding not in _PACKED and msg.encoding not in _YUV422:
        known = ", ".join([*_PACKED, *_YUV422])
        raise InputError(f"image encoding {shown(msg.encoding)} is not supported: convert it to one of {known}")
    if msg.height == 0 or msg.width == 0:
        raise InputError(f"image of {msg.width}x{msg.height} pixels is empty")
    if msg.height * msg.width > MAX_PIXELS:
        raise InputError(f"image of {msg.width} x {msg.height} pixels: too many, the limit is {MAX_PIXELS}")
    if msg.encoding in _YUV422 and msg.width % 2:
        raise InputError(f"image of encoding '{msg.encoding}' has an odd width {msg.width}: 4:2:2 needs pairs")
    row = msg.width * (_PACKED[msg.encoding][0] if msg.encoding in _PACKED else 2)
    if msg.step < row:
        raise InputError(f"image step {msg.step} is less than a row of {msg.width} '{msg.encoding}' pixels ({row})")
    if len(msg.data) != msg.step * msg.height:
        raise InputError(f"image has {len(msg.data)} bytes, not step {msg.step} x height {msg.height}")


def image_to_rgb(msg) -> np.ndarray:
    """sensor_msgs/Image -> uint8 RGB [H, W, 3], contiguous."""
    check_image(msg)
    rows = np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.step)
    if msg.encoding in _YUV422:
        return _yuv422_to_rgb(rows[:, : 2 * msg.width].reshape(msg.height, -1, 4), *_YUV422[msg.encoding])
    size, order = _PACKED[msg.encoding]
    pixels: np.ndarray = rows[:, : size * msg.width].reshape(msg.height, msg.width, size)
    if msg.encoding == "mono16":
        pixels = pixels[..., :1] if msg.is_bigendian else pixels[..., 1:]  # the high byte is the 8-bit picture
    return np.ascontiguousarray(pixels[..., order])


def _yuv422_to_rgb(pairs: np.ndarray, y0: int, y1: int, u: int, v: int) -> np.ndarray:
    """uint8 [H, W/2, 4] -> [H, W, 3]; ITU-R BT.601, 16..235, the range cameras send."""
    luma = 1.164 * (pairs[..., [y0, y1]].reshape(pairs.shape[0], -1).astype(np.float32) - 16)  # [H, W]
    blue, red = (np.repeat(pairs[..., place].astype(np.float32) - 128, 2, axis=1) for place in (u, v))
    rgb = np.stack([luma + 1.596 * red, luma - 0.391 * blue - 0.813 * red, luma + 2.018 * blue], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def check_compressed(msg) -> None:
    """Whether the header of a sensor_msgs/CompressedImage can be read and is acceptable, without decoding a pixel."""
    with _open_compressed(msg):
        return


def compressed_to_rgb(msg) -> np.ndarray:
    """sensor_msgs/CompressedImage -> uint8 RGB [H, W, 3], upright by its EXIF orientation; of 16-bit grey, the high byte."""
    with _open_compressed(msg) as picture:
        return rgb_array(picture.rgb())


def _open_compressed(msg) -> AbstractContextManager[Picture]:
    return open_picture(memoryview(msg.data), f"compressed image of format {shown(msg.format)}", COMPRESSED_FORMATS)


def interleaved_to_mono(data, dtype: str, channels: int) -> np.ndarray:
    """Interleaved PCM in a buffer -> float32 [n] in [-1, 1], the mean of its channels."""
    size = np.dtype(dtype).itemsize
    count = memoryview(data).nbytes
    if count == 0:
        raise InputError("audio message is empty")
    if channels < 1 or count % (size * channels):
        raise InputError(f"audio message of {count} bytes is no whole number of {channels}-channel {dtype} samples")
    samples = np.frombuffer(data, dtype).reshape(-1, channels)
    if samples.dtype.kind == "f":
        if not np.isfinite(samples).all():
            raise InputError("audio message has samples that are not numbers (NaN or infinity)")
        if (peak := np.abs(samples).max()) > LOUDEST:
            raise InputError(f"audio message has samples up to {peak:g}: floating-point PCM lies between -1 and 1")
        return samples.mean(axis=1, dtype=np.float32)
    zero, scale = (128, 128) if samples.dtype.kind == "u" else (0, -np.iinfo(dtype).min)
    return (samples.mean(axis=1, dtype=np.float32) - np.float32(zero)) / np.float32(scale)


def _check_rate(rate: int) -> int:
    if not 8000 <= rate <= 192000:
        raise InputError(f"audio sample rate {rate} Hz is outside 8000..192000")
    return rate


def array_bytes(msg) -> int:
    """How much memory the arrays of a message take, those of the messages in it included."""
    values = [getattr(msg, name) for name in msg.get_fields_and_field_types()]
    arrays = sum(memoryview(value).nbytes for value in values if isinstance(value, (array.array, bytes)))
    return arrays + sum(array_bytes(value) for value in values if hasattr(value, "get_fields_and_field_types"))


AudioReader = Callable[[Any], tuple[np.ndarray, int]]  # message -> (float32 mono [n], sample rate)


def audio_reader(message_type: Any, sample_rate: int, channels: int) -> AudioReader | None:
    """How to read `message_type`, or None when it is no audio type that we know.

    Types are told apart by their fields, because two packages called audio_common_msgs exist. `sample_rate` and
    `channels` are used by the types that do not carry their own.
    """
    fields = message_type.get_fields_and_field_types()

    def raw_bytes(data) -> tuple[np.ndarray, int]:
        if len(data) > 3 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2:  # MPEG sync word, layer III
            raise InputError("audio looks like MP3: start audio_capture with format:=wave (16-bit PCM)")
        return interleaved_to_mono(data, "<i2", channels), sample_rate

    def int16_multi_array(msg) -> tuple[np.ndarray, int]:
        declared = next((dim.size for dim in msg.layout.dim if dim.label == "channels"), channels)
        if declared != channels:
            raise InputError(f"audio message has {declared} channels, but parameter channels is {channels}")
        return interleaved_to_mono(msg.data, "i2", channels), sample_rate

    def raw_audio(msg) -> tuple[np.ndarray, int]:
        if msg.format != "pcm-s16":
            raise InputError(f"audio format {shown(msg.format)} is not supported: RawAudio must be 'pcm-s16'")
        return interleaved_to_mono(msg.data, "<i2", msg.number_of_channels), _check_rate(msg.sample_rate)

    def audio_stamped(msg) -> tuple[np.ndarray, int]:
        info, data = msg.audio.info, msg.audio.audio_data
        for values, dtype in (
            (data.float32_data, "f4"),
            (data.int32_data, "i4"),
            (data.int16_data, "i2"),
            (data.int8_data, "i1"),
            (data.uint8_data, "u1"),
        ):
            if len(values):
                return interleaved_to_mono(values, dtype, info.channels), _check_rate(info.rate)
        raise InputError("audio message is empty")

    if fields == {"layout": "std_msgs/MultiArrayLayout", "data": "sequence<int16>"}:  # std_msgs/Int16MultiArray
        return int16_multi_array
    if fields == {"data": "sequence<uint8>"}:  # ros-drivers audio_common_msgs/AudioData
        return lambda msg: raw_bytes(msg.data)
    if fields.get("audio") == "audio_common_msgs/AudioData":  # ros-drivers audio_common_msgs/AudioDataStamped
        return lambda msg: raw_bytes(msg.audio.data)
    if fields.get("audio") == "audio_common_msgs/Audio":  # mgonzs13's audio_common_msgs/AudioStamped
        return audio_stamped
    if {"data", "format", "sample_rate", "number_of_channels"} <= fields.keys():  # foxglove_msgs/RawAudio
        return raw_audio
    return None


def pcm_format(info) -> tuple[int, int]:
    """ros-drivers' audio_common_msgs/AudioInfo -> (sample rate, channels); only 16-bit PCM can be used."""
    if info.coding_format.lower() != "wave" or info.sample_format.upper() != "S16LE":
        raise InputError(
            f"audio is {shown(info.coding_format)} of {shown(info.sample_format)}: "
            "start audio_capture with format:=wave (16-bit PCM)"
        )
    return _check_rate(info.sample_rate), info.channels


def fill_pcm(msg, pcm: np.ndarray):
    """Put float32 mono PCM [n] into a std_msgs/Int16MultiArray, which is returned.

    array.array is what rosidl stores: assigning it is a pointer move, a numpy array would be copied item by item.
    """
    samples = array.array("h")
    samples.frombytes((np.clip(pcm, -1.0, 1.0) * 32767).round().astype(np.int16).tobytes())
    msg.data = samples
    return msg
