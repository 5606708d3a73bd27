"""Dynamic head: deformable convolutions across levels, scale attention and DyReLU (DyHead as GLIP runs it)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glipv2.model.deform import TAPS, DeformConv


class ModulatedBranch(nn.Module):
    """Deformable convolution followed by GroupNorm."""

    def __init__(self, channels: int, stride: int, groups: int) -> None:
        """Build the branch for one relation between levels."""
        super().__init__()
        self.conv = DeformConv(channels, stride)
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Convolve ``x``; offsets of a larger map are read by their first numbers in memory order.

        That is what the reference's kernel does unchecked for the coarser branch (DynamicHead issue 25), so the
        released weights expect it.
        """
        stride = self.conv.stride
        height, width = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
        normed: Tensor = self.norm(self.conv(x, _prefix(offset, height, width), _prefix(mask, height, width)))
        return normed


class DyReLU(nn.Module):
    """Piecewise linear activation whose two slopes and offsets depend on the whole map (DyReLU-B)."""

    def __init__(self, channels: int) -> None:
        """Build the coefficient network; the reference reduces the width by four."""
        super().__init__()
        self.reduce, self.expand = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, 4 * channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the larger of two lines per channel."""
        hidden = F.relu(self.reduce(x.mean((2, 3))))
        first_slope, first_offset, second_slope, second_offset = (
            part - 0.5 for part in F.hardsigmoid(self.expand(hidden))[..., None, None].chunk(4, 1)
        )
        first = torch.addcmul(first_offset, x, 2 * first_slope + 1)
        return torch.maximum(first, torch.addcmul(second_offset, x, 2 * second_slope))


class DynamicConv(nn.Module):
    """One dynamic head layer: every level mixes itself with its finer and coarser neighbour."""

    def __init__(self, channels: int, groups: int) -> None:
        """Build the three branches, shared by all levels."""
        super().__init__()
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)
        self.same = ModulatedBranch(channels, 1, groups)
        self.finer = ModulatedBranch(channels, 2, groups)
        self.coarser = ModulatedBranch(channels, 1, groups)
        self.scale = nn.Conv2d(channels, 1, 1)
        self.activation = DyReLU(channels)
        for conv in (self.offset, self.scale):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.constant_(conv.get_parameter("bias"), 0.0)

    def forward(self, pyramid: list[Float[Tensor, "b c _h _w"]]) -> list[Float[Tensor, "b c _h _w"]]:
        """Update the pyramid; all levels read the input pyramid, none another's output."""
        return [self._level(pyramid, level) for level in range(len(pyramid))]

    def _level(self, pyramid: list[Tensor], level: int) -> Tensor:
        x = pyramid[level]
        offset, mask = self.offset(x).split((2 * TAPS, TAPS), 1)
        mask = mask.sigmoid()
        branches = [self.same(x, offset, mask)]
        if level > 0:
            branches.append(self.finer(pyramid[level - 1], offset, mask))
        if level < len(pyramid) - 1:
            up = self.coarser(pyramid[level + 1], offset, mask)
            branches.append(F.interpolate(up, size=x.shape[2:], mode="bilinear", align_corners=True))
        mixed = torch.zeros_like(x)
        for branch in branches:
            weight = F.hardsigmoid(F.relu(self.scale(branch.mean((2, 3), keepdim=True))))
            mixed = torch.addcmul(mixed, branch, weight)
        mixed = mixed / len(branches)
        activated: Tensor = self.activation(mixed)
        return activated


def _prefix(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[2:] == (height, width):
        return maps
    channels = maps.shape[1]
    return maps.flatten(1)[:, : channels * height * width].view(-1, channels, height, width)
