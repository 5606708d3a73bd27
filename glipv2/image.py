"""Pixels as the reference wants them: resized by the short side, BGR, normalised, zero padded."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from glipv2.config import ModelConfig

MEAN_BGR = np.array((103.530, 116.280, 123.675), dtype=np.float32)
STD_BGR = np.array((57.375, 57.120, 58.395), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A resized, normalised image and how it relates to the original."""

    pixels: Float[Tensor, "3 h w"]
    """BGR, 0..255 minus mean, over standard deviation."""
    scale_xy: tuple[float, float]
    """Exact ratios new / old of width and height; boxes scale by these."""
    original_size: tuple[int, int]
    """Width and height before resizing, px."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.pixels.shape[2], self.pixels.shape[1]


def target_size(width: int, height: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Choose the new width and height: short side ``min_size``, long side at most ``max_size``.

    The other side is cut to an integer, not rounded (reference). Where the reference would ask for a short side of no
    pixels, ours is one pixel and the long side ``max_size``.
    """
    short, long = min(width, height), max(width, height)
    if long * min_size > max_size * short:
        min_size = round(max_size * short / long)
        if min_size == 0:
            return (1, max_size) if width < height else (max_size, 1)
    if short == min_size:
        return width, height
    if width < height:
        return min_size, int(min_size * height / width)
    return int(min_size * width / height), min_size


def padded_size(size: tuple[int, int], cfg: ModelConfig) -> tuple[int, int]:
    """Tell the width and height that an image of this size has in the network when it is alone in its batch.

    No mask tells the network what is padding, so images share a batch without changing each other's numbers only if
    these are equal.

    Raises:
        ValueError: the image has no pixels.
    """
    _check_size(size)
    width, height = target_size(*size, cfg.min_size_px, cfg.max_size_px)
    return _round_up(width, cfg.pad_multiple_px), _round_up(height, cfg.pad_multiple_px)


UNREADABLE = (
    *(OSError, EOFError, SyntaxError, NotImplementedError, ValueError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow, and `to_rgb` for it, raise for a damaged image or one of an unknown kind."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Make the pixels, as they are stored, 8-bit RGB; of an animation the frame it stands at.

    What is transparent becomes white. Numbers of more than 8 bits are scaled, where Pillow alone would clip them to
    white: ``I;16`` from 65535; ``I`` and ``F`` from the smallest of 1 (``F`` only), 255 and 65535 that none exceeds, or
    from their own maximum. EXIF orientation is not applied; `PIL.ImageOps.exif_transpose` does so.

    Raises:
        ValueError: the image has no pixels, or its file ends before they do.
    """
    _check_size(image.size)
    try:
        image.load()
    except (OSError, EOFError, SyntaxError) as error:  # SyntaxError: Pillow's word for a broken PNG
        name = getattr(image, "filename", "") or "an image"
        raise ValueError(f"{name} cannot be read to its end ({error}); fetch it again, or leave it out") from error
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _check_size(size: tuple[int, int]) -> None:
    if 0 in size:
        raise ValueError(f"an image is {size[0]} x {size[1]} px, at least 1 x 1 is needed; leave it out")


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    whites = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    white = next((white for white in whites if values.max() <= white), values.max())
    return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))


def prepare(image: Image.Image, cfg: ModelConfig, *, flip: bool = False) -> Picture:
    """Resize (bilinear, antialiased) and normalise an image of any mode (`to_rgb`); optionally mirror it."""
    rgb = to_rgb(image)
    size = target_size(rgb.width, rgb.height, cfg.min_size_px, cfg.max_size_px)
    resized = rgb if size == rgb.size else rgb.resize(size, Image.Resampling.BILINEAR)
    array = np.asarray(resized, dtype=np.float32)[..., ::-1]
    if flip:
        array = array[:, ::-1]
    normalised = (array - MEAN_BGR) / STD_BGR
    return Picture(
        pixels=torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1))),
        scale_xy=(size[0] / rgb.width, size[1] / rgb.height),
        original_size=rgb.size,
    )


def scale_boxes(boxes_xyxy: Float[Tensor, "n 4"], picture: Picture, *, flip: bool = False) -> Float[Tensor, "n 4"]:
    """Carry half-open boxes of the original image over to the picture."""
    x, y = picture.scale_xy
    scaled = boxes_xyxy * boxes_xyxy.new_tensor([x, y, x, y])
    if flip:
        width = picture.size[0]
        scaled = torch.stack([width - scaled[:, 2], scaled[:, 1], width - scaled[:, 0], scaled[:, 3]], 1)
    return scaled


def pad_pictures(pictures: Sequence[Picture], multiple_px: int) -> Float[Tensor, "b 3 h w"]:
    """Stack pictures, zero padded right and bottom to a common size that ``multiple_px`` divides."""
    width, height = (max(sides) for sides in zip(*(p.size for p in pictures), strict=True))
    batch = torch.zeros(len(pictures), 3, _round_up(height, multiple_px), _round_up(width, multiple_px))
    for row, picture in zip(batch, pictures, strict=True):
        row[:, : picture.size[1], : picture.size[0]] = picture.pixels
    return batch


def _round_up(length: int, multiple: int) -> int:
    return length + -length % multiple
