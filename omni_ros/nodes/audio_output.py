"""PCM as a message of any type that topic `audio` may have: the counterpart of messages.audio_reader."""

import array
from collections.abc import Callable
from typing import Any

import numpy as np

from omni_ros.errors import InputError
from omni_ros.nodes.audio_input import message_class
from omni_ros.nodes.messages import AUDIO_TYPES, fill_pcm, shown

AudioWriter = Callable[[np.ndarray, Any], Any]  # float32 mono [n], builtin_interfaces/Time -> message


def audio_type(name: str) -> type:
    """The class of a type of AUDIO_TYPES; InputError where it is none or not installed."""
    kind = message_class(name) if name in AUDIO_TYPES else None
    if kind is None:
        raise InputError(f"audio_out_type {shown(name)} is no supported audio type or its package is not installed")
    return kind


def audio_writer(kind: Any, rate: int) -> AudioWriter:
    """Told apart by their fields, because two packages called audio_common_msgs exist."""
    fields = kind.get_fields_and_field_types()

    def multi_array(pcm: np.ndarray, stamp: Any) -> Any:
        return fill_pcm(kind(), pcm)

    def data(pcm: np.ndarray, stamp: Any) -> Any:
        msg = kind()
        msg.data = _little_endian(pcm)
        return msg

    def data_stamped(pcm: np.ndarray, stamp: Any) -> Any:
        msg = kind()
        msg.header.stamp = stamp
        msg.audio.data = _little_endian(pcm)
        return msg

    def stamped(pcm: np.ndarray, stamp: Any) -> Any:
        msg = kind()
        msg.header.stamp = stamp
        msg.audio.info.channels, msg.audio.info.rate, msg.audio.info.chunk = 1, rate, pcm.size
        msg.audio.info.format = 8  # paInt16
        msg.audio.audio_data.int16_data = array.array("h", _samples(pcm).tobytes())
        return msg

    def raw_audio(pcm: np.ndarray, stamp: Any) -> Any:
        msg = kind()
        msg.timestamp = stamp
        msg.format, msg.sample_rate, msg.number_of_channels = "pcm-s16", rate, 1
        msg.data = _little_endian(pcm)
        return msg

    if fields == {"layout": "std_msgs/MultiArrayLayout", "data": "sequence<int16>"}:
        return multi_array
    if fields == {"data": "sequence<uint8>"}:  # ros-drivers audio_common_msgs/AudioData
        return data
    if fields.get("audio") == "audio_common_msgs/AudioData":  # ros-drivers audio_common_msgs/AudioDataStamped
        return data_stamped
    if fields.get("audio") == "audio_common_msgs/Audio":  # mgonzs13's audio_common_msgs/AudioStamped
        return stamped
    if {"data", "format", "sample_rate", "number_of_channels"} <= fields.keys():  # foxglove_msgs/RawAudio
        return raw_audio
    raise InputError(f"{kind.__name__} has other fields than any supported audio type")


def _samples(pcm: np.ndarray) -> np.ndarray:
    return (np.clip(pcm, -1.0, 1.0) * 32767).round().astype(np.int16)


def _little_endian(pcm: np.ndarray) -> array.array:
    return array.array("B", _samples(pcm).astype("<i2").tobytes())
