"""LVIS average precision, of boxes and of masks, in its two forms.

The protocol is that of "LVIS: A Dataset for Large Vocabulary Instance Segmentation" (arXiv 1908.03195) as the lvis
package computes it. It is COCO's but for this: an image is only judged for the categories that it shows or is known not
to show; what is found beyond the truth of a category that was not annotated exhaustively in an image counts as nothing;
there are no crowds, no limit per category, and what has no area is left out. Averages over rare, common and frequent
categories are given as well.

The standard form takes the best 300 detections of an image. The fixed form of "Evaluating Large-Vocabulary Object
Detectors: The Devil is in the Details" (arXiv 2102.01066) takes the best 10,000 of a category instead.
"""

import contextlib
import copy
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glipv2.evaluation.coco_json import (
    IouType,
    Record,
    check_results,
    check_truth,
    id_text,
    load_results,
    load_truth,
)

PER_IMAGE = 300
"""Detections of an image that the standard form looks at."""
PER_CATEGORY = 10_000
"""Detections of a category, over all images, that the fixed form looks at."""
FREQUENCIES = "rcf"
"""Rare, common, frequent: in fewer than 10, fewer than 100, and more training images."""
SIZES = "sml"
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
"""An image's lists of categories: what it is known not to show, and what it shows more of than has boxes."""


def lvis_metrics(
    truth: Record, results: Sequence[Record], iou_type: IouType = "bbox", *, fixed: bool = False
) -> dict[str, float]:
    """Give the thirteen numbers of the lvis package for a whole data set.

    As there, masks that come with boxes are sorted into small, medium and large by their boxes' areas.

    Args:
        truth: content of an LVIS json.
        results: content of a COCO results json; the images it names must be the truth's.
        iou_type: compare boxes or masks.
        fixed: limit the detections of a category instead of those of an image.

    Returns:
        Fractions, by the lvis package's names; -1 where there is no truth.

    Raises:
        ValueError: one of the two is not of the format.
    """
    check_truth(truth)
    _check_federated(truth)
    chosen = check_results(results, iou_type)
    limited = _best(chosen, "category_id", PER_CATEGORY) if fixed else _best(chosen, "image_id", PER_IMAGE)
    annotations = [{**a, "iscrowd": 0, "ignore": a.get("ignore", 0)} for a in truth["annotations"]]
    with contextlib.redirect_stdout(io.StringIO()):
        known = load_truth({**truth, "annotations": annotations}, iou_type)
        ids = {id_text(id_): id_ for id_ in known.cats}
        for image in known.imgs.values():
            image |= {key: {ids.get(id_text(id_)) for id_ in image[key]} for key in FEDERATED}
        evaluation = _Federated(known, load_results(known, limited), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    return _summary(evaluation, f"{PER_CATEGORY}/cat" if fixed else str(PER_IMAGE))


class _Federated(COCOeval):
    """COCO's matching and averaging, under LVIS's rules."""

    def __init__(self, truth: COCO, found: COCO, iou_type: IouType) -> None:
        super().__init__(truth, found, iou_type)
        self.params.maxDets = [len(found.anns) + 1]  # they were limited before

    def evaluate(self) -> None:
        """Match where there is something to match: most of a thousand categories are in none of an image's lists."""
        self._prepare()
        p = self.params
        images = {image: i for i, image in enumerate(p.imgIds)}
        categories = {category: k for k, category in enumerate(p.catIds)}
        self.evalImgs = [None] * (len(categories) * len(p.areaRng) * len(images))
        for image, category in self._gts.keys() | self._dts.keys():
            self.ious[image, category] = self.computeIoU(image, category)
            partial = category in self.cocoGt.imgs[image]["not_exhaustive_category_ids"]
            for a, area in enumerate(p.areaRng):
                matched = self.evaluateImg(image, category, area, p.maxDets[-1])
                if partial:
                    matched["dtIgnore"] |= matched["dtMatches"] == 0
                place = (categories[category] * len(p.areaRng) + a) * len(images) + images[image]
                self.evalImgs[place] = matched
        self._paramsEval = copy.deepcopy(p)

    def _prepare(self) -> None:
        """Sort into pairs of image and category what counts there."""
        self._gts = _pairs(self.cocoGt.dataset["annotations"])
        self._dts = _pairs(self.cocoDt.dataset["annotations"])
        for image, category in list(self._dts):
            known_absent = category in self.cocoGt.imgs[image]["neg_category_ids"]
            if not known_absent and (image, category) not in self._gts:
                del self._dts[image, category]


def _pairs(records: list[Record]) -> defaultdict[Any, list[Record]]:
    pairs: defaultdict[Any, list[Record]] = defaultdict(list)
    for record in records:
        if record["area"] > 0:
            pairs[record["image_id"], record["category_id"]].append(record)
    return pairs


def _best(results: list[Record], key: str, limit: int) -> list[Record]:
    """Keep the best of each image or category; of equal scores those that come first."""
    groups: dict[Any, list[Record]] = defaultdict(list)
    for result in results:
        groups[result[key]].append(result)
    return [r for group in groups.values() for r in sorted(group, key=lambda r: -r["score"])[:limit]]


def _summary(evaluation: COCOeval, limit: str) -> dict[str, float]:
    precision = evaluation.eval["precision"][..., 0]  # IoU x recall x category x area
    recall = evaluation.eval["recall"][..., 0]  # IoU x category x area
    frequencies = [evaluation.cocoGt.cats[id_]["frequency"] for id_ in evaluation.params.catIds]
    groups = {name: [k for k, f in enumerate(frequencies) if f == name] for name in FREQUENCIES}
    return {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
        **{f"AP{size}": _mean(precision[..., a]) for a, size in enumerate(SIZES, start=1)},
        **{f"AP{name}": _mean(precision[:, :, group, 0]) for name, group in groups.items()},
        f"AR@{limit}": _mean(recall[..., 0]),
        **{f"AR{size}@{limit}": _mean(recall[..., a]) for a, size in enumerate(SIZES, start=1)},
    }


def _mean(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def _check_federated(truth: Record) -> None:
    for number, image in enumerate(truth["images"]):
        for key in FEDERATED:
            if not isinstance(image.get(key), list):
                what = f"images[{number}] of the truth has {key} {image.get(key)!r:.60}"
                raise ValueError(f"{what}; expected a list of ids: give an LVIS json, or score it as COCO")
    for number, category in enumerate(truth["categories"]):
        if category.get("frequency") not in tuple(FREQUENCIES):
            what = f"categories[{number}] of the truth has frequency {category.get('frequency')!r:.60}"
            raise ValueError(f"{what}; expected r, c or f: give an LVIS json, or score it as COCO")
