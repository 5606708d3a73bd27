"""A perceptual hash: 64 bits that stay nearly the same when a picture is resized or compressed again.

Each bit says whether one of the 64 slowest cosine waves (the DCT's lowest frequencies) is among the stronger half of
them in the picture. Two pictures of the same scene differ in a few bits, unrelated ones in about 32.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_WAVES = 8
_FLAT = 0.05
"""Waves weaker than this, in grey levels, count as none: those of an even picture are rounding noise."""


def phash(grey: npt.NDArray[np.uint8]) -> int:
    """Hash the grey pixels of an upright picture, height × width; any size will do.

    Returns:
        A signed number of 64 bits.
    """
    if grey.ndim != 2 or 0 in grey.shape:
        raise ValueError(f"pixels have shape {grey.shape} but must be height × width; convert colours to grey first")
    height, width = grey.shape
    waves = _waves(height) @ grey.astype(np.float32) @ _waves(width).T
    waves[np.abs(waves) < _FLAT] = 0
    waves[0, 0] = 0  # the mean brightness, which is stronger than all else in any picture
    bits = waves.ravel() > np.sort(waves, axis=None)[waves.size // 2 - 1]
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)


def distance(a: int, b: int) -> int:
    """Count the bits in which two hashes differ, 0 to 64."""
    return ((a ^ b) & (1 << 64) - 1).bit_count()


@lru_cache(maxsize=512)
def _waves(size: int) -> npt.NDArray[np.float32]:
    """Sample the slowest cosine waves at the middle of each pixel; their strength does not depend on the size."""
    places = (np.arange(size) + 0.5) * (np.pi / size)
    waves = np.cos(np.outer(np.arange(_WAVES), places)) * (2**0.5 / size)
    waves[size:] = 0  # faster than the pixels can show
    return waves.astype(np.float32)
