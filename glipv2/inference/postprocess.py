"""From regions to detections (reference: ``ATSSPostProcessor``)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glipv2.config import ModelConfig
from glipv2.model.boxes import decode, iou_inclusive, make_anchors
from glipv2.model.heads import Regions


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """Thresholds of the reference."""

    min_class_score: float = 0.05
    """Candidates must exceed this before centerness is counted in."""
    candidates_per_level: int = 1000
    """(position, label) pairs kept per level, best first."""
    nms_iou: float = 0.6
    """Boxes of one label overlapping more than this are one object."""
    max_detections: int = 100
    """Detections kept per image; LVIS uses 300."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Detections of one image, best first."""

    boxes_xyxy: Float[Tensor, "n 4"]
    """Inclusive pixels of the model's input (`glipv2.model.boxes`)."""
    scores: Float[Tensor, " n"]
    """sqrt(class score x centerness), 0..1."""
    labels: Int[Tensor, " n"]
    """Position in the list of token lists given."""


@torch.no_grad()
def postprocess(
    regions: Regions,
    label_tokens: Sequence[Sequence[Sequence[int]]],
    sizes: Sequence[tuple[int, int]],
    model: ModelConfig,
    cfg: PostprocessConfig,
) -> list[Detections]:
    """Turn regions into detections.

    Args:
        regions: the model's output for a batch.
        label_tokens: per image and label the token positions it is scored by (their mean); a label without tokens
            never fires.
        sizes: true width and height of each image in px, padding excluded; boxes are clipped to it.
        model: geometry of the anchors.
        cfg: thresholds.
    """
    anchors = make_anchors(regions.level_sizes, model.strides, model.anchor_scale, regions.alignment.device)
    lengths = [height * width for height, width in regions.level_sizes]
    boxes = decode(regions.box_deltas, anchors.expand(len(sizes), -1, -1))
    centerness = regions.centerness.sigmoid()
    return [
        _one_image(
            _class_scores(regions.alignment[i], label_tokens[i]), centerness[i], _clip(boxes[i], sizes[i]), lengths, cfg
        )
        for i in range(len(sizes))
    ]


def _class_scores(alignment: Float[Tensor, "a t"], label_tokens: Sequence[Sequence[int]]) -> Float[Tensor, "a k"]:
    probability = alignment.sigmoid()
    columns = [
        probability[:, list(tokens)].mean(1) if tokens else torch.zeros_like(probability[:, 0])
        for tokens in label_tokens
    ]
    return torch.stack(columns, 1) if columns else probability[:, :0]


def _clip(boxes: Float[Tensor, "a 4"], size: tuple[int, int]) -> Float[Tensor, "a 4"]:
    width, height = size
    limit = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes.clamp(min=0), limit)


def _one_image(
    class_scores: Tensor, centerness: Tensor, boxes: Tensor, lengths: list[int], cfg: PostprocessConfig
) -> Detections:
    joint = class_scores * centerness[:, None]
    chosen, start = [], 0
    for length in lengths:
        level = slice(start, start + length)
        anchor, label = (class_scores[level] > cfg.min_class_score).nonzero(as_tuple=True)
        score = joint[level][anchor, label]
        best = score.topk(min(cfg.candidates_per_level, len(score))).indices
        chosen.append(torch.stack([anchor[best] + start, label[best]]))
        start += length
    anchor, label = torch.cat(chosen, 1)
    scores = joint[anchor, label].sqrt()
    order = scores.argsort(descending=True, stable=True)
    anchor, label, scores = anchor[order], label[order], scores[order]
    kept = suppress(boxes[anchor], label, cfg.nms_iou)[: cfg.max_detections]
    return Detections(boxes_xyxy=boxes[anchor[kept]], scores=scores[kept], labels=label[kept])


def suppress(boxes_xyxy: Float[Tensor, "n 4"], labels: Int[Tensor, " n"], iou: float) -> Int[Tensor, " m"]:
    """Greedy suppression per label of boxes given best first; overlap counts the inclusive pixel.

    torchvision's does not, and so keeps boxes clipped to zero width that the reference drops.
    """
    overlapping = (iou_inclusive(boxes_xyxy, boxes_xyxy) > iou) & (labels[:, None] == labels[None])
    rows = overlapping.triu(1).cpu().numpy()
    alive = torch.ones(len(boxes_xyxy), dtype=torch.bool).numpy()
    for index in range(len(rows)):
        if alive[index]:
            alive &= ~rows[index]
    return torch.from_numpy(alive).nonzero()[:, 0].to(boxes_xyxy.device)
