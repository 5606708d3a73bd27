"""COCO average precision, by pycocotools."""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glipv2.inference.predictor import Prediction


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """COCO bbox AP in percent; nan where there is no ground truth."""

    ap: float
    """Mean over IoU .50:.95 and categories."""
    ap50: float
    """At IoU .50."""
    per_category_ap50: dict[int, float]
    """AP at IoU .50 of each category."""


def average_precision(
    annotations: Path, image_ids: Sequence[int], predictions: Sequence[Prediction]
) -> AveragePrecision:
    """Compare predictions, one per image id, with the boxes of a COCO json.

    Annotation id 0 would be read as "no match" by pycocotools, so ids are renumbered from 1.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        truth.dataset["annotations"] = [
            # The id, and the two optional fields the evaluation reads.
            {"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a, "id": number}
            for number, a in enumerate(truth.dataset["annotations"], start=1)
        ]
        truth.dataset.setdefault("info", {})
        truth.createIndex()
        results = _results(image_ids, predictions)
        found = truth.loadRes(results) if results else _nothing(truth)
        evaluation = COCOeval(truth, found, "bbox")
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


def _results(image_ids: Sequence[int], predictions: Sequence[Prediction]) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for image_id, prediction in zip(image_ids, predictions, strict=True):
        for box, score, label in zip(prediction.boxes_xyxy.tolist(), prediction.scores, prediction.labels, strict=True):
            x1, y1, x2, y2 = box
            results.append(
                {"image_id": image_id, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            )
    return results


def _nothing(truth: COCO) -> COCO:
    empty = COCO()
    empty.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []}
    empty.createIndex()
    return empty


def _mean(precision: np.ndarray) -> float:
    valid = precision[precision > -1]
    return float(100 * valid.mean()) if valid.size else math.nan
