"""Modulated deformable convolution (DCNv2, 3x3): torchvision's operator on CUDA, a weighted gather elsewhere.

On a CPU torchvision's backward pass costs some 60 plain convolutions. Sampling bilinearly is a sum over four corners,
so the same numbers come from one ``embedding_bag`` over the map's rows and one matrix product; see ``make bench``.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

KERNEL = 3
TAPS = KERNEL * KERNEL


class DeformConv(nn.Module):
    """A 3x3 modulated deformable convolution with bias and padding 1; offsets and mask come from outside."""

    def __init__(self, channels: int, stride: int) -> None:
        """Build a width-preserving convolution; weights start uniform in +-1/sqrt(fan in), as the reference's do."""
        super().__init__()
        self.stride = stride
        bound = 1 / math.sqrt(channels * TAPS)
        self.weight = nn.Parameter(torch.empty(channels, channels, KERNEL, KERNEL).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Float[Tensor, "b c h w"], offset: Float[Tensor, "b _o _h _w"], mask: Float[Tensor, "b _m _h _w"]
    ) -> Float[Tensor, "b c _oh _ow"]:
        """Convolve ``x`` at displaced positions.

        Args:
            x: input map.
            offset: per kernel tap ``k`` (row by row) channel ``2k`` is dy and ``2k + 1`` is dx, in positions.
            mask: per kernel tap a factor in 0..1.
        """
        if x.is_cuda:
            out: Tensor = deform_conv2d(x, offset, self.weight, self.bias, self.stride, padding=1, mask=mask)
            return out
        with torch.autocast(x.device.type, enabled=False):  # never in half precision; torchvision's sees to it itself
            x, offset, mask = (t.to(self.weight.dtype) for t in (x, offset, mask))
            return gathered_deform_conv(x, offset, mask, self.weight, self.bias, self.stride)


def gathered_deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Compute `torchvision.ops.deform_conv2d` (3x3, padding 1, one group) as a weighted gather of rows."""
    batch, channels, height, width = x.shape
    out_height, out_width = offset.shape[2:]
    indices, weights = _corners(offset, mask, (height, width), stride)
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    sampled = F.embedding_bag(indices, rows, mode="sum", per_sample_weights=weights)
    columns = sampled.view(batch * out_height * out_width, TAPS * channels)
    out = F.linear(columns, weight.permute(0, 2, 3, 1).reshape(len(weight), -1), bias)
    return out.view(batch, out_height, out_width, -1).permute(0, 3, 1, 2)


def _corners(offset: Tensor, mask: Tensor, size: tuple[int, int], stride: int) -> tuple[Tensor, Tensor]:
    """List, per (image, position, tap), the rows of the four corners and their weights; outside weighs nothing."""
    height, width = size
    batch, _, out_height, out_width = offset.shape
    offset = offset.view(batch, TAPS, 2, out_height, out_width).permute(0, 3, 4, 1, 2)  # b oh ow taps 2
    taps = torch.arange(TAPS, device=offset.device)
    base_y = torch.arange(out_height, device=offset.device)[:, None, None] * stride - 1 + taps // KERNEL
    base_x = torch.arange(out_width, device=offset.device)[None, :, None] * stride - 1 + taps % KERNEL
    y, x = offset[..., 0] + base_y, offset[..., 1] + base_x
    top, left = y.detach().floor(), x.detach().floor()
    below, right = y - top, x - left  # fractions; their gradients reach the offsets
    image = torch.arange(batch, device=offset.device)[:, None, None, None] * (height * width)
    modulation = mask.permute(0, 2, 3, 1)
    indices, weights = [], []
    for dy, wy in ((0, 1 - below), (1, below)):
        for dx, wx in ((0, 1 - right), (1, right)):
            row, column = top + dy, left + dx
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = torch.where(inside, row * width + column, 0)  # also where an offset is no number
            indices.append(index.long() + image)
            weights.append(wy * wx * modulation * inside)
    return torch.stack(indices, -1).view(-1, 4), torch.stack(weights, -1).view(-1, 4)
