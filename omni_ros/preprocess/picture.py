"""Picture files and compressed pictures as untrusted input: a short list of formats, a size limit before any pixel is decoded."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from omni_ros.errors import InputError
from omni_ros.preprocess.media import open_regular

# Pillow reads forty more, among them EPS by starting Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 7680 * 4320  # an 8K frame; Pillow holds 4 bytes a pixel, and twice that while it converts
MAX_BYTES = 128 << 20  # of the file: some readers take it into memory whole
STRIP = 64  # rows of a picture
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Picture:
    """A picture whose header was read and found acceptable."""

    name: str
    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as stored; EXIF may ask to swap them."""
        return self.image.height, self.image.width

    def rgb(self) -> Image.Image:
        """Decode: 8-bit RGB, upright by its EXIF orientation, alpha dropped."""
        image = self.image
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in SIXTEEN_BITS or image.mode == "I" and image.format in ("PNG", "PPM"):
            return self._high_byte().convert("RGB")
        if image.mode in ("I", "F"):
            raise InputError(
                f"{self.name}: its pixels are {'integers of 32 bits' if image.mode == 'I' else 'floats'}, whose black and white "
                "nobody has written down: convert it to 8 bits"
            )
        return image if image.mode == "RGB" else image.convert("RGB")  # converting RGB to RGB is a copy

    def _high_byte(self) -> Image.Image:
        """16-bit grey as 8-bit: as Pillow itself reads 16-bit RGB. Its own conversion of grey would clip at 255."""
        bits = self.image.tag_v2.get(258, (16,)) if isinstance(self.image, TiffImageFile) else (16,)
        values = np.asarray(self.image)
        if bits != (16,) or values.min() < 0 or values.max() > 0xFFFF:
            raise InputError(f"{self.name}: grey of {bits[0]} bits is not supported: convert it to 8 bits")
        return Image.fromarray((values >> 8).astype(np.uint8))


def rgb_array(image: Image.Image) -> np.ndarray:
    """8-bit RGB -> uint8 [H, W, 3]. In strips: Pillow's own way holds the pixels three times meanwhile."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        bottom = min(top + STRIP, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


@contextmanager
def open_picture(
    source: str | Path | bytes | memoryview, name: str | None = None, formats: tuple[str, ...] = FORMATS
) -> Iterator[Picture]:
    """A picture file, or the bytes of one: header read, pixels not yet decoded (`rgb()` does it).

    Everything that goes wrong inside the `with` is an InputError that names the file, or `name`: not a regular file, of
    a format outside `formats`, damaged, larger than MAX_PIXELS or MAX_BYTES, of pixels without a defined white.
    """
    name = name or (str(source) if isinstance(source, (str, Path)) else "picture")
    try:
        with open_regular(source) if isinstance(source, (str, Path)) else nullcontext(BytesIO(source)) as file:
            if file.seek(0, 2) > MAX_BYTES:
                raise InputError(f"{name}: {file.tell() >> 20} MiB are too much for a picture, the limit is {MAX_BYTES >> 20}")
            file.seek(0)
            with Image.open(file, formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(
                        f"{name}: {image.width} x {image.height} pixels are too many, the limit is {MAX_PIXELS}: make it smaller"
                    )
                yield Picture(name, image)
    except InputError:
        raise
    except MemoryError as e:
        raise InputError(f"{name}: there is not enough memory to decode it") from e
    except UnidentifiedImageError as e:
        raise InputError(f"{name}: not a readable image: damaged, or none of {', '.join(formats)}") from e
    except Exception as e:  # noqa: BLE001 - on damaged files Pillow's readers raise nearly anything
        raise InputError(f"{name}: not a readable image ({e})") from e
