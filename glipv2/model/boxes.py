"""Anchors, box coding and overlaps, in the reference's pixel convention.

On disk and in the public interface a box is half open (``x2 = x1 + width``). Inside the model it is *inclusive*, as
in the reference and its released weights: ``x2 = x1 + width - 1``. The two functions below are the only border.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

CODE_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MAX_LOG_SIZE = math.log(1000 / 16)

LevelSizes = tuple[tuple[int, int], ...]
"""Per level of the pyramid its height and width, in positions."""


def to_inclusive(boxes_xyxy: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Half-open boxes, as stored, to the model's inclusive ones."""
    return boxes_xyxy - boxes_xyxy.new_tensor([0.0, 0.0, 1.0, 1.0])


def to_half_open(boxes_xyxy: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """The model's inclusive boxes to half-open ones, as stored."""
    return boxes_xyxy + boxes_xyxy.new_tensor([0.0, 0.0, 1.0, 1.0])


def make_anchors(
    level_sizes: LevelSizes, strides: tuple[int, ...], scale: float, device: torch.device
) -> Float[Tensor, "a 4"]:
    """Lay one square anchor of ``scale`` strides on every position, levels concatenated, x fastest.

    Centred on ``(stride - 1) / 2`` with inclusive corners: stride 8 and scale 8 give (-28, -28, 35, 35) at the origin.
    """
    levels = []
    for (height, width), stride in zip(level_sizes, strides, strict=True):
        centre, reach = (stride - 1) / 2, (scale * stride - 1) / 2
        y = torch.arange(height, device=device) * stride + centre
        x = torch.arange(width, device=device) * stride + centre
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        corners = torch.stack([grid_x - reach, grid_y - reach, grid_x + reach, grid_y + reach], -1)
        levels.append(corners.view(-1, 4))
    return torch.cat(levels)


def level_sizes(height: int, width: int, strides: Sequence[int]) -> LevelSizes:
    """Tell how many positions the levels of a padded image have; each convolution of a stride rounds up."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in strides)


def encode(boxes_xyxy: Float[Tensor, "*n 4"], anchors: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Encode boxes relative to anchors (both inclusive); exact inverse of `decode`."""
    (bx, by, bw, bh), (ax, ay, aw, ah) = _centre_size(boxes_xyxy), _centre_size(anchors)
    code = torch.stack([(bx - ax) / aw, (by - ay) / ah, (bw / aw).log(), (bh / ah).log()], -1)
    return code * code.new_tensor(CODE_WEIGHTS)


def decode(deltas: Float[Tensor, "*n 4"], anchors: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Decode predictions to inclusive boxes; growth is clamped at 1000/16."""
    dx, dy, dw, dh = (deltas / deltas.new_tensor(CODE_WEIGHTS)).unbind(-1)
    ax, ay, aw, ah = _centre_size(anchors)
    x, y = dx * aw + ax, dy * ah + ay
    half_width = 0.5 * (dw.clamp(max=MAX_LOG_SIZE).exp() * aw - 1)
    half_height = 0.5 * (dh.clamp(max=MAX_LOG_SIZE).exp() * ah - 1)
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)


def iou_inclusive(first: Float[Tensor, "m 4"], second: Float[Tensor, "n 4"]) -> Float[Tensor, "m n"]:
    """Overlap of every pair of inclusive boxes (sides are ``x2 - x1 + 1``)."""
    sides = (
        torch.minimum(first[:, None, 2:], second[None, :, 2:]) - torch.maximum(first[:, None, :2], second[:, :2]) + 1
    )
    intersection = sides.clamp(min=0).prod(-1)
    area = [(boxes[:, 2:] - boxes[:, :2] + 1).prod(-1) for boxes in (first, second)]
    overlap: Tensor = intersection / (area[0][:, None] + area[1][None] - intersection)
    return overlap


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1 + 1, y2 - y1 + 1
