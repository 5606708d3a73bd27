"""GLIPv2: image encoder, text encoder, and the tower that fuses them (arXiv 2206.05836, section 3.1).

The forward is split where caches pay: one image serves many prompts (`encode_image`), one prompt many images
(`encode_text`), and only `fuse` runs once per image and prompt.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glipv2.config import ModelConfig
from glipv2.model.backbone import Swin
from glipv2.model.dyhead import DynamicConv
from glipv2.model.fpn import FeaturePyramid
from glipv2.model.fusion import Fusion
from glipv2.model.heads import GroundingHead, Regions
from glipv2.model.language import TextEncoder, TextLayer

Pyramid = list[Float[Tensor, "b c _h _w"]]


class Block(nn.Module):
    """One storey of the tower: fusion, then a text layer on the text, then a dynamic convolution on the pyramid."""

    def __init__(self, cfg: ModelConfig) -> None:
        """Build the three layers."""
        super().__init__()
        self.fusion = Fusion(
            cfg.channels, cfg.text_dim, cfg.fusion_dim, cfg.fusion_heads, cfg.fusion_dropout, 1 / cfg.num_blocks
        )
        self.text_layer = TextLayer(cfg.text_dim, cfg.text_heads, cfg.text_ffn_dim, cfg.text_dropout)
        self.dynamic_conv = DynamicConv(cfg.channels, cfg.group_norm_groups)

    def forward(self, pyramid: Pyramid, text: Tensor, mask: Tensor) -> tuple[Pyramid, Tensor]:
        """Update both streams; all levels are fused in one joint attention."""
        sizes = [x.shape[2:] for x in pyramid]
        rows = torch.cat([x.flatten(2) for x in pyramid], 2).transpose(1, 2)
        rows, text = self.fusion(rows, text, mask)
        text = self.text_layer(text, mask)
        levels = rows.transpose(1, 2).split([h * w for h, w in sizes], 2)
        return self.dynamic_conv([x.unflatten(2, size) for x, size in zip(levels, sizes, strict=True)]), text


class GLIPv2(nn.Module):
    """The detector that understands words."""

    def __init__(self, cfg: ModelConfig) -> None:
        """Build the model with random weights."""
        super().__init__()
        self.cfg = cfg
        self.swin = Swin(cfg)
        self.fpn = FeaturePyramid(self.swin.out_channels, cfg.channels, cfg.fpn_drop_block)
        self.text_encoder = TextEncoder(cfg)
        self.tower = nn.ModuleList(Block(cfg) for _ in range(cfg.num_blocks))
        self.head = GroundingHead(cfg.channels, cfg.text_dim, len(cfg.strides))

    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Pyramid:
        """Turn normalised, padded pixels (`glipv2.image`) into the pyramid P3 to P7. Knows no text."""
        pyramid: Pyramid = self.fpn(self.swin(pixels))
        return pyramid

    def encode_text(self, ids: Int[Tensor, "b t"], mask: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Turn token ids into text features; mask is 1 on valid tokens. Knows no image."""
        text: Tensor = self.text_encoder(ids, mask)
        return text

    def fuse(self, pyramid: Pyramid, text: Float[Tensor, "b t d"], mask: Int[Tensor, "b t"]) -> Regions:
        """Fuse pyramid and text through the tower and predict."""
        for block in self.tower:
            pyramid, text = block(pyramid, text, mask)
        regions: Regions = self.head(pyramid, text)
        return regions

    def forward(self, pixels: Float[Tensor, "b 3 h w"], ids: Int[Tensor, "b t"], mask: Int[Tensor, "b t"]) -> Regions:
        """Run the three parts in turn, as training does."""
        return self.fuse(self.encode_image(pixels), self.encode_text(ids, mask), mask)
