"""Prediction layers: region-word alignment, boxes and centerness (GLIP section 3.1; GLIPv2 eq. 3)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glipv2.model.language import NORM_EPS

CLAMP = 50_000.0
PRIOR = 0.01
"""Probability every region-word pair starts with."""


@dataclass(frozen=True, kw_only=True)
class Regions:
    """What the model says about every anchor, levels concatenated P3 to P7, each row by row."""

    alignment: Float[Tensor, "b a t"]
    """Region-word logits."""
    box_deltas: Float[Tensor, "b a 4"]
    """Encoded boxes; see `glipv2.model.boxes.decode`."""
    centerness: Float[Tensor, "b a"]
    """Logits."""
    text: Float[Tensor, "b t d"]
    """Text features after the last block, as they left it."""
    level_sizes: tuple[tuple[int, int], ...]
    """Height and width of each level."""


class GroundingHead(nn.Module):
    """Score regions against words by a dot product, and place their boxes."""

    def __init__(self, channels: int, text_dim: int, levels: int) -> None:
        """Build the head for ``levels`` pyramid levels."""
        super().__init__()
        self.text_projection = nn.Linear(text_dim, channels)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.text_bias = nn.Parameter(torch.zeros(text_dim))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - PRIOR) / PRIOR)))
        self.box = nn.Conv2d(channels, 4, 1)
        self.centerness = nn.Conv2d(channels, 1, 1)
        self.level_scale = nn.Parameter(torch.ones(levels))
        for conv in (self.box, self.centerness):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.constant_(conv.get_parameter("bias"), 0.0)

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def forward(self, pyramid: list[Float[Tensor, "b c _h _w"]], text: Float[Tensor, "b t d"]) -> Regions:
        """Predict for every position of every level, in single precision whatever the tower ran in."""
        pyramid, text = [x.to(self.bias.dtype) for x in pyramid], text.to(self.bias.dtype)
        unit = F.normalize(text, dim=-1)
        words = self.text_projection(unit / 2) / self.log_scale.exp()
        word_bias = (unit @ self.text_bias + self.bias)[:, None]
        regions = torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in pyramid], 1)
        boxes = [self.box(x).flatten(2) * scale for x, scale in zip(pyramid, self.level_scale, strict=True)]
        return Regions(
            alignment=torch.baddbmm(word_bias, regions, words.transpose(1, 2)).clamp(-CLAMP, CLAMP),
            box_deltas=torch.cat(boxes, 2).transpose(1, 2),
            centerness=torch.cat([self.centerness(x).flatten(1) for x in pyramid], 1),
            text=text,
            level_sizes=tuple((x.shape[2], x.shape[3]) for x in pyramid),
        )


@dataclass(frozen=True, kw_only=True)
class ContrastFeatures:
    """Regions and words of a batch in the space where different images are compared (L_inter)."""

    regions: Float[Tensor, "b a e"]
    """Every anchor's pyramid feature before the fusion; unit length."""
    words: Float[Tensor, "b t e"]
    """Every token's feature; unit length."""
    log_temperature: Float[Tensor, "1"]
    """Learned; a similarity is divided by its exponential."""


class ContrastHead(nn.Module):
    """Project regions and words for the inter-image contrast (GLIPv2 eq. 4).

    The paper compares features *before* the fusion, so that no word has seen its own image. The reference projects the
    fused, normalised text instead; its flag is here to be measured against.
    """

    def __init__(self, channels: int, text_dim: int, dim: int, variant: Literal["paper", "reference"]) -> None:
        """Build both projections; the temperature starts at 0.07 as in CLIP, at 1 in the reference's variant."""
        super().__init__()
        self.variant = variant
        self.region_projection, self.word_projection = nn.Linear(channels, dim), nn.Linear(text_dim, dim)
        self.log_temperature = nn.Parameter(torch.tensor([math.log(0.07) if variant == "paper" else 0.0]))

    def forward(
        self,
        pyramid: list[Float[Tensor, "b c _h _w"]],
        text: Float[Tensor, "b t d"],
        fused_text: Float[Tensor, "b t d"],
    ) -> ContrastFeatures:
        """Project pyramid and text as they were before the fusion; the reference's variant takes the fused text."""
        rows = torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in pyramid], 1)
        words = text if self.variant == "paper" else F.normalize(fused_text, dim=-1)
        return ContrastFeatures(
            regions=F.normalize(self.region_projection(rows).float(), dim=-1),
            words=F.normalize(self.word_projection(words).float(), dim=-1),
            log_temperature=self.log_temperature,
        )


class WordHead(nn.Module):
    """Predict words from fused text: dense, GELU, norm, decoder (BERT's language model head; GLIPv2 section 3.1)."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        """Build the head; its decoder is not tied to the word embeddings (reference)."""
        super().__init__()
        self.dense, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=NORM_EPS)
        self.decoder = nn.Linear(dim, vocab_size)

    def forward(self, text: Float[Tensor, "m d"]) -> Float[Tensor, "m v"]:
        """Return the vocabulary's logits for fused, un-normalised text features."""
        logits: Tensor = self.decoder(self.norm(F.gelu(self.dense(text))))
        return logits.float()
