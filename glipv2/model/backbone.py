"""Swin image encoder, built from timm's parts (reference behaviour: GLIP, ``SwinTransformer``)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn

from glipv2.config import ModelConfig

PATCH = 4


class SwinBlock(SwinTransformerBlock):
    """One Swin block that pads *before* it shifts, as the reference does; timm shifts first."""

    def _attn(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        height, width = x.shape[1:3]
        window = self.window_size
        x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
        padded_height, padded_width = x.shape[1:3]
        shift_y, shift_x = self.shift_size
        if shift_y or shift_x:
            x = torch.roll(x, shifts=(-shift_y, -shift_x), dims=(1, 2))
        windows = window_partition(x, window).view(-1, self.window_area, x.shape[-1])
        attended = self.attn(windows, mask=self.get_attn_mask(x)).view(-1, *window, x.shape[-1])
        x = window_reverse(attended, window, padded_height, padded_width)
        if shift_y or shift_x:
            x = torch.roll(x, shifts=(shift_y, shift_x), dims=(1, 2))
        return x[:, :height, :width].contiguous()


class Swin(nn.Module):
    """Swin Transformer returning the maps of strides 8, 16 and 32, each normalised on its way out."""

    def __init__(self, cfg: ModelConfig) -> None:
        """Build the four stages; see `ModelConfig`."""
        super().__init__()
        dims = [cfg.swin_embed_dim * 2**stage for stage in range(4)]
        self.out_channels = tuple(dims[1:])
        self.patch_embed = nn.Conv2d(3, dims[0], PATCH, PATCH)
        self.patch_norm = nn.LayerNorm(dims[0])
        rates = torch.linspace(0, cfg.swin_drop_path, sum(cfg.swin_depths)).tolist()
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
                    drop_path=rates[first + block],
                )
                for block in range(depth)
            ]
            merging = [PatchMerging(dims[stage - 1], dims[stage])] if stage else []
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
