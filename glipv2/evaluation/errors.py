"""What a detector gets wrong: every detection judged once, and what can be read off the verdicts.

Detections are matched as COCO does at IoU .50, by pycocotools: best score first, each with the truth of its image and
category that it overlaps most, crowds neither helping nor harming. What matches nothing is sorted into the kinds of
"TIDE: A General Toolbox for Identifying Object Detection Errors" (arXiv 2008.08115), with its order and thresholds. The
calibration error is that of "On Calibration of Modern Neural Networks" (arXiv 1706.04599), over detections, right being
what matches.
"""

import contextlib
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glipv2.evaluation.coco_json import Record, check_results, check_truth, load_results, load_truth

MATCH_IOU, BACKGROUND_IOU = 0.5, 0.1
"""From the one on a box is right, below the other it is of nothing."""
MEASURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
"""What is measured of each category, as in `glipv2.evaluation.coco.NAMES`."""
SIZES_PX = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""COCO's sizes: areas in squared pixels."""

Id = int | str
Floats = NDArray[np.float64]


class Verdict(IntEnum):
    """What a detection is."""

    RIGHT = 0
    WRONG_CLASS = 1
    POOR_BOX = 2
    WRONG_CLASS_AND_POOR_BOX = 3
    DUPLICATE = 4
    BACKGROUND = 5
    IGNORED = 6

    @property
    def words(self) -> str:
        """The verdict as people say it."""
        return self.name.lower().replace("_", " ")


WRONG = tuple(verdict for verdict in Verdict if verdict not in (Verdict.RIGHT, Verdict.IGNORED))
"""The kinds of false positives."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is right and wrong when everything below a score is left out."""

    threshold: float
    """Least score that counts; nan where nothing was found at all."""
    num_right: int
    """Detections that match truth."""
    num_wrong: int
    """Detections that do not."""
    num_truth: int
    """Boxes to be found."""

    @property
    def precision(self) -> float:
        """Share of the detections that are right; nan without detections."""
        found = self.num_right + self.num_wrong
        return self.num_right / found if found else math.nan

    @property
    def recall(self) -> float:
        """Share of the truth that is found; nan without truth."""
        return self.num_right / self.num_truth if self.num_truth else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; nan without truth and detections."""
        both = self.num_right + self.num_wrong + self.num_truth
        return 2 * self.num_right / both if both else math.nan


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Counts at every score that occurs, the highest first."""

    scores: Floats
    """Different scores, falling."""
    num_right: NDArray[np.int64]
    """Right detections of at least this score."""
    num_wrong: NDArray[np.int64]
    """Wrong detections of at least this score."""
    num_truth: int
    """Boxes to be found."""

    @property
    def precision(self) -> Floats:
        """Precision at every score."""
        return self.num_right / (self.num_right + self.num_wrong)

    @property
    def recall(self) -> Floats:
        """Recall at every score; nan without truth."""
        return self.num_right / (self.num_truth or math.nan)

    def at(self, threshold: float) -> Point:
        """Count at any threshold."""
        return self._point(threshold, int(np.searchsorted(-self.scores, -threshold, side="right")) - 1)

    def best(self) -> Point:
        """Find the threshold of the highest F1, the higher one of equals."""
        if not len(self.scores):
            return self._point(math.nan, -1)
        f1 = 2 * self.num_right / (self.num_right + self.num_wrong + self.num_truth)
        best = int(f1.argmax())
        return self._point(float(self.scores[best]), best)

    def _point(self, threshold: float, index: int) -> Point:
        right, wrong = (int(n[index]) if index >= 0 else 0 for n in (self.num_right, self.num_wrong))
        return Point(threshold=threshold, num_right=right, num_wrong=wrong, num_truth=self.num_truth)


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Detections of similar score."""

    low: float
    """Least score."""
    high: float
    """Score that no longer belongs to it, except the last bin's 1."""
    count: int
    """Detections."""
    mean_score: float
    """Their mean score; nan without detections."""
    share_right: float
    """Share of them that is right; nan without detections."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Whether scores can be read as chances of being right."""

    bins: list[Bin]
    """Bins of equal width."""
    error: float
    """Expected calibration error: mean distance of score and share, weighted by counts; nan without detections."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A data set's truth and detections, each with what became of it."""

    images: dict[Id, Record]
    """Images by id, as the truth has them."""
    categories: dict[Id, str]
    """Names by id, ascending."""
    shown: dict[Id, set[Id]]
    """Per image the categories it shows, crowds included."""
    measures: dict[Id, dict[str, float]]
    """Per category the fractions named in `MEASURES`; nan where there is no truth."""
    detections: list[Record]
    """Detections that were looked at (at most 100 per image and category), best first."""
    scores: Floats
    """Their scores."""
    verdicts: NDArray[np.int8]
    """Their verdicts, values of `Verdict`."""
    truth: list[Record]
    """Annotations without crowds."""
    found_at: Floats
    """Per annotation the score of the detection that found it; -inf if none did."""

    @property
    def overall(self) -> dict[str, float]:
        """Mean of each measure over the categories that have it, as COCO reports it; nan where none has."""
        columns = {name: [row[name] for row in self.measures.values()] for name in MEASURES}
        known = {name: [value for value in values if not math.isnan(value)] for name, values in columns.items()}
        return {name: float(np.mean(values)) if values else math.nan for name, values in known.items()}

    def curve(self) -> Curve:
        """Count over all detections of all categories together."""
        return _curve(self.scores, self.verdicts, len(self.truth))

    def category_curves(self) -> dict[Id, Curve]:
        """Count for each category by itself."""
        owners = _grouped(self.detections)
        num_truth = {category: len(rows) for category, rows in _grouped(self.truth).items()}
        return {
            category: _curve(self.scores[own], self.verdicts[own], num_truth.get(category, 0))
            for category in self.categories
            for own in [owners.get(category, [])]
        }

    def kinds(self, threshold: float) -> dict[Verdict, int]:
        """Count the false positives from a threshold on, by kind."""
        counted = np.bincount(self.verdicts[self.scores >= threshold], minlength=len(Verdict))
        return {kind: int(counted[kind]) for kind in WRONG}

    def calibration(self, num_bins: int = 10) -> Calibration | None:
        """Compare scores with the share that is right; None if scores are no fractions."""
        counted = self.verdicts != Verdict.IGNORED
        scores, right = self.scores[counted], self.verdicts[counted] == Verdict.RIGHT
        if len(scores) and not 0 <= scores.min() <= scores.max() <= 1:
            return None
        places = np.minimum((scores * num_bins).astype(int), num_bins - 1)
        bins = [
            Bin(
                low=i / num_bins,
                high=(i + 1) / num_bins,
                count=int(own.sum()),
                mean_score=float(scores[own].mean()) if own.any() else math.nan,
                share_right=float(right[own].mean()) if own.any() else math.nan,
            )
            for i in range(num_bins)
            for own in [places == i]
        ]
        distances = [b.count * abs(b.mean_score - b.share_right) for b in bins if b.count]
        return Calibration(bins=bins, error=sum(distances) / len(scores) if len(scores) else math.nan)


def judge(truth: Any, results: Any) -> Judged:
    """Judge a data set's detections.

    Where images list ``neg_category_ids`` (LVIS), detections of categories that an image neither shows nor is known not
    to show are left out, and what is too much of a category in its ``not_exhaustive_category_ids`` is ignored.

    Args:
        truth: content of a COCO json.
        results: content of a COCO results json of any tool; the images it names must be the truth's.

    Raises:
        ValueError: one of the two is not of the format, or a detection is of an unknown image.
    """
    check_truth(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        known = load_truth(truth)
        found = _federated(known, load_results(known, check_results(results, "bbox")))
    verdicts, found_at, measures = _match(known, found)
    _explain(known, found, verdicts)
    counted = sorted((found.anns[number] for number in verdicts), key=lambda d: -d["score"])
    objects = [a for a in known.dataset["annotations"] if not a["iscrowd"]]
    return Judged(
        images=known.imgs,
        categories={id_: str(known.cats[id_].get("name", id_)) for id_ in sorted(known.cats)},
        shown={id_: {a["category_id"] for a in known.imgToAnns[id_]} for id_ in known.imgs},
        measures=measures,
        detections=counted,
        scores=np.array([d["score"] for d in counted], np.float64),
        verdicts=np.array([verdicts[d["id"]] for d in counted], np.int8),
        truth=objects,
        found_at=np.array([found_at.get(a["id"], -math.inf) for a in objects], np.float64),
    )


def _federated(known: COCO, found: COCO) -> COCO:
    """Leave out what cannot be judged because nobody looked."""
    shown = {(a["image_id"], a["category_id"]) for a in known.dataset["annotations"]}
    asked = {id_: set(image["neg_category_ids"]) for id_, image in known.imgs.items() if "neg_category_ids" in image}
    if not asked:
        return found
    judged = COCO()
    judged.dataset = {
        **found.dataset,
        "annotations": [
            d
            for d in found.dataset["annotations"]
            if (d["image_id"], d["category_id"]) in shown or d["category_id"] in asked.get(d["image_id"], ())
        ],
    }
    judged.createIndex()
    return judged


def _match(known: COCO, found: COCO) -> tuple[dict[int, Verdict], dict[int, float], dict[Id, dict[str, float]]]:
    """Match category by category, each only where it occurs: a table of all images and categories may not fit."""
    verdicts: dict[int, Verdict] = {}
    found_at: dict[int, float] = {}
    measures: dict[Id, dict[str, float]] = {}
    for category in sorted(known.cats):
        evaluation = COCOeval(known, found, "bbox")
        evaluation.params.catIds = [category]
        evaluation.params.maxDets = evaluation.params.maxDets[-1:]
        evaluation.params.imgIds = sorted({*known.catToImgs[category], *found.catToImgs[category]})
        measures[category] = dict.fromkeys(MEASURES, math.nan)
        if not evaluation.params.imgIds:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        measures[category] = _measures(evaluation.eval)
        for matched in evaluation.evalImgs[: len(evaluation.params.imgIds)]:  # those of all sizes come first
            if matched is not None:
                verdicts |= dict(zip(matched["dtIds"], _verdicts(known, matched), strict=True))
                pairs = zip(matched["gtIds"], matched["gtMatches"][0], strict=True)
                scores = dict(zip(matched["dtIds"], matched["dtScores"], strict=True))
                found_at |= {annotation: scores[int(by)] for annotation, by in pairs if by}
    return verdicts, found_at, measures


def _measures(evaluated: Record) -> dict[str, float]:
    precision, recall = evaluated["precision"][:, :, 0, :, -1], evaluated["recall"][:, 0, 0, -1]
    chosen = (
        precision[..., 0],
        precision[0, :, 0],
        precision[5, :, 0],
        *np.moveaxis(precision[..., 1:], -1, 0),
        recall,
    )
    valid = [values[values > -1] for values in chosen]
    return {
        name: float(values.mean()) if values.size else math.nan for name, values in zip(MEASURES, valid, strict=True)
    }


def _verdicts(known: COCO, matched: Record) -> Iterator[Verdict]:
    """Tell the right from the ignored; all others are background until `_explain` knows better."""
    loose = matched["category_id"] in known.imgs[matched["image_id"]].get("not_exhaustive_category_ids", ())
    for match, ignored in zip(matched["dtMatches"][0], matched["dtIgnore"][0], strict=True):
        if ignored or (loose and not match):
            yield Verdict.IGNORED
        else:
            yield Verdict.RIGHT if match else Verdict.BACKGROUND


def _explain(known: COCO, found: COCO, verdicts: dict[int, Verdict]) -> None:
    """Tell what the false positives of each image are."""
    wrong: dict[Id, list[Record]] = defaultdict(list)
    for number, verdict in verdicts.items():
        if verdict is Verdict.BACKGROUND:
            wrong[found.anns[number]["image_id"]].append(found.anns[number])
    for image, detections in wrong.items():
        if truth := [a for a in known.imgToAnns[image] if not a["iscrowd"]]:
            kinds = _kinds(detections, truth)
            verdicts |= {d["id"]: Verdict(kind) for d, kind in zip(detections, kinds.tolist(), strict=True)}


def _kinds(wrong: Sequence[Record], truth: Sequence[Record]) -> NDArray[np.int64]:
    boxes = (np.array([record["bbox"] for record in records], np.float64) for records in (wrong, truth))
    overlaps = mask.iou(*boxes, [0] * len(truth))
    alike = np.array([[d["category_id"] == t["category_id"] for t in truth] for d in wrong])
    same, other = np.where(alike, overlaps, 0).max(1), np.where(alike, 0, overlaps).max(1)
    conditions = {
        Verdict.POOR_BOX: (same >= BACKGROUND_IOU) & (same < MATCH_IOU),
        Verdict.WRONG_CLASS: other >= MATCH_IOU,
        Verdict.DUPLICATE: same >= MATCH_IOU,
        Verdict.BACKGROUND: np.maximum(same, other) < BACKGROUND_IOU,
    }
    kinds: NDArray[np.int64] = np.select(
        list(conditions.values()), list(map(int, conditions)), Verdict.WRONG_CLASS_AND_POOR_BOX
    )
    return kinds


def _curve(scores: Floats, verdicts: NDArray[np.int8], num_truth: int) -> Curve:
    """Count what is at least as good as each score; scores fall."""
    counted = verdicts != Verdict.IGNORED
    scores, right = scores[counted], verdicts[counted] == Verdict.RIGHT
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # of equal scores the last has counted them all
    return Curve(
        scores=scores[last],
        num_right=np.cumsum(right)[last],
        num_wrong=np.cumsum(~right)[last],
        num_truth=num_truth,
    )


def _grouped(records: Sequence[Record]) -> dict[Id, list[int]]:
    """List the positions of each category's records."""
    positions: dict[Id, list[int]] = defaultdict(list)
    for position, record in enumerate(records):
        positions[record["category_id"]].append(position)
    return positions
