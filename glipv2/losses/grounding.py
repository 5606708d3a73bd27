"""L_intra and L_loc: token focal loss, GIoU and centerness (GLIPv2 eq. 2 and 3; numbers of the reference)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
EPS = 1e-7


def token_focal_loss(
    alignment: Float[Tensor, "b a t"], targets: Float[Tensor, "b a t"], counted: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Sum the sigmoid focal loss over all anchors and all counted tokens (L_intra, before its normaliser)."""
    probability = alignment.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(alignment, targets, reduction="none")
    miss = probability + targets - 2 * probability * targets  # 1 - p where positive, p where negative
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    loss = alpha * miss**FOCAL_GAMMA * cross_entropy
    return (loss * counted[:, None]).sum()


def giou_loss(predicted: Float[Tensor, "n 4"], boxes_xyxy: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """Compute 1 - GIoU per pair; sides are ``x2 - x1`` here, without the inclusive pixel (reference)."""
    upper_left = predicted[:, :2]
    predicted = torch.cat([upper_left, torch.maximum(predicted[:, 2:], upper_left)], -1)
    overlap_sides = torch.minimum(predicted[:, 2:], boxes_xyxy[:, 2:]) - torch.maximum(
        predicted[:, :2], boxes_xyxy[:, :2]
    )
    intersection = overlap_sides.clamp(min=0).prod(-1)
    union = _area(predicted) + _area(boxes_xyxy) - intersection + EPS
    outer = torch.maximum(predicted[:, 2:], boxes_xyxy[:, 2:]) - torch.minimum(predicted[:, :2], boxes_xyxy[:, :2])
    enclosing = outer.prod(-1) + EPS
    loss: Tensor = 1 - intersection / union + (enclosing - union) / enclosing
    return loss


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)
