"""The parts of img2dataset in use, imported late and without its side effects.

The package takes seconds to import, asks the network for updates of a dependency and starts an experiment tracker.
"""

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message

_OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex"}
"""Directives of ``X-Robots-Tag`` that refuse the use of an image; img2dataset's default."""


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

    @property
    def sha256(self) -> str:
        """Hex digest of the stored bytes."""
        return hashlib.sha256(self.data).hexdigest()


Resize = Callable[[bytes], Picture | str]
"""Decode, shrink and encode one image, or give the error. One thread at a time: it redirects stdout meanwhile."""


def make_resizer(mode: str, size_px: int, quality: int) -> Resize:
    """Make img2dataset's ``Resizer`` bound the short (``keep_ratio``) or long (``keep_ratio_largest``) side.

    It never enlarges and never pads, and its output is JPEG.
    """
    _keep_quiet()
    from img2dataset.resizer import Resizer

    resizer = Resizer(size_px, mode, resize_only_if_bigger=True, encode_format="jpg", encode_quality=quality)

    def resize(data: bytes) -> Picture | str:
        jpeg, width, height, original_width, original_height, error = resizer(io.BytesIO(data))
        if error is not None:
            return str(error)
        return Picture(
            data=jpeg, width=width, height=height, original_width=original_width, original_height=original_height
        )

    return resize


def opted_out(robots_tags: list[str], robots_token: str) -> bool:
    """Say whether the ``X-Robots-Tag`` headers of a response refuse its use by a crawler of that name."""
    if not robots_tags:
        return False
    _keep_quiet()
    from img2dataset.downloader import is_disallowed

    headers = Message()
    for tag in robots_tags:
        headers["X-Robots-Tag"] = tag
    return bool(is_disallowed(headers, robots_token, _OPT_OUT))


def _keep_quiet() -> None:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("WANDB_MODE", "disabled")
