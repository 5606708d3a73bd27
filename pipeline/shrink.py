"""Read, shrink and encode pixels with OpenCV: the pictures of img2dataset's ``Resizer``, to the byte.

The ``Resizer`` itself is not called: it wants albumentations in every decoder, and spends a tenth of its time on
objects and redirected streams around the three calls below. This module loads OpenCV; import it late.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""Height × width × 3, blue first."""

cv2.setNumThreads(1)  # decoders are processes, and OpenCV's threads do not survive the fork that makes them


def read(data: bytes) -> Pixels | None:
    """Decode a JPEG as its pixels lie; None if OpenCV does not take it.

    Raises:
        MemoryError: there was not enough, as in all that follow.
    """
    try:
        with _memory_errors():
            return cast("Pixels | None", cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    except cv2.error:
        return None


def from_rgb(pixels: Pixels) -> Pixels:
    """Put blue first."""
    with _memory_errors():
        return cast("Pixels", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))


def grey(pixels: Pixels) -> Pixels:
    """Weigh the colours as the eye does; height × width."""
    with _memory_errors():
        return cast("Pixels", cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))


def shrink(pixels: Pixels, width: int, height: int) -> Pixels:
    """Average the pixels under each new one."""
    with _memory_errors():
        return cast("Pixels", cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))


def to_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encode, with a quality of 1 to 100."""
    with _memory_errors():
        return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Tell lack of memory from what else OpenCV does not like; both are one type to it."""
    try:
        yield
    except cv2.error as error:
        if "alloc" in str(error):
            raise MemoryError(str(error)) from error
        raise
