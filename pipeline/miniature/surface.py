"""What lies behind the objects: soft, varied, and never to be taken for an object."""

from colorsys import hsv_to_rgb
from random import Random

import numpy as np
from PIL import Image, ImageDraw

MOODS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "light": ((0.0, 1.0), (0.06, 0.26), (0.78, 0.96)),
    "middle": ((0.0, 1.0), (0.10, 0.30), (0.50, 0.75)),
    "dark": ((0.55, 0.80), (0.25, 0.55), (0.16, 0.32)),
    "grey": ((0.0, 1.0), (0.0, 0.06), (0.40, 0.70)),
    "water": ((0.46, 0.58), (0.30, 0.60), (0.45, 0.80)),
}
"""Ranges of hue, saturation and value of a background."""


def paint_surface(rng: Random, mood: str, size: tuple[int, int]) -> Image.Image:
    """Paint a soft surface: two colours flowing into each other, cloudy, with faint strokes and specks."""
    colours = np.array([_mood_colour(rng, mood) for _ in range(2)], dtype=np.float32)
    y, x = np.mgrid[:24, :24].astype(np.float32) / 24 - 0.5
    if rng.random() < 0.3:  # a glow
        flow = np.hypot(x - rng.uniform(-0.3, 0.3), y - rng.uniform(-0.3, 0.3)) * 1.3
    else:
        angle, steepness = rng.uniform(0, 2 * np.pi), rng.choice((1, 1, 1, 5))
        flow = (x * np.cos(angle) + y * np.sin(angle)) * steepness + 0.5
    columns, rows = rng.randint(2, 6), rng.randint(2, 6)
    clouds = Image.frombytes("RGB", (columns, rows), rng.randbytes(columns * rows * 3))
    soft = np.asarray(clouds.resize((24, 24), Image.Resampling.BICUBIC), dtype=np.float32) - 128
    small = colours[0] + (colours[1] - colours[0]) * np.clip(flow, 0, 1)[..., None] + soft * rng.uniform(0.03, 0.14)
    surface = Image.fromarray(np.clip(small, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    return Image.blend(surface, _strewn(rng, surface), rng.uniform(0.08, 0.22))


def _mood_colour(rng: Random, mood: str) -> tuple[int, int, int]:
    hue, saturation, value = (rng.uniform(*span) for span in MOODS[mood])
    red, green, blue = hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _strewn(rng: Random, surface: Image.Image) -> Image.Image:
    """Draw strokes and specks in black and white over a copy of the surface."""
    strewn = surface.copy()
    pen = ImageDraw.Draw(strewn)
    width, height = surface.size
    for _ in range(rng.randint(0, 7)):
        x, y, reach, begin = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(50, 230), rng.uniform(0, 360)
        frame = (x - reach, y - reach, x + reach, y + reach)
        pen.arc(frame, begin, begin + rng.uniform(15, 60), fill=rng.choice(("black", "white")), width=rng.randint(1, 4))
    for _ in range(rng.choice((0, 0, 12, 40))):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.5, 2)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=rng.choice(("black", "white")))
    return strewn
