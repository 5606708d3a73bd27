"""img2dataset's ``Resizer``, imported late and alone.

Its package imports PyTorch, pandas and a tracker of experiments on the way (6.6 CPU-s, 840 MB); the module of the
``Resizer`` needs OpenCV and albumentations only (1.5 CPU-s, 150 MB).
"""

import hashlib
import importlib.util
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from pipeline.phash import phash


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image ready to be stored; the names are those of `schema.IMAGES`."""

    data: bytes
    """The JPEG."""
    width: int
    """Pixels of the JPEG."""
    height: int
    """Pixels of the JPEG."""
    original_width: int
    """Pixels before it was shrunk."""
    original_height: int
    """Pixels before it was shrunk."""
    sha256: str
    """Hex digest of the JPEG."""
    phash: int
    """Perceptual hash of the pixels."""


Resize = Callable[[bytes], Picture | str]
"""Decode, shrink and encode one image, or give the error. One thread at a time: it redirects stdout meanwhile."""


class _Look:
    """Hashes the pixels about to be encoded. To the ``Resizer`` it is a blurrer; it returns them as they are."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, img: Any, bbox_list: object) -> Any:
        import cv2

        self.seen = phash(cv2.cvtColor(img, cv2.COLOR_BGR2GRAY))
        return img


def make_resizer(mode: str, size_px: int, quality: int) -> Resize:
    """Make img2dataset's ``Resizer`` bound the short (``keep_ratio``) or long (``keep_ratio_largest``) side.

    It never enlarges and never pads; it takes pictures of three channels, and its output is JPEG. Calling it raises
    `MemoryError` when there is not enough.
    """
    look = _Look()
    resizer = _resizer_module().Resizer(
        size_px, mode, resize_only_if_bigger=True, encode_format="jpg", encode_quality=quality, blurrer=look
    )

    def resize(data: bytes) -> Picture | str:
        jpeg, width, height, original_width, original_height, error = resizer(io.BytesIO(data), [])
        if error is not None and "alloc" in error:
            raise MemoryError(error)  # OpenCV's and NumPy's words; the Resizer catches whatever it meets
        if error is not None:
            return str(error)
        return Picture(
            data=jpeg,
            width=width,
            height=height,
            original_width=original_width,
            original_height=original_height,
            sha256=hashlib.sha256(jpeg).hexdigest(),
            phash=look.seen,
        )

    return resize


@cache
def _resizer_module() -> ModuleType:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network
    package = importlib.util.find_spec("img2dataset")
    if package is None or package.origin is None:
        raise ImportError("img2dataset is not installed; install the project's requirements")
    spec = importlib.util.spec_from_file_location("img2dataset_resizer", Path(package.origin).with_name("resizer.py"))
    if spec is None or spec.loader is None:
        raise ImportError("img2dataset has no resizer.py; install the version of requirements.lock")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # The Resizer makes a transform for every picture, which takes as long as encoding one; one per size is enough.
    makers = {name: cache(getattr(module.A, name)) for name in ("SmallestMaxSize", "LongestMaxSize")}
    module.A = SimpleNamespace(**makers)  # type: ignore[attr-defined]
    return module
