"""From a style and a seed to a picture and the exact boxes of what can be seen in it."""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from pipeline.miniature.grammar import BASE_NOUNS, COLOURS, TEXTURES, Look, Thing
from pipeline.miniature.shapes import Polygon, outline
from pipeline.miniature.surface import paint_surface

Mask = NDArray[np.bool_]

SCALE = 2
"""Canvas pixels per picture pixel; the canvas is shrunk at the end, which smooths all edges."""
SMALL, BIG = 0.23, 0.36
"""Sizes below and above which an object is called small or big, as a part of the picture's side."""
MIN_VISIBLE = 0.6
"""Every object that is drawn shows at least this part of itself; one that would not is put elsewhere."""

_RGB = {
    "red": (212, 44, 48),
    "orange": (242, 138, 32),
    "yellow": (248, 216, 64),
    "green": (62, 158, 76),
    "blue": (48, 104, 208),
    "purple": (126, 66, 176),
    "pink": (246, 150, 190),
    "white": (246, 245, 240),
}
_CREAM = np.array((253, 245, 224), dtype=np.float32)
_DARK_PATTERN = ("yellow", "pink", "white")
"""Colours too light for cream stripes and dots; theirs are a darker shade."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """What the pictures of one part of the world have in common."""

    nouns: tuple[str, ...] = BASE_NOUNS
    """What may be drawn."""
    first_nouns: tuple[str, ...] = ()
    """What the first object may be, if that is narrower."""
    colours: tuple[str, ...] = COLOURS
    """Colours to choose from."""
    textures: tuple[str, ...] = TEXTURES
    """Textures to choose from; the first is as frequent as all others together."""
    num_objects: tuple[int, int] = (2, 5)
    """Fewest and most objects; fewer where no room is left."""
    size: tuple[float, float] = (0.18, 0.42)
    """Smallest and largest extent of an object, as a part of the picture's shorter side."""
    width: tuple[float, float] = (0.875, 1.125)
    """Range of picture widths, as a part of the world's picture size."""
    height: tuple[float, float] = (0.875, 1.125)
    """The same for heights."""
    moods: tuple[str, ...] = ("light", "light", "light", "middle", "dark")
    """Backgrounds to choose from, keys of `surface.MOODS`."""
    tilt: float = 0.12
    """Largest rotation of an object either way, radian."""
    crowding: float = 0.15
    """Probability that an object may hide a part of others."""
    repeats: float = 0.3
    """Probability that an object looks like the one before it."""
    noise: float = 3.0
    """Largest standard deviation of the noise, grey levels."""
    opacity: float = 1.0
    """How much of an object's own colour covers what is behind it, 0 to 1."""
    greyscale: bool = False
    """Whether pictures have one channel."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What is known about a drawn picture."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    things: tuple[Thing, ...]
    """All objects in it, from back to front; at least one."""


@dataclass(frozen=True, kw_only=True)
class _Stamp:
    """An object ready to be pressed onto the canvas."""

    look: Look
    mask: Mask
    """Its silhouette."""
    tone: NDArray[np.uint8]
    """Colour of each pixel of the mask's rectangle."""
    left: int = 0
    top: int = 0

    def cut(self, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Slice the canvas and the stamp to what they have in common."""
        rows, columns = self.mask.shape
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + rows, height), min(self.left + columns, width)
        inside = (slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left))
        return (slice(top, bottom), slice(left, right)), inside


def draw_picture(style: Style, side_px: int, seed: str) -> tuple[Image.Image, Picture]:
    """Draw one picture; the same arguments give the same pixels on any machine of one Pillow version."""
    rng = Random(seed)
    width, height = (round(side_px * rng.uniform(*span)) for span in (style.width, style.height))
    stage = _arrange(rng, style, width * SCALE, height * SCALE)
    canvas = paint_surface(rng, rng.choice(style.moods), (width * SCALE, height * SCALE))
    for stamp in stage.stamps:
        _press(canvas, stamp, style.opacity)
    things = tuple(
        Thing(look=stamp.look, box=_visible_box(stage.owner == number)) for number, stamp in enumerate(stage.stamps, 1)
    )
    return _develop(rng, style, canvas, (width, height)), Picture(width=width, height=height, things=things)


class _Stage:
    """Where the objects of a picture find their places, from back to front."""

    def __init__(self, width: int, height: int) -> None:
        self.owner = np.zeros((height, width), dtype=np.uint8)
        """Who is seen at each canvas pixel: 0 the background, k the k-th stamp."""
        self.stamps: list[_Stamp] = []
        self.full: list[int] = []
        self.seen: list[int] = []

    def place(self, rng: Random, stamp: _Stamp, least: float) -> None:
        """Find a place where all keep at least this visible part of themselves; without one, leave the stamp out."""
        height, width = self.owner.shape
        rows, columns = stamp.mask.shape
        slack_x, slack_y, full = round(columns * 0.12), round(rows * 0.12), int(stamp.mask.sum())
        for _ in range(40):
            left = rng.randint(-slack_x, max(width - columns + slack_x, 0))
            top = rng.randint(-slack_y, max(height - rows + slack_y, 0))
            moved = replace(stamp, left=left, top=top)
            window, inside = moved.cut(height, width)
            own = stamp.mask[inside]
            hidden = np.bincount(self.owner[window][own], minlength=len(self.stamps) + 1)
            inside_count = int(hidden.sum())
            after = [seen - int(loss) for seen, loss in zip(self.seen, hidden[1:], strict=True)]
            # Only what is newly covered is asked: what was hidden before stays so.
            fits = all(a >= least * f for a, b, f in zip(after, self.seen, self.full, strict=True) if a < b)
            if fits and inside_count >= 0.8 * full:
                self.stamps.append(moved)
                self.owner[window][own] = len(self.stamps)
                self.seen, self.full = [*after, inside_count], [*self.full, full]
                return


def _arrange(rng: Random, style: Style, width: int, height: int) -> _Stage:
    """Choose objects and find a place for each."""
    stage = _Stage(width, height)
    while not stage.stamps:  # a single object always fits after a few tries
        for look, extent in _choose_looks(rng, style):
            stamp = _cut_out(rng, style, look, max(6, extent * min(width, height)))
            stage.place(rng, stamp, MIN_VISIBLE if rng.random() < style.crowding else 0.97)
    return stage


def _choose_looks(rng: Random, style: Style) -> list[tuple[Look, float]]:
    """Draw looks and extents; looks that differ do so in noun, colour or texture, never in size alone."""
    chosen: list[tuple[Look, float]] = []
    plain, *patterns = style.textures
    seen: set[tuple[str, str, str]] = set()
    for number in range(rng.randint(*style.num_objects)):
        if chosen and rng.random() < style.repeats:
            chosen.append(chosen[-1])
            continue
        noun = rng.choice(style.nouns if number or not style.first_nouns else style.first_nouns)
        colour = rng.choice(style.colours)
        texture = rng.choice(patterns) if patterns and rng.random() < 0.5 else plain
        extent = rng.uniform(*style.size)
        size = "small" if extent < SMALL else "big" if extent > BIG else ""
        if (noun, colour, texture) not in seen:
            seen.add((noun, colour, texture))
            chosen.append((Look(noun=noun, colour=colour, texture=texture, size=size), extent))
    return chosen


def _cut_out(rng: Random, style: Style, look: Look, extent: float) -> _Stamp:
    """Make the silhouette of an object, its longest side ``extent`` canvas pixels before it is turned, and paint it."""
    angle = rng.uniform(-style.tilt, style.tilt) + (np.pi * rng.randint(0, 1) if look.noun == "arrow" else 0)
    turn = np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    side = int(np.ceil(extent * 1.45)) + 2

    def fill(image: Image.Image, polygon: Polygon, value: int) -> None:
        points = polygon @ turn * (extent / 2) + side / 2
        ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=value)

    shape = outline(look.noun)
    solid, detail = Image.new("L", (side, side)), Image.new("L", (side, side), 100)
    for body in shape.bodies:
        fill(solid, body, 255)
    for hole in shape.holes:
        fill(solid, hole, 0)
    for polygon, factor in shape.details:
        fill(detail, polygon, round(factor * 100))
    window = solid.getbbox() or (0, 0, side, side)
    mask = np.asarray(solid.crop(window)) > 0
    tone = _texture(rng, look, mask.shape, extent)
    tone *= np.asarray(detail.crop(window), dtype=np.float32)[..., None] / 100
    tone[mask & ~_eroded(mask, 2 if extent > 36 else 1)] *= 0.55
    return _Stamp(look=look, mask=mask, tone=np.clip(tone, 0, 255).astype(np.uint8))


def _eroded(mask: Mask, reach: int) -> Mask:
    """Take the rim off a silhouette."""
    wide = np.pad(mask, reach)
    across, down = 2 * reach, -2 * reach
    return (
        wide[across:, reach:-reach]
        & wide[:down, reach:-reach]
        & wide[reach:-reach, across:]
        & wide[reach:-reach, :down]
    )


def _texture(rng: Random, look: Look, shape: tuple[int, ...], extent: float) -> NDArray[np.floating[Any]]:
    """Paint a rectangle in an object's colour and texture, lit from the upper left."""
    colour = np.array([level + rng.uniform(-10, 10) for level in _RGB[look.colour]], dtype=np.float32)
    second = colour * np.float32(0.58) if look.colour in _DARK_PATTERN else _CREAM
    height, width = shape
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) * (2 / extent)
    x = (np.arange(width, dtype=np.float32)[None, :] - width / 2) * (2 / extent)
    angle, step = rng.uniform(0, np.pi), 0.62 if extent < 48 else 0.5  # fewer, wider stripes on what is small
    across, along = np.float32(np.cos(angle) / step), np.float32(np.sin(angle) / step)
    u, v = x * across + y * along, y * across - x * along
    light = (1.04 - 0.1 * (x + y))[..., None]
    match look.texture:
        case "striped":
            marked = u % 1 < 0.42
        case "dotted":
            marked = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.3**2
        case "checkered":
            marked = (np.floor(u) + np.floor(v)) % 2 == 0
        case _:
            return colour * light
    return np.where(marked[..., None], second, colour) * light


def _press(canvas: Image.Image, stamp: _Stamp, opacity: float) -> None:
    """Paint an object and its soft shadow onto the canvas."""
    reach, area = 8, stamp.mask.astype(np.uint8)
    shadow = ImageOps.expand(Image.fromarray(area * round(97 * opacity)), reach).filter(ImageFilter.BoxBlur(4))
    canvas.paste((0, 0, 0), (stamp.left - reach + 3, stamp.top - reach + 5), shadow)
    canvas.paste(Image.fromarray(stamp.tone), (stamp.left, stamp.top), Image.fromarray(area * round(255 * opacity)))


def _develop(rng: Random, style: Style, canvas: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Shrink the canvas to the picture and add the grain of a camera."""
    small = canvas.resize(size, Image.Resampling.LANCZOS)
    if style.greyscale:
        small = small.convert("L")
    pixels = np.atleast_3d(np.asarray(small, dtype=np.float32))
    grain = np.random.default_rng(rng.getrandbits(64)).standard_normal((*pixels.shape[:2], 1), dtype=np.float32)
    pixels = pixels + grain * np.float32(rng.uniform(0.3, 1) * style.noise)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8).squeeze())


def _visible_box(mask: Mask) -> tuple[float, float, float, float]:
    """Enclose the visible part of an object, in picture pixels, right and bottom exclusive."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return float(x1 / SCALE), float(y1 / SCALE), float(x2 / SCALE), float(y2 / SCALE)
