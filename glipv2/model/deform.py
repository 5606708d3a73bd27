"""Modulated deformable convolution (DCNv2, 3x3): torchvision's operator on CUDA, a weighted gather elsewhere.

On a CPU torchvision's backward pass costs some 60 plain convolutions. Sampling bilinearly is a sum over four corners,
so the same numbers come from one ``embedding_bag`` over the map's rows and one matrix product; see ``make bench``.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

KERNEL = 3
TAPS = KERNEL * KERNEL
CHUNK = 1024
"""Positions whose samples (9 MB at 256 channels) stay in a processor's cache."""


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
        with torch.autocast("cpu", enabled=False):  # never in half precision; torchvision's sees to it itself
            x, offset, mask = (t.to(self.weight.dtype) for t in (x, offset, mask))
            return gathered_deform_conv(x, offset, mask, self.weight, self.bias, self.stride)


def gathered_deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Compute `torchvision.ops.deform_conv2d` (3x3, padding 1, one group) as a weighted gather of rows."""
    batch, channels, height, width = x.shape
    out_height, out_width = offset.shape[2:]
    indices, weights = _corners(offset, mask, (height, width), stride)
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    matrix = weight.permute(2, 3, 1, 0).reshape(TAPS * channels, -1)
    # Without gradients some positions at a time, so that what is sampled goes through the cache, not the memory.
    chunk = len(indices) if torch.is_grad_enabled() else CHUNK * TAPS
    out = [
        torch.addmm(bias, _gather(rows, *some).view(-1, TAPS * channels), matrix)
        for some in zip(indices.split(chunk), weights.split(chunk), strict=True)
    ]
    return torch.cat(out).view(batch, out_height, out_width, -1).permute(0, 3, 1, 2)


def _gather(rows: Float[Tensor, "p c"], indices: Int[Tensor, "k 4"], weights: Float[Tensor, "k 4"]) -> Tensor:
    return F.embedding_bag(indices, rows, mode="sum", per_sample_weights=weights)


def _corners(
    offset: Tensor, mask: Tensor, size: tuple[int, int], stride: int
) -> tuple[Int[Tensor, "k 4"], Float[Tensor, "k 4"]]:
    """List, per (image, position, tap), the rows of the four corners and their weights; outside weighs nothing."""
    height, width = size
    batch, _, out_height, out_width = offset.shape
    offset = offset.permute(0, 2, 3, 1).unflatten(3, (TAPS, 2))  # b oh ow taps 2
    taps = torch.arange(TAPS, device=offset.device)
    base_y = torch.arange(out_height, device=offset.device)[:, None, None] * stride - 1 + taps // KERNEL
    base_x = torch.arange(out_width, device=offset.device)[None, :, None] * stride - 1 + taps % KERNEL
    rows, wy = _ends(offset[..., 0] + base_y, height)
    columns, wx = _ends(offset[..., 1] + base_x, width)
    image = torch.arange(batch, device=offset.device).view(-1, 1, 1, 1, 1, 1) * (height * width)
    indices = (rows * width)[..., None] + columns[..., None, :] + image
    weights = (wy * mask.permute(0, 2, 3, 1)[..., None])[..., None] * wx[..., None, :]
    return indices.view(-1, 4), weights.view(-1, 4)


def _ends(place: Float[Tensor, "*k"], length: int) -> tuple[Int[Tensor, "*k 2"], Float[Tensor, "*k 2"]]:
    """Find the two whole numbers around each place and their shares; one outside the map is given as 0, without any."""
    below = place.detach().floor()
    share = place - below  # its gradient reaches the offsets
    ends = torch.stack([below, below + 1], -1)
    inside = (ends >= 0) & (ends < length)  # false, too, where an offset is no number
    return torch.where(inside, ends, 0).long(), torch.stack([1 - share, share], -1) * inside
