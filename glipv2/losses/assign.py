"""Which anchor answers for which box: adaptive training sample selection (ATSS), as the reference runs it."""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from glipv2.model.boxes import iou_inclusive

CANDIDATES_PER_LEVEL = 9
INSIDE_PX = 0.01
"""An anchor's centre must lie inside the box by more than this on every side."""


def assign(
    anchors: Float[Tensor, "a 4"], level_lengths: list[int], boxes_xyxy: Float[Tensor, "n 4"]
) -> Int[Tensor, " a"]:
    """Match anchors to the boxes of one image.

    Per box and level the nine anchors nearest to its centre are candidates; those whose overlap reaches the mean plus
    the unbiased standard deviation over all candidates, and whose centre is inside the box, are positive. An anchor
    wanted by several boxes goes to the one it overlaps most.

    Returns:
        Per anchor the index of its box, -1 for background. Without boxes everything is background.
    """
    if len(boxes_xyxy) == 0:
        return torch.full((len(anchors),), -1, device=anchors.device)
    overlaps = iou_inclusive(anchors, boxes_xyxy)
    anchor_centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    box_centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    distances = (anchor_centres[:, None] - box_centres[None]).pow(2).sum(-1).sqrt()

    candidates, start = [], 0
    for length in level_lengths:
        nearest = distances[start : start + length].topk(min(CANDIDATES_PER_LEVEL, length), dim=0, largest=False)
        candidates.append(nearest.indices + start)
        start += length
    candidate = torch.cat(candidates)  # candidates n
    overlap = overlaps.gather(0, candidate)
    threshold = overlap.mean(0) + overlap.std(0)
    centre = anchor_centres[candidate]  # candidates n 2
    margin = torch.cat([centre - boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - centre], -1).amin(-1)
    positive = (overlap >= threshold) & (margin > INSIDE_PX)

    wanted = torch.full_like(overlaps, -1.0).scatter(0, candidate, torch.where(positive, overlap, -1.0))
    best, box = wanted.max(1)
    return torch.where(best >= 0, box, -1)


def of_owner(rows: Num[Tensor, "n ..."], owners: Int[Tensor, " a"], nobody: int) -> Num[Tensor, "a ..."]:
    """Look up each anchor's row among those of the boxes; background gets ``nobody``."""
    # Index -1, background, is the row put last.
    return torch.cat([rows, rows.new_full((1, *rows.shape[1:]), nobody)])[owners]


def centerness_targets(anchors: Float[Tensor, "n 4"], boxes_xyxy: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """Say how central each anchor's centre lies in its box: 1 in the middle, towards 0 at an edge."""
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    left, top = (centre - boxes_xyxy[:, :2]).unbind(-1)
    right, bottom = (boxes_xyxy[:, 2:] - centre).unbind(-1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (horizontal * vertical).sqrt()
