"""COCO average precision and recall, of boxes and of masks, by pycocotools.

The protocol is that of "Microsoft COCO: Common Objects in Context" (arXiv 1405.0312) as pycocotools computes it: IoU
.50:.95, 101 recalls, at most 100 detections per image and category, sizes split at 32 and 96 px squared, crowds neither
help nor harm.
"""

import contextlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.cocoeval import COCOeval

from glipv2.evaluation.coco_json import IouType, Record, check_results, check_truth, load_results, load_truth
from glipv2.inference.predictor import Prediction

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""What the twelve numbers of pycocotools are called, in its order."""


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """COCO bbox AP in percent; nan where there is no ground truth."""

    ap: float
    """Mean over IoU .50:.95 and categories."""
    ap50: float
    """At IoU .50."""
    per_category_ap50: dict[int, float]
    """AP at IoU .50 of each category."""


def coco_metrics(truth: Record, results: Sequence[Record], iou_type: IouType = "bbox") -> dict[str, float]:
    """Give pycocotools' twelve numbers for a whole data set.

    As in pycocotools, an image without results has found nothing, results of categories the truth does not have are
    left out, and masks that come with boxes are sorted into small, medium and large by their boxes' areas.

    Args:
        truth: content of a COCO json.
        results: content of a COCO results json; the images it names must be the truth's.
        iou_type: compare boxes or masks.

    Returns:
        Fractions, by the names in `NAMES`; -1 where there is no truth.

    Raises:
        ValueError: one of the two is not of the format.
    """
    check_truth(truth)
    chosen = check_results(results, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        known = load_truth(truth, iou_type)
        evaluation = COCOeval(known, load_results(known, chosen), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


def average_precision(
    annotations: Path, image_ids: Sequence[int], predictions: Sequence[Prediction]
) -> AveragePrecision:
    """Compare predictions, one per image id, with the boxes of a COCO json."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = load_truth(json.loads(annotations.read_text(encoding="utf-8")))
        evaluation = COCOeval(truth, load_results(truth, _results(image_ids, predictions)), "bbox")
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 2]  # IoU x recall x category, all areas, 100 detections
    return AveragePrecision(
        ap=_mean(precision),
        ap50=_mean(precision[0]),
        per_category_ap50={int(id_): _mean(precision[0, :, k]) for k, id_ in enumerate(evaluation.params.catIds)},
    )


def mean_of(result: AveragePrecision, categories: Sequence[int]) -> float | None:
    """Average AP50 over some categories; None if none of them has ground truth."""
    values = [result.per_category_ap50[c] for c in categories if not math.isnan(result.per_category_ap50[c])]
    return float(np.mean(values)) if values else None


def _results(image_ids: Sequence[int], predictions: Sequence[Prediction]) -> list[Record]:
    results: list[Record] = []
    for image_id, prediction in zip(image_ids, predictions, strict=True):
        for box, score, label in zip(prediction.boxes_xyxy.tolist(), prediction.scores, prediction.labels, strict=True):
            x1, y1, x2, y2 = box
            results.append(
                {"image_id": image_id, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            )
    return results


def _mean(precision: np.ndarray) -> float:
    valid = precision[precision > -1]
    return float(100 * valid.mean()) if valid.size else math.nan
