"""From regions to detections (reference: ``ATSSPostProcessor``)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import nms

from glipv2.config import ModelConfig
from glipv2.model.boxes import decode, make_anchors, to_half_open
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

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("min_class_score", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number between 0 and 1")
        for name in ("candidates_per_level", "max_detections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")


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
    centerness = regions.centerness.sigmoid()
    detections = []
    for image, size in enumerate(sizes):
        class_scores = _class_scores(regions.alignment[image], label_tokens[image])
        scores, anchor, labels = _candidates(class_scores, centerness[image], lengths, cfg)
        boxes = _clip(decode(regions.box_deltas[image, anchor], anchors[anchor]), size)
        kept = suppress(boxes, labels, cfg.nms_iou)[: cfg.max_detections]
        detections.append(Detections(boxes_xyxy=boxes[kept], scores=scores[kept], labels=labels[kept]))
    return detections


def _class_scores(alignment: Float[Tensor, "a t"], label_tokens: Sequence[Sequence[int]]) -> Float[Tensor, "a k"]:
    """Average each label's token probabilities, all labels at once."""
    share = torch.zeros(alignment.shape[1], len(label_tokens))
    for label, tokens in enumerate(label_tokens):
        share[list(tokens), label] = 1 / max(1, len(tokens))
    return alignment.sigmoid() @ share.to(alignment)


def _candidates(
    class_scores: Float[Tensor, "a k"], centerness: Float[Tensor, " a"], lengths: list[int], cfg: PostprocessConfig
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Choose the (anchor, label) pairs worth a box, best first: their scores, anchors and labels."""
    anchors, labels, scores, start = [], [], [], 0
    for length in lengths:
        level = class_scores[start : start + length]
        anchor, label = (level > cfg.min_class_score).nonzero(as_tuple=True)
        joint = level[anchor, label] * centerness[start + anchor]
        joint, best = joint.topk(min(cfg.candidates_per_level, len(joint)))
        scores.append(joint.sqrt())
        anchors.append(start + anchor[best])
        labels.append(label[best])
        start += length
    ranked, order = torch.cat(scores).sort(descending=True, stable=True)
    return ranked, torch.cat(anchors)[order], torch.cat(labels)[order]


def _clip(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Float[Tensor, "n 4"]:
    width, height = size
    limit = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes.clamp(min=0), limit)


def suppress(boxes_xyxy: Float[Tensor, "n 4"], labels: Int[Tensor, " n"], iou: float) -> Int[Tensor, " m"]:
    """Greedy suppression per label of boxes given best first; overlap counts the inclusive pixel.

    torchvision's does not, and would keep boxes clipped to zero width that the reference drops. It is given half-open
    boxes in double precision, where adding the pixel is exact; label by label, as the cost grows with the square.
    """
    half_open = to_half_open(boxes_xyxy.double()).cpu()  # a launch per label would cost a GPU more than the boxes
    falling = -torch.arange(len(half_open), dtype=torch.double)
    by_label = labels.cpu().argsort(stable=True)
    counts = labels.cpu().bincount().tolist()
    kept = [rows[nms(half_open[rows], falling[rows], iou)] for rows in by_label.split(counts)]
    return torch.cat([by_label[:0], *kept]).sort().values.to(labels.device)
