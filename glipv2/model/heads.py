"""Prediction layers: region-word alignment, boxes and centerness (GLIP section 3.1; GLIPv2 eq. 3)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

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

    def forward(self, pyramid: list[Float[Tensor, "b c _h _w"]], text: Float[Tensor, "b t d"]) -> Regions:
        """Predict for every position of every level."""
        text = F.normalize(text, dim=-1)
        words = self.text_projection(text / 2) / self.log_scale.exp()
        word_bias = (text @ self.text_bias + self.bias)[:, None]
        regions = torch.cat([x.flatten(2) for x in pyramid], 2).transpose(1, 2)
        boxes = [self.box(x).flatten(2) * scale for x, scale in zip(pyramid, self.level_scale, strict=True)]
        # Losses and postprocessing are single precision, whatever the network ran in.
        return Regions(
            alignment=(regions @ words.transpose(1, 2) + word_bias).clamp(-CLAMP, CLAMP).float(),
            box_deltas=torch.cat(boxes, 2).transpose(1, 2).float(),
            centerness=torch.cat([self.centerness(x).flatten(1) for x in pyramid], 1).float(),
            level_sizes=tuple((x.shape[2], x.shape[3]) for x in pyramid),
        )
