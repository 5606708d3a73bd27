"""The training objective: assignment, then the sum of the losses."""

import torch
import torch.distributed
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glipv2.config import ModelConfig
from glipv2.losses.assign import assign, centerness_targets
from glipv2.losses.grounding import giou_loss, token_focal_loss
from glipv2.model.boxes import decode, make_anchors
from glipv2.model.glipv2 import Outputs
from glipv2.model.heads import Regions
from glipv2.sample import Batch

BOX_WEIGHT = 2.0


class Criterion(nn.Module):
    """L_intra (token focal) + L_loc (GIoU x 2, centerness), normalised over all workers."""

    def __init__(self, cfg: ModelConfig) -> None:
        """Remember the anchors' geometry."""
        super().__init__()
        self.strides, self.anchor_scale = cfg.strides, cfg.anchor_scale

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Compute each weighted loss; their plain sum is the objective."""
        return self.grounding(outputs.regions, batch)

    def grounding(self, regions: Regions, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Compute L_intra and L_loc. Images without boxes are allowed.

        Tokens outside ``batch.loss_mask`` take no part: padding, and phrases whose boxes are unknown.
        """
        anchors = make_anchors(regions.level_sizes, self.strides, self.anchor_scale, regions.alignment.device)
        lengths = [height * width for height, width in regions.level_sizes]
        targets = torch.zeros_like(regions.alignment)
        positives: list[Tensor] = []
        matched: list[Tensor] = []
        for image, target in enumerate(batch.targets):
            owner = assign(anchors, lengths, target.boxes_xyxy)
            positive = (owner >= 0).nonzero()[:, 0]
            targets[image, positive] = target.positive_map[owner[positive]]
            positives.append(positive + image * len(anchors))
            matched.append(target.boxes_xyxy[owner[positive]])
        positive, boxes = torch.cat(positives), torch.cat(matched)

        positive_anchors = anchors.repeat(len(batch.targets), 1)[positive]
        centerness = centerness_targets(positive_anchors, boxes)
        totals = _mean_over_workers(torch.stack([centerness.new_tensor(float(len(positive))), centerness.sum()]))
        num_positives, centerness_sum = totals[0].clamp(min=1.0), totals[1].clamp(min=1e-6)

        predicted = decode(regions.box_deltas.flatten(0, 1)[positive], positive_anchors)
        predicted_centerness = regions.centerness.flatten()[positive]
        binary = F.binary_cross_entropy_with_logits(predicted_centerness, centerness, reduction="sum")
        return {
            "loss_token": token_focal_loss(regions.alignment, targets, batch.loss_mask) / num_positives,
            "loss_box": BOX_WEIGHT * (giou_loss(predicted, boxes) * centerness).sum() / centerness_sum,
            "loss_centerness": binary / num_positives,
        }


def _mean_over_workers(value: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value
