"""What tuning sees of its images: which one, mirrored or not, and at which size."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from glipv2.config import ModelConfig
from glipv2.image import Picture, target_size
from glipv2.sample import GroundingSample
from glipv2.text.sides import speaks_of_sides
from glipv2.transfer.protocol import TuningConfig


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to look at one image. There are few, so whatever is computed of one can be kept."""

    index: int
    """Position of the sample."""
    flip: bool
    """Mirrored, unless its text speaks of left or right."""
    scale: float
    """Part of the model's short side."""


def draw_steps(num_samples: int, cfg: TuningConfig, rng: random.Random) -> Iterator[list[View]]:
    """Draw an epoch, step by step: every sample ``copies`` times in random order, each time in a view of its own."""
    order = list(range(num_samples)) * cfg.copies
    rng.shuffle(order)
    views = [View(index=index, flip=rng.random() < cfg.flip, scale=rng.choice(cfg.scales)) for index in order]
    for first in range(0, len(views), cfg.batch_size):
        yield views[first : first + cfg.batch_size]


def take_view(sample: GroundingSample, view: View, model: ModelConfig) -> GroundingSample:
    """Resize a sample to the view's part of the model's short side, and mirror it."""
    picture = sample.picture if view.scale == 1 else _resize(sample.picture, view.scale, model)
    (width, height), (old_width, old_height) = picture.size, sample.picture.size
    boxes = sample.boxes_xyxy * sample.boxes_xyxy.new_tensor([width / old_width, height / old_height]).repeat(2)
    if view.flip and not speaks_of_sides(sample.text):
        picture, boxes = replace(picture, pixels=picture.pixels.flip(2)), _mirror(boxes, width)
    return replace(sample, picture=picture, boxes_xyxy=boxes)


def _resize(picture: Picture, scale: float, model: ModelConfig) -> Picture:
    """Resize what is prepared: normalising does not mind, and what it was made from is no longer needed."""
    short = max(1, round(model.min_size_px * scale))
    width, height = target_size(*picture.original_size, short, max(short, model.max_size_px))
    pixels = F.interpolate(picture.pixels[None], (height, width), mode="bilinear", antialias=True)[0]
    old_width, old_height = picture.original_size
    return replace(picture, pixels=pixels, scale_xy=(width / old_width, height / old_height))


def _mirror(boxes_xyxy: Tensor, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes_xyxy.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], 1)
