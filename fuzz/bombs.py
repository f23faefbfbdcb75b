"""Small files that want to be large: how much memory and time does each of them take?

    python -m fuzz.bombs

prints one JSON line per file: its name, bytes on disk, MB of memory above idle at the peak, seconds, and what came of it.
The last line is what stays after all of them. Limits are those of a Thinker built for 4,096 rows.
"""

import ctypes
import gc
import json
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

from omni_ros.errors import InputError
from omni_ros.preprocess.audio import load_audio, log_mel
from omni_ros.preprocess.image import VisionConfig, image_patches
from omni_ros.preprocess.video import load_video, video_patches

VISION = VisionConfig(16, 2, 2, (0.5,) * 3, (0.5,) * 3, 3136, 12845056, 131072, 786432, 4, 768)  # of the published checkpoint
ROWS = 4096  # of the prompt
SECONDS = ROWS / 13
SIDE_8K = (7680, 4320)


def hear(path: Path) -> None:
    log_mel(load_audio(path, SECONDS))


def look(path: Path) -> None:
    image_patches(path, VISION, 307200, ROWS)


def watch(path: Path) -> None:
    video_patches(load_video(path, 2.0, VISION, ROWS), 2.0, VISION, ROWS)


def wav(path: Path, rate: int, channels: int, seconds: float, bits: int = 16) -> None:
    """Silence that takes no room on disk."""
    block = channels * bits // 8
    size = int(rate * seconds) * block
    header = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * block & 0xFFFFFFFF, block, bits)
    with open(path, "wb") as file:
        file.write(b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + header + b"data" + struct.pack("<I", size))
        file.truncate(44 + size)


def flac(path: Path, seconds: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=8000, layout="mono")
        for second in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, 8000 * second
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def png(path: Path, width: int, height: int, colour: int, bits: int) -> None:
    """Black, whatever the number of channels."""
    row = bytes(1 + -(-width * bits * {0: 1, 2: 3, 6: 4}[colour] // 8))
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def picture(path: Path, size: tuple[int, int], kind: str, mode: str = "RGB", **options: object) -> None:
    Image.new(mode, size).save(path, kind, **options)


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(path, SIDE_8K, "JPEG", exif=exif)


def film(path: Path, width: int, height: int, frames: int, rate: int, codec: str = "mpeg4") -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, width=width, height=height, pix_fmt="yuv420p")
        frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
        for pts in range(frames):
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def chopped_film(path: Path) -> None:
    """A container that claims a billion frames and holds ten."""
    film(path, 640, 480, 10, 10)
    whole = path.read_bytes()
    at = whole.index(b"stts") + 8  # one entry: how many frames of which duration
    path.write_bytes(whole[: at + 4] + struct.pack(">I", 10**9) + whole[at + 8 :])


BOMBS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "one_hertz.wav": (hear, lambda p: wav(p, 1, 1, 16000)),
    "two_hours.wav": (hear, lambda p: wav(p, 16000, 1, 7200)),
    "two_hours_64_channels.wav": (hear, lambda p: wav(p, 8000, 64, 3600, 8)),
    "five_minutes_384_kHz.wav": (hear, lambda p: wav(p, 384000, 2, 300)),
    "two_hours.flac": (hear, lambda p: flac(p, 7200)),
    "13300x13300.png": (look, lambda p: png(p, 13300, 13300, 0, 1)),
    "8k_grey_16_bit.png": (look, lambda p: png(p, *SIDE_8K, 0, 16)),
    "8k_rgb_16_bit.png": (look, lambda p: png(p, *SIDE_8K, 2, 16)),
    "8k_rgba.png": (look, lambda p: png(p, *SIDE_8K, 6, 8)),
    "8k_palette.gif": (look, lambda p: picture(p, SIDE_8K, "GIF", "P")),
    "8k.jpg": (look, lambda p: picture(p, SIDE_8K, "JPEG")),
    "8k_progressive.jpg": (look, lambda p: picture(p, SIDE_8K, "JPEG", progressive=True)),
    "8k_rotated.jpg": (look, rotated),
    "8k_cmyk.tiff": (look, lambda p: picture(p, SIDE_8K, "TIFF", "CMYK", compression="tiff_adobe_deflate")),
    "30000x30000.tiff": (look, lambda p: picture(p, (30000, 30000), "TIFF", "1", compression="group4")),
    "65500x65500.gif": (look, lambda p: p.write_bytes(b"GIF89a" + struct.pack("<HH", 65500, 65500) + bytes(3) + b"\x3b")),
    "16383x16383.webp": (look, lambda p: p.write_bytes(webp_header(16383, 16383))),
    "thirty_seconds_1080p.mp4": (watch, lambda p: film(p, 1920, 1080, 300, 10)),
    "an_hour.avi": (watch, lambda p: film(p, 64, 64, 36000, 10)),
    "two_frames_4k.mp4": (watch, lambda p: film(p, 4096, 2304, 2, 1)),
    "larger_than_4k.avi": (watch, lambda p: film(p, 4112, 2304, 2, 1)),
    "a_billion_frames.mp4": (watch, chopped_film),
}


def webp_header(width: int, height: int) -> bytes:
    """A lossless WebP that says how large it is and ends there."""
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<I", 16) + b"\x2f" + struct.pack("<I", bits) + bytes(11)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def memory(name: str) -> float:
    """MB of this process: VmRSS now, VmHWM at the peak since `forget_peak`."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free, to the system: so that what is left is what is held
    Path("/proc/self/clear_refs").write_text("5")


def explode() -> Iterator[dict[str, object]]:
    """Each of BOMBS in turn, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, make) in BOMBS.items():
            make(Path(folder) / name)
        for good in (
            (lambda p: wav(p, 16000, 1, 1), hear),
            (lambda p: png(p, 640, 480, 2, 8), look),
            (lambda p: film(p, 320, 240, 9, 3), watch),
        ):
            good[0](Path(folder) / "good.mp4")
            good[1](Path(folder) / "good.mp4")
        forget_peak()
        idle = memory("VmRSS")
        for name, (use, _) in BOMBS.items():
            path = Path(folder) / name
            forget_peak()
            start = time.monotonic()
            try:
                use(path)
                result = "taken"
            except InputError as e:
                result = f"{type(e).__name__}: {str(e).replace(folder, '')}"
            seconds = time.monotonic() - start
            yield {
                "name": name,
                "bytes": path.stat().st_blocks * 512,
                "peak_mb": round(memory("VmHWM") - idle),
                "seconds": round(seconds, 2),
                "result": result,
            }
        forget_peak()
        yield {"name": "after all", "stays_mb": round(memory("VmRSS") - idle), "idle_mb": round(idle)}


def main() -> int:
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    for line in explode():
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
