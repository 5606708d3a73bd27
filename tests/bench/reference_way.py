"""The public reference's way of computing the same numbers, as a plain baseline on the same weights.

Every projection of the pyramid is made at full width, both attention maps lie in memory, deformable convolutions are
torchvision's, windows of the Swin are rolled and cut one copy at a time, texts are padded to 256 positions, and the
image is encoded anew for every prompt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor
from torchvision.ops import deform_conv2d

from glipv2.model.backbone import SwinBlock
from glipv2.model.deform import DeformConv
from glipv2.model.fusion import CLAMP, PADDING, Fusion

POSITIONS = 256


@contextmanager
def reference_way() -> Iterator[None]:
    """Let every model compute as the reference does for as long as the block runs."""
    with (
        patch.object(Fusion, "forward", _fuse),
        patch.object(DeformConv, "forward", _deform),
        patch.object(SwinBlock, "forward", _swin_block),
    ):
        yield


def pad_text(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pad one text to the 256 positions the reference always computes."""
    missing = POSITIONS - ids.shape[1]
    return F.pad(ids, (0, missing)), F.pad(mask, (0, missing))


def _fuse(self: Fusion, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    image, text = self.image_norm(image), self.text_norm(text)
    query = heads(self.image_query(image)) * self.head_dim**-0.5
    logits = (query @ heads(self.text_key(text)).transpose(-1, -2)).clamp(-CLAMP, CLAMP)
    to_text = logits.transpose(-1, -2)
    to_text = (to_text - to_text.amax(-1, keepdim=True)).clamp(-CLAMP, CLAMP).softmax(-1)
    to_image = (logits + torch.where(mask > 0, 1.0, PADDING)[:, None, None]).softmax(-1)
    image_update = (self.dropout(to_image) @ heads(self.text_value(text))).transpose(1, 2).flatten(2)
    text_update = (self.dropout(to_text) @ heads(self.image_value(image))).transpose(1, 2).flatten(2)
    return (
        image + self.image_scale * self.image_output(image_update),
        text + self.text_scale * self.text_output(text_update),
    )


def _deform(self: DeformConv, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    out: Tensor = deform_conv2d(x, offset, self.weight, self.bias, self.stride, padding=1, mask=mask)
    return out


def _swin_block(self: SwinBlock, x: Tensor) -> Tensor:
    x = x + self.drop_path1(_attend(self, self.norm1(x)))
    out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
    return out


def _attend(block: SwinBlock, x: Tensor) -> Tensor:
    height, width = x.shape[1:3]
    window, shift = block.window_size, block.shift_size[0]
    x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    padded = x.shape[1:3]
    x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2)) if shift else x
    windows = window_partition(x, window).view(-1, block.window_area, x.shape[-1])
    attended = block.attn(windows, mask=block.get_attn_mask(x)).view(-1, *window, x.shape[-1])
    x = window_reverse(attended, window, *padded)
    x = torch.roll(x, shifts=(shift, shift), dims=(1, 2)) if shift else x
    return x[:, :height, :width]
