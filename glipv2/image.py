"""Pixels as the reference wants them: resized by the short side, BGR, normalised, zero padded."""

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

    The other side is cut to an integer, not rounded (reference).
    """
    short, long = min(width, height), max(width, height)
    if long * min_size > max_size * short:
        min_size = max(1, round(max_size * short / long))
    if short == min_size:
        return width, height
    if width < height:
        return min_size, int(min_size * height / width)
    return max(1, int(min_size * width / height)), min_size


def prepare(image: Image.Image, cfg: ModelConfig, *, flip: bool = False) -> Picture:
    """Resize (bilinear, antialiased) and normalise an image of any mode; optionally mirror it left to right."""
    rgb = image.convert("RGB")
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
    batch = torch.zeros(len(pictures), 3, height + -height % multiple_px, width + -width % multiple_px)
    for row, picture in zip(batch, pictures, strict=True):
        row[:, : picture.size[1], : picture.size[0]] = picture.pixels
    return batch
