"""Scenes as figures, and pictures of them by Pillow, another hand than the training's, for evaluation and demos. No torch."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from training import domain

RGB = {
    "red": (205, 35, 35), "green": (40, 150, 55), "blue": (40, 75, 200), "yellow": (235, 210, 45), "orange": (240, 130, 25),
    "purple": (130, 50, 160), "white": (242, 242, 242), "black": (22, 22, 22),
}  # fmt: skip
CENTRE = {"left": 0.2, "middle": 0.5, "right": 0.8}


def describe(rnd, scene: list | None) -> np.ndarray:
    """float32 [9, 7]: used, colour, shape, x, y, radius (of the picture's width), turn"""
    out = np.zeros((9, 7), np.float32)
    cells = rnd.sample(range(9), 9)
    for i, (slot, colour, shape) in enumerate(scene or []):
        if slot == "crowd":  # cells of a grid, small figures
            x, y = (cells[i] % 3 + 0.5) / 3 + rnd.uniform(-0.05, 0.05), (cells[i] // 3 + 0.5) / 3 + rnd.uniform(-0.04, 0.04)
            radius = rnd.uniform(0.06, 0.09)
        else:
            x, y = CENTRE[slot] + rnd.uniform(-0.06, 0.06), rnd.uniform(0.3, 0.7)
            radius = rnd.uniform(0.07, 0.135) if len(scene) > 1 else rnd.uniform(0.07, 0.19)
        out[i] = (1, domain.COLOURS.index(colour), domain.SHAPES.index(shape), x, y, radius, rnd.uniform(-0.45, 0.45))
    return out


def draw(rnd, scene: list | None, width: int = 640, height: int = 480) -> np.ndarray:
    """uint8 [H, W, 3] by Pillow: flat shapes with a thin shadow on a soft background, noise."""
    base = rnd.uniform(0.35, 0.65) * 255
    tint = [base + rnd.uniform(-10, 10) for _ in range(3)]
    ramp = np.linspace(-1, 1, width)[None, :, None] * rnd.uniform(-15, 15) + np.linspace(-1, 1, height)[
        :, None, None
    ] * rnd.uniform(-15, 15)
    image = Image.fromarray((np.array(tint)[None, None] + ramp).clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for used, colour, shape, x, y, radius, turn in describe(rnd, scene):
        if not used:
            continue
        cx, cy, radius = x * width, y * height, radius * width
        rgb = tuple(int(min(255, max(0, v * rnd.uniform(0.92, 1.05)))) for v in RGB[domain.COLOURS[int(colour)]])
        name = domain.SHAPES[int(shape)]
        if name == "circle":
            pen.ellipse([cx - 0.9 * radius, cy - 0.9 * radius, cx + 0.9 * radius, cy + 0.9 * radius], fill=rgb)
            continue
        n, first, size = {"square": (4, math.pi / 4, 1.1), "triangle": (3, 0, 1.15), "star": (10, 0, 1.15)}[name]
        points = []
        for i in range(n):
            angle = first + 2 * math.pi * i / n + turn
            reach = size * radius * (0.45 if name == "star" and i % 2 else 1)
            points.append((cx + reach * math.sin(angle), cy - reach * math.cos(angle)))
        pen.polygon(points, fill=rgb)
    image = image.filter(ImageFilter.GaussianBlur(rnd.uniform(0, 2)))
    noisy = np.asarray(image).astype(np.float32) + np.random.default_rng(rnd.randrange(1 << 30)).normal(
        0, rnd.uniform(1, 8), (height, width, 3)
    )
    return noisy.clip(0, 255).astype(np.uint8)
