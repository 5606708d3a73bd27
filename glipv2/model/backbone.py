"""Swin image encoder, built from timm's parts (reference behaviour: GLIP, ``SwinTransformer``), and CoSwin."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn

from glipv2.config import ModelConfig

PATCH = 4
CONV_EMBED = (7, 2)
"""Kernel and padding of CoSwin's overlapping patch embedding; its stride is that of the patches."""
CHUNK = 4096
"""Positions whose widest features (6 MB at 96 channels) stay in a processor's cache."""
APART = -100.0
"""Added to attention between regions that are no neighbours (reference)."""


class SwinBlock(SwinTransformerBlock):
    """One Swin block, computed window by window: everything in it but the attention treats each position alone.

    One gather pads, shifts and cuts into windows, another puts all back. As in the reference it pads *before* it
    shifts (timm shifts first), after the first norm, and lets padding take part in un-shifted windows.
    """

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Attend within windows, then transform each position."""
        batch, height, width, channels = x.shape
        window, shift = self.window_size[0], self.shift_size[0]
        order, home, regions = _windows(height, width, window, shift, x.device)
        rows = x.reshape(batch, height * width, channels)
        chunk = len(order)
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            # A few windows at a time: what is between gather and return then stays in the processor's cache.
            chunk = max(1, CHUNK // (batch * self.window_area))
        padded = bool(height % window or width % window)
        done = [
            self._some(rows, *some, padded=padded)
            for some in zip(order.split(chunk), regions.split(chunk), strict=True)
        ]
        return torch.cat(done, 1).index_select(1, home).view(batch, height, width, channels)

    def _some(
        self, rows: Float[Tensor, "b _p c"], order: Int[Tensor, "k s"], regions: Int[Tensor, "k s"], *, padded: bool
    ) -> Tensor:
        batch, _, channels = rows.shape
        x = rows.index_select(1, order.clamp(min=0).flatten())
        normed = self.norm1(x)
        if padded:
            normed = normed * (order >= 0).view(-1, 1)
        mask = None
        if self.shift_size[0]:
            mask = (regions[:, :, None] != regions[:, None]) * APART
        attended = self.attn(normed.view(-1, self.window_area, channels), mask=mask).view(batch, -1, channels)
        x = x + self.drop_path1(attended)
        out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return out


def _windows(
    height: int, width: int, window: int, shift: int, device: torch.device
) -> tuple[Int[Tensor, "k s"], Int[Tensor, " p"], Int[Tensor, "k s"]]:
    """Lay shifted windows over a map, padded right and bottom and rolled round.

    Returns:
        Per window the row-major positions it holds, -1 for padding; per position its place among all places of all
        windows; and per window the region each of its places came from: those of different regions only met because
        the map was rolled.
    """
    padded_height, padded_width = height + -height % window, width + -width % window
    row, column = torch.arange(padded_height, device=device), torch.arange(padded_width, device=device)
    y, x = (row + shift) % padded_height, (column + shift) % padded_width
    position = torch.where((y < height)[:, None] & (x < width), y[:, None] * width + x, -1)
    regions = _regions(row, window, shift)[:, None] * 3 + _regions(column, window, shift)

    def cut(grid: Tensor) -> Tensor:
        windows = grid.view(-1, window, padded_width // window, window).transpose(1, 2)
        return windows.reshape(-1, window * window)

    # Nothing negative before the remainder: torch.compile stumbles over it.
    y = (row[:height] + padded_height - shift) % padded_height
    x = (column[:width] + padded_width - shift) % padded_width
    which = (y // window)[:, None] * (padded_width // window) + x // window
    home = which * window**2 + (y % window)[:, None] * window + x % window
    return cut(position), home.flatten(), cut(regions)


def _regions(place: Int[Tensor, " p"], window: int, shift: int) -> Int[Tensor, " p"]:
    return (place >= len(place) - window).int() + (place >= len(place) - shift).int()


class ConvMerging(nn.Module):
    """Halve a map by an overlapping 3x3 convolution, then normalise: CoSwin's patch merging, as in CvT."""

    def __init__(self, dim: int, out_dim: int) -> None:
        """Build the convolution; odd maps are rounded up, as `PatchMerging` does."""
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b _h _w _c"]:
        """Merge; channels come last here."""
        merged: Tensor = self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return merged


class Swin(nn.Module):
    """Swin Transformer returning the maps of strides 8, 16 and 32, each normalised on its way out."""

    def __init__(self, cfg: ModelConfig) -> None:
        """Build the four stages; see `ModelConfig`."""
        super().__init__()
        dims = [cfg.swin_embed_dim * 2**stage for stage in range(4)]
        self.out_channels = tuple(dims[1:])
        kernel, padding = CONV_EMBED if cfg.swin_conv_embed else (PATCH, 0)
        self.patch_embed = nn.Conv2d(3, dims[0], kernel, PATCH, padding)
        self.patch_norm = nn.LayerNorm(dims[0])
        last = max(1, sum(cfg.swin_depths) - 1)
        merge = ConvMerging if cfg.swin_conv_embed else PatchMerging
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(cfg.swin_depths):
            first = sum(cfg.swin_depths[:stage])
            blocks = [
                SwinBlock(
                    dim=dims[stage],
                    input_resolution=(cfg.swin_window, cfg.swin_window),  # only read where windows may shrink: not here
                    num_heads=cfg.swin_num_heads[stage],
                    window_size=cfg.swin_window,
                    shift_size=cfg.swin_window // 2 if block % 2 else 0,
                    always_partition=True,
                    dynamic_mask=True,
                    drop_path=cfg.swin_drop_path * (first + block) / last,
                )
                for block in range(depth)
            ]
            merging = [merge(dims[stage - 1], dims[stage])] if stage else []
            self.stages.append(nn.Sequential(*merging, *blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in self.out_channels)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """Encode normalised pixels of any size; the padding to whole patches is zero, right and bottom."""
        height, width = pixels.shape[2:]
        x = self.patch_embed(F.pad(pixels, (0, -width % PATCH, 0, -height % PATCH)))
        x = self.patch_norm(x.permute(0, 2, 3, 1))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        # The norms act on the outputs only: the next stage gets the map as it is.
        return [norm(x).permute(0, 3, 1, 2) for norm, x in zip(self.norms, maps[1:], strict=True)]
