"""Media files as untrusted input: a regular file, a container and a codec from short lists, and never another file.

FFmpeg takes a name as an address: `http:/host/a.wav`, `concat:...`, a playlist or an edit list makes it open what the
name or the file says. Here it only ever gets an open Python file, and every request for a second one is refused.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

import av

from omni_ros.errors import InputError

# Demuxers that hold their media themselves. No playlist (hls, dash, concat, sdp) and no image sequence.
CONTAINERS = "wav,w64,aiff,au,flac,mp3,aac,ogg,mov,mp4,matroska,webm,avi,mpegts,mpeg,flv"
AUDIO_CODECS = (
    *(f"pcm_{name}" for name in ("u8", "s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be", "f64le", "f64be")),
    *("pcm_alaw", "pcm_mulaw", "adpcm_ms", "adpcm_ima_wav", "flac", "mp3", "mp3float", "aac", "vorbis", "libvorbis", "opus"),
    "libopus",
)
VIDEO_CODECS = (
    *("h264", "hevc", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d", "libaom-av1"),
    *("mpeg4", "mpeg1video", "mpeg2video", "mjpeg", "theora"),
)
MAX_FRAME_PIXELS = 4096 * 2304  # of a video frame: FFmpeg refuses to decode larger ones


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. A FIFO, device, socket or folder is refused, and none of them can block.

    Raises InputError naming the file.
    """
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY))
    except (OSError, ValueError) as e:  # ValueError: a zero byte, half a surrogate pair
        raise InputError(f"{path}: cannot be opened ({e})") from e
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InputError(f"{path}: not a regular file")
    return file


@contextmanager
def open_container(path: str | Path, what: str) -> Iterator[av.container.InputContainer]:
    """The file as an FFmpeg container; everything that goes wrong inside the `with` is an InputError naming the file.

    `what` is the kind of file that was asked for, for the message.
    """
    options = {
        "format_whitelist": CONTAINERS,
        "codec_whitelist": ",".join(AUDIO_CODECS + VIDEO_CODECS),  # also while FFmpeg looks at the streams, before we do
        "protocol_whitelist": "none",
        "max_pixels": str(MAX_FRAME_PIXELS),
    }
    try:
        with open_regular(path) as file:
            with av.open(file, "r", options=options, metadata_errors="replace", io_open=_no_second_file) as container:
                yield container
    except InputError:
        raise
    except av.ArgumentError as e:  # what FFmpeg says of a container outside the list
        raise InputError(f"{path}: not a readable {what} file: damaged, or none of {CONTAINERS}") from e
    except Exception as e:  # noqa: BLE001 - on damaged files PyAV raises nearly anything, from ValueError to MemoryError
        raise InputError(f"{path}: not a readable {what} file ({e})") from e


def check_codec(path: str | Path, context: av.CodecContext | None, allowed: tuple[str, ...]) -> None:
    """Raise InputError unless the stream is coded in a way that is decoded here."""
    if context is None or context.name not in allowed:
        name = "an unknown codec" if context is None else context.name
        raise InputError(f"{path}: is coded as {name}, which is not decoded here: convert it to WAV or FLAC, video to H.264")


def _no_second_file(url: str, *_: object) -> NoReturn:
    raise PermissionError(f"it names another file or address, {url[:80]!r}")
