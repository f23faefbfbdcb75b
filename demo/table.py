"""The camera of the demo: a table seen from above, coloured shapes on it, drawn by Pillow."""

import io
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 640, 480
WOOD = (150, 122, 96)
COLOURS = {
    "red": (205, 35, 35), "green": (40, 150, 55), "blue": (40, 75, 200), "yellow": (235, 210, 45), "orange": (240, 130, 25),
    "purple": (130, 50, 160), "white": (242, 242, 242), "black": (22, 22, 22),
}  # fmt: skip
PLACES = {"left": (128, 250), "middle": (320, 225), "right": (512, 245)}  # pixels
RADIUS = 62
SHADOW = 3
# corners, angle of the first one, how far they reach: alternately this and 0.45 of it for a star
POLYGONS = {"square": (4, math.pi / 4, 1.1), "triangle": (3, 0.0, 1.15), "star": (10, 0.0, 1.2)}
NOISE = 3.0  # of 255, standard deviation

Picture = Image.Image
Scene = tuple[tuple[str, str, str], ...]  # (place, colour, shape), left to right


@lru_cache
def _wood() -> Picture:
    """A grain that runs from left to right, and light from the upper left."""
    rng = np.random.default_rng(7)
    grain = np.cumsum(rng.normal(0, 1.2, (HEIGHT, 1)), axis=0)
    grain = 6 * np.sin(grain + np.linspace(0, 3, WIDTH)[None])
    light = np.linspace(10, -10, WIDTH)[None] + np.linspace(8, -8, HEIGHT)[:, None]
    pixels = np.array(WOOD) + (grain + light + rng.normal(0, NOISE, grain.shape))[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _place(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, turn: float, fill: tuple) -> None:
    if shape == "circle":
        reach = 0.9 * RADIUS
        pen.ellipse([x - reach, y - reach, x + reach, y + reach], fill=fill)
        return
    corners, first, size = POLYGONS[shape]
    points = []
    for corner in range(corners):
        angle = first + turn + 2 * math.pi * corner / corners
        reach = size * RADIUS * (0.45 if shape == "star" and corner % 2 else 1)
        points.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
    pen.polygon(points, fill=fill)


def draw(shapes: Sequence[tuple[Scene, tuple[float, float]]]) -> Picture:
    """RGB, 640x480: scenes, each so many pixels away from its place."""
    image = _wood().copy()
    pen = ImageDraw.Draw(image)
    for scene, (right, down) in shapes:
        for number, (place, colour, shape) in enumerate(scene):
            x, y, turn = PLACES[place][0] + right, PLACES[place][1] + down, 0.12 * (1 - number)
            _place(pen, shape, x + SHADOW, y + SHADOW, turn, tuple(int(0.6 * value) for value in WOOD))
            _place(pen, shape, x, y, turn, COLOURS[colour])
    return image


def jpeg(picture: Picture) -> bytes:
    """As a camera's driver sends it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()
