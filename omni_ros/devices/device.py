"""Which device a name means: a sound card, a WAV file, or nothing.

A source has `rate`, `channels`, `overflows`, `available()`, `read(frames)`, `close()`; a sink `rate`, `channels`, `underflows`,
`room()`, `write(pcm)`, `close()`. None of them ever waits.
"""

from pathlib import Path

import numpy as np

from omni_ros.devices.paced import PacedSink, PacedSource, read_wav
from omni_ros.dialogue.clock import Clock
from omni_ros.errors import DeviceError

LATENCY = 0.06  # seconds that a sound card is asked to hold: what a stop cannot recall, and what a busy machine may be late
FILE_RATE = 48000  # Hz of a WAV file that is played into


def open_source(name: str, rate: int, channels: int, clock: Clock):
    """`name`: `null`, `file:PATH` of a WAV file, or a sound card as in portaudio.find. DeviceError says why not."""
    if name == "null":
        return PacedSource(np.zeros((0, channels or 1), np.float32), rate or 16000, clock)
    if name.startswith("file:"):
        pcm, own_rate = read_wav(Path(name.removeprefix("file:")).expanduser())
        return PacedSource(pcm, own_rate, clock)
    from omni_ros.devices.portaudio import InputStream

    return InputStream(name, rate, channels, LATENCY)


def open_sink(name: str, rate: int, channels: int, clock: Clock):
    if name == "null" or name.startswith("file:"):
        path = Path(name.removeprefix("file:")).expanduser() if name != "null" else None
        return PacedSink(path, rate or FILE_RATE, channels or 1, clock)
    from omni_ros.devices.portaudio import OutputStream

    return OutputStream(name, rate, channels, LATENCY)


def check_source(name: str) -> None:
    """DeviceError for what waiting does not cure: a file that is not there, a library that is not installed.

    A sound card that is not there may still come: it is waited for (reconnect.py).
    """
    if name.startswith("file:"):
        read_wav(Path(name.removeprefix("file:")).expanduser())
    else:
        check_sink(name)


def check_sink(name: str) -> None:
    folder = Path(name.removeprefix("file:")).expanduser().parent
    if name.startswith("file:") and not folder.is_dir():
        raise DeviceError(f"{folder}: not a folder, so {name} cannot be written")
    if name != "null" and not name.startswith("file:"):
        from omni_ros.devices.portaudio import devices

        devices()
