"""The silhouettes of all nouns as polygons in the unit square from -1 to 1, y down."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]
"""Corner points, shape ``[corners, 2]``, last column x and y."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """How a noun is cut out: the bodies joined, then the holes taken away, then the details painted over."""

    bodies: tuple[Polygon, ...]
    """Filled polygons; the silhouette is their union."""
    holes: tuple[Polygon, ...] = ()
    """Polygons cut out of the union."""
    details: tuple[tuple[Polygon, float], ...] = ()
    """Polygons painted inside the silhouette, each with the factor its colour is multiplied by."""


@cache
def outline(noun: str) -> Outline:
    """Look up the silhouette of a noun in the singular."""
    return _OUTLINES[noun]()


def _points(*pairs: tuple[float, float]) -> Polygon:
    return np.array(pairs, dtype=np.float64)


def _ellipse(rx: float, ry: float, x: float = 0.0, y: float = 0.0, corners: int = 40) -> Polygon:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _polar(radius: NDArray[np.float64], angle: NDArray[np.float64]) -> Polygon:
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _square() -> Outline:
    return Outline(bodies=(_points((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)),))


def _triangle() -> Outline:
    return Outline(bodies=(_points((0, -0.95), (1, 0.85), (-1, 0.85)),))


def _star() -> Outline:
    radius = np.tile([1.0, 0.42], 5)
    return Outline(bodies=(_polar(radius, np.arange(10) * np.pi / 5),))


def _cross() -> Outline:
    upright = _points((-0.31, -0.95), (0.31, -0.95), (0.31, 0.95), (-0.31, 0.95))
    return Outline(bodies=(upright, upright[:, ::-1]))


def _arrow() -> Outline:
    shaft = _points((-1, -0.24), (0.1, -0.24), (0.1, 0.24), (-1, 0.24))
    return Outline(bodies=(shaft, _points((0.02, -0.75), (1, 0), (0.02, 0.75))))


def _moon() -> Outline:
    return Outline(bodies=(_ellipse(0.95, 0.95),), holes=(_ellipse(0.85, 0.85, 0.58, -0.12),))


def _mushroom() -> Outline:
    angle = np.linspace(-np.pi / 2, np.pi / 2, 24)
    cap = np.concatenate([_polar(np.full(24, 1.0), angle) * [1, 0.95], _points((0.8, 0.16), (-0.8, 0.16))])
    stem = _points((-0.26, 0.1), (0.26, 0.1), (0.36, 0.95), (-0.36, 0.95))
    return Outline(bodies=(cap, stem), details=((stem, 1.35),))


def _heart() -> Outline:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return Outline(bodies=(np.stack([x / 16.5, -y / 15.5 - 0.12], axis=1),))


def _drop() -> Outline:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 0.92 * np.sin(t) * np.sin(t / 2) ** 1.6
    return Outline(bodies=(np.stack([x, -np.cos(t)], axis=1),))


def _flower() -> Outline:
    petals = tuple(_ellipse(0.4, 0.4, 0.58 * np.sin(a), -0.58 * np.cos(a), 24) for a in np.arange(5) * 2 * np.pi / 5)
    middle = _ellipse(0.3, 0.3, corners=24)
    return Outline(bodies=(*petals, middle), details=((middle, 0.45),))


def _house() -> Outline:
    walls = _points((-0.68, -0.1), (0.68, -0.1), (0.68, 0.95), (-0.68, 0.95))
    roof = _points((0, -0.98), (1, -0.08), (-1, -0.08))
    door = _points((-0.18, 0.38), (0.18, 0.38), (0.18, 0.95), (-0.18, 0.95))
    return Outline(bodies=(walls, roof), details=((roof, 0.68), (door, 0.4)))


def _bolt() -> Outline:
    zigzag = _points((0.2, -1), (-0.62, 0.16), (-0.08, 0.16), (-0.3, 1), (0.62, -0.26), (0.06, -0.26), (0.56, -1))
    return Outline(bodies=(zigzag,))


def _fish() -> Outline:
    body, tail = _ellipse(0.72, 0.5, 0.26), _points((-0.3, 0), (-1, -0.55), (-0.82, 0), (-1, 0.55))
    return Outline(bodies=(body, tail), details=((_ellipse(0.1, 0.1, 0.6, -0.12, 16), 0.15),))


_OUTLINES: dict[str, Callable[[], Outline]] = {
    "circle": lambda: Outline(bodies=(_ellipse(0.95, 0.95),)),
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": lambda: Outline(bodies=(_ellipse(0.97, 0.97),), holes=(_ellipse(0.52, 0.52),)),
    "cross": _cross,
    "diamond": lambda: Outline(bodies=(_points((0, -1), (0.64, 0), (0, 1), (-0.64, 0)),)),
    "arrow": _arrow,
    "moon": _moon,
    "mushroom": _mushroom,
    "heart": _heart,
    "drop": _drop,
    "flower": _flower,
    "house": _house,
    "bolt": _bolt,
    "fish": _fish,
}
