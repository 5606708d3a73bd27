"""GLIPv2: image encoder, text encoder, and the tower that fuses them (arXiv 2206.05836, section 3.1).

The forward is split where caches pay: one image serves many prompts (`encode_image`), one prompt many images
(`encode_text`), and only `fuse` runs once per image and prompt.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glipv2.config import ModelConfig
from glipv2.model.backbone import Swin
from glipv2.model.dyhead import DynamicConv
from glipv2.model.fpn import FeaturePyramid
from glipv2.model.fusion import Fusion
from glipv2.model.heads import ContrastFeatures, ContrastHead, GroundingHead, Regions, WordHead
from glipv2.model.language import TextEncoder, TextLayer

Pyramid = list[Float[Tensor, "b c _h _w"]]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the losses look at."""

    regions: Regions
    """What the model says about every anchor."""
    contrast: ContrastFeatures | None
    """For L_inter; None without that head."""
    word_logits: Float[Tensor, "m v"] | None
    """For L_mlm: the vocabulary's logits at every position asked for, batch row by batch row; None without the head."""


class Block(nn.Module):
    """One storey of the tower: fusion, then a text layer on the text, then a dynamic convolution on the pyramid."""

    def __init__(self, cfg: ModelConfig) -> None:
        """Build the layers; without deep fusion only the last of the three."""
        super().__init__()
        self.deep_fusion = cfg.deep_fusion
        if cfg.deep_fusion:
            self.fusion = Fusion(
                cfg.channels, cfg.text_dim, cfg.fusion_dim, cfg.fusion_heads, cfg.fusion_dropout, 1 / cfg.num_blocks
            )
            self.text_layer = TextLayer(cfg.text_dim, cfg.text_heads, cfg.text_ffn_dim, cfg.text_dropout)
        self.dynamic_conv = DynamicConv(cfg.channels, cfg.group_norm_groups)

    def forward(self, pyramid: Pyramid, text: Tensor, mask: Tensor) -> tuple[Pyramid, Tensor]:
        """Update both streams; all levels are fused in one joint attention."""
        if not self.deep_fusion:
            return self.dynamic_conv(pyramid), text
        sizes = [x.shape[2:] for x in pyramid]
        # Channels last throughout: then rows and maps are views of each other.
        rows = torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in pyramid], 1)
        rows, text = self.fusion(rows, text, mask)
        text = self.text_layer(text, mask)
        levels = zip(rows.split([h * w for h, w in sizes], 1), sizes, strict=True)
        return self.dynamic_conv([x.unflatten(1, size).permute(0, 3, 1, 2) for x, size in levels]), text


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
        self.contrast_head = None
        if cfg.contrast != "none":
            self.contrast_head = ContrastHead(cfg.channels, cfg.text_dim, cfg.contrast_dim, cfg.contrast)
        self.word_head = WordHead(cfg.text_dim, cfg.vocab_size) if cfg.word_head else None

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

    def forward(
        self,
        pixels: Float[Tensor, "b 3 h w"],
        ids: Int[Tensor, "b t"],
        mask: Int[Tensor, "b t"],
        predict: Bool[Tensor, "b t"] | None = None,
    ) -> Outputs:
        """Run the three parts in turn and the heads that only training uses.

        Args:
            pixels: normalised and padded.
            ids: token ids, masked words already replaced (`glipv2.sample.collate`).
            mask: 1 on valid tokens.
            predict: positions whose word is to be predicted; nowhere if not given.
        """
        pyramid, text = self.encode_image(pixels), self.encode_text(ids, mask)
        regions = self.fuse(pyramid, text, mask)
        contrast = None if self.contrast_head is None else self.contrast_head(pyramid, text, regions.text)
        if predict is None:
            predict = torch.zeros_like(mask, dtype=torch.bool)
        word_logits = None if self.word_head is None else self.word_head(regions.text[predict])
        return Outputs(regions=regions, contrast=contrast, word_logits=word_logits)
