"""LVIS metrics: as COCO's where everything is annotated, LVIS's own rules by hand, all of it against a plain loop."""

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from glipv2.evaluation import lvis
from glipv2.evaluation.coco import coco_metrics
from glipv2.evaluation.coco_json import IouType
from glipv2.evaluation.lvis import lvis_metrics

Record = dict[str, Any]
MakeData = Callable[..., tuple[Record, list[Record]]]
AREAS: dict[str, tuple[float, float]] = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


def exhaustive(truth: Record) -> Record:
    """Say of every image that it shows nothing but what is annotated."""
    every = [category["id"] for category in truth["categories"]]
    lists = {"neg_category_ids": every, "not_exhaustive_category_ids": []}
    annotations = [{**a, "iscrowd": 0} for a in truth["annotations"]]
    return {**truth, "images": [image | lists for image in truth["images"]], "annotations": annotations}


def federated(truth: Record, seed: int) -> Record:
    """Say of every image something else, and of some annotations that they do not count."""
    draw, lists = random.Random(seed), ("neg_category_ids", "not_exhaustive_category_ids")
    every = [category["id"] for category in truth["categories"]]
    for image in truth["images"]:
        image |= {name: [id_ for id_ in every if draw.random() < 0.4] for name in lists}
    for annotation in truth["annotations"]:
        annotation["ignore"] = int(draw.random() < 0.1)
    return truth


def box_truth(boxes: dict[int, list[float]], **lists: list[int]) -> Record:
    """Make one image of 1,000 px with at most one box of each of the categories 1 (rare), 2 (common), 3 (frequent)."""
    image = {"id": 1, "neg_category_ids": [], "not_exhaustive_category_ids": [], **lists}
    categories = [{"id": id_, "frequency": frequency} for id_, frequency in enumerate("rcf", start=1)]
    return {
        "images": [image],
        "categories": categories,
        "annotations": [{"image_id": 1, "category_id": id_, "bbox": box} for id_, box in boxes.items()],
    }


def found(category: int, box: list[float], score: float) -> Record:
    return {"image_id": 1, "category_id": category, "bbox": box, "score": score}


HERE, THERE = [0.0, 0.0, 100.0, 100.0], [500.0, 500.0, 100.0, 100.0]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(2))
def test_it_is_coco_where_every_image_is_annotated_exhaustively(
    seed: int, iou_type: IouType, make_data: MakeData
) -> None:
    truth, results = make_data(seed, noise=20)
    truth = exhaustive(truth)
    coco, ours = coco_metrics(truth, results, iou_type), lvis_metrics(truth, results, iou_type)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [ours[name] for name in names] == [coco[name] for name in names]
    assert [ours["AR@300"], ours["ARs@300"]] == [coco["AR100"], coco["ARs"]]
    assert lvis_metrics(truth, results, iou_type, fixed=True)["AP"] == coco["AP"]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_federated_rules_give_what_a_plain_loop_gives(
    seed: int, fixed: bool, make_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lvis, "PER_IMAGE", 30)
    monkeypatch.setattr(lvis, "PER_CATEGORY", 50)
    truth, results = make_data(seed)
    truth = federated(truth, seed)
    expected = plain_loop(truth, limit(results, "category_id", 50) if fixed else limit(results, "image_id", 30))
    ours = lvis_metrics(truth, results, fixed=fixed)
    assert list(ours.values()) == pytest.approx(list(expected.values()), abs=1e-12)
    assert 0 < ours["AP"] < 1


def test_what_is_in_neither_list_does_not_count() -> None:
    results = [found(1, THERE, 0.9), found(2, HERE, 0.8)]
    assert lvis_metrics(box_truth({2: HERE}), results)["AP"] == pytest.approx(1)


def test_what_is_known_to_be_absent_is_wrong() -> None:
    results = [found(1, THERE, 0.9), found(1, HERE, 0.8)]
    truth = box_truth({1: HERE})
    truth["images"].append({"id": 2, "neg_category_ids": [1], "not_exhaustive_category_ids": []})
    assert lvis_metrics(truth, results)["AP"] == pytest.approx(0.5)  # HERE's category is annotated, so THERE is wrong
    results[0]["image_id"] = 2
    assert lvis_metrics(truth, results)["AP"] == pytest.approx(0.5)
    truth["images"][1]["neg_category_ids"] = []
    assert lvis_metrics(truth, results)["AP"] == pytest.approx(1)


@pytest.mark.parametrize(("own", "listed"), [("1", 1), (1, "1"), (1, 1.0), ("a", "a")])
def test_lists_of_categories_may_write_ids_otherwise(own: Any, listed: Any) -> None:
    truth, results = box_truth({1: HERE}), [found(1, THERE, 0.9), found(1, HERE, 0.8)]
    truth["images"].append({"id": 2, "neg_category_ids": [listed], "not_exhaustive_category_ids": []})
    results[0]["image_id"] = 2
    for key, record in (
        ("id", truth["categories"][0]),
        *(("category_id", r) for r in [*truth["annotations"], *results]),
    ):
        record[key] = own
    assert lvis_metrics(truth, results)["AP"] == pytest.approx(0.5)
    truth["images"][1]["not_exhaustive_category_ids"] = [listed]
    assert lvis_metrics(truth, results)["AP"] == pytest.approx(1)


def test_more_of_a_category_that_is_not_annotated_exhaustively_counts_as_nothing() -> None:
    results = [found(1, THERE, 0.9), found(1, HERE, 0.8)]
    assert lvis_metrics(box_truth({1: HERE}), results)["AP"] == pytest.approx(0.5)
    assert lvis_metrics(box_truth({1: HERE}, not_exhaustive_category_ids=[1]), results)["AP"] == pytest.approx(1)


def test_rare_common_and_frequent_categories_have_their_averages() -> None:
    truth = box_truth({1: HERE, 2: HERE}, neg_category_ids=[3])
    scores = lvis_metrics(truth, [found(1, HERE, 0.9), found(3, HERE, 0.9)])
    assert [scores[name] for name in ("AP", "APr", "APc", "APf")] == pytest.approx([0.5, 1, 0, -1])


def test_an_image_has_300_detections_or_a_category_10_000() -> None:
    wrong = [found(1, THERE, 0.9)] * 300
    right = [found(2, HERE, 0.8)]
    truth = box_truth({1: HERE, 2: HERE})
    assert lvis_metrics(truth, wrong[1:] + right)["APc"] == pytest.approx(1)
    assert lvis_metrics(truth, wrong + right)["APc"] == 0
    assert lvis_metrics(truth, wrong + right, fixed=True)["APc"] == pytest.approx(1)
    many = [found(1, THERE, 0.9)] * 10_000 + [found(1, HERE, 0.8)]
    assert lvis_metrics(truth, many, fixed=True)["APr"] == 0
    assert lvis_metrics(truth, many[1:], fixed=True)["APr"] > 0


def test_of_equal_scores_the_first_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lvis, "PER_IMAGE", 1)
    truth, results = box_truth({1: HERE}), [found(1, HERE, 0.5), found(1, THERE, 0.5)]
    assert lvis_metrics(truth, results)["AP"] == pytest.approx(1)
    assert lvis_metrics(truth, results[::-1])["AP"] == 0


def test_boxes_without_area_are_left_out() -> None:
    results = [found(1, [0.0, 0.0, 100.0, 0.0], 0.9), found(1, HERE, 0.8)]
    assert lvis_metrics(box_truth({1: HERE, 2: [5.0, 5.0, 0.0, 5.0]}), results)["AP"] == pytest.approx(1)


def test_order_of_predictions_does_not_matter(make_data: MakeData) -> None:
    truth, results = make_data(1)
    truth = federated(truth, 1)
    for number, result in enumerate(results):
        result["score"] = number / len(results)
    expected = lvis_metrics(truth, results)
    random.Random(0).shuffle(results)
    assert lvis_metrics(truth, results) == pytest.approx(expected, abs=1e-12)


def test_what_is_given_stays_as_it_is(make_data: MakeData) -> None:
    truth, results = make_data(1)
    truth = federated(truth, 1)
    before = copy.deepcopy((truth, results))
    lvis_metrics(truth, results)
    assert (truth, results) == before


def test_no_predictions_score_0() -> None:
    scores = lvis_metrics(box_truth({1: HERE}), [])
    assert [scores[name] for name in ("AP", "APr", "APc", "AR@300")] == [0, 0, -1, 0]


def test_a_coco_json_is_refused(make_data: MakeData) -> None:
    truth, results = make_data(0)
    with pytest.raises(ValueError, match=r"images\[0\] of the truth has neg_category_ids None"):
        lvis_metrics(truth, results)
    truth = exhaustive(truth)
    del truth["categories"][1]["frequency"]
    with pytest.raises(ValueError, match=r"categories\[1\] of the truth has frequency None; expected r, c or f"):
        lvis_metrics(truth, results)


def limit(results: list[Record], key: str, most: int) -> list[Record]:
    ranked = sorted(results, key=lambda r: -r["score"])
    return [r for i, r in enumerate(ranked) if sum(other[key] == r[key] for other in ranked[:i]) < most]


def plain_loop(truth: Record, results: list[Record]) -> dict[str, float]:
    """Score boxes as LVIS says, one question after the other; slow."""
    ap: dict[tuple[str, int, float], float] = {}
    recall: dict[tuple[str, int, float], float] = {}
    thresholds = np.linspace(0.5, 0.95, 10).tolist()
    for size, area in AREAS.items():
        for category in truth["categories"]:
            for threshold in thresholds:
                verdicts, num_targets = [], 0
                for image in truth["images"]:
                    judged, expected = _judge(truth, results, image, category["id"], threshold, area)
                    verdicts += judged
                    num_targets += expected
                if num_targets:
                    key = size, category["id"], threshold
                    ap[key], recall[key] = _curve(verdicts, num_targets)
    frequency = {category["id"]: category["frequency"] for category in truth["categories"]}
    report = {
        "AP": _mean(ap[k] for k in ap if k[0] == ""),
        "AP50": _mean(ap[k] for k in ap if k[0] == "" and k[2] == thresholds[0]),
        "AP75": _mean(ap[k] for k in ap if k[0] == "" and k[2] == thresholds[5]),
    }
    report |= {f"AP{size}": _mean(ap[k] for k in ap if k[0] == size) for size in "sml"}
    report |= {f"AP{f}": _mean(ap[k] for k in ap if k[0] == "" and frequency[k[1]] == f) for f in "rcf"}
    return report | {f"AR{size}": _mean(recall[k] for k in recall if k[0] == size) for size in AREAS}


def _judge(
    truth: Record, results: list[Record], image: Record, category: int, threshold: float, area: tuple[float, float]
) -> tuple[list[tuple[float, bool]], int]:
    """Give score and rightness of the detections that count, and the number of boxes to find."""

    def own(record: Record) -> bool:
        return bool(record["image_id"] == image["id"] and record["category_id"] == category)

    targets = [a for a in truth["annotations"] if own(a)]
    if not targets and category not in image["neg_category_ids"]:
        return [], 0
    least, most = area
    skipped = [bool(t["ignore"]) or not least <= t["area"] <= most for t in targets]
    free, verdicts = set(range(len(targets))), []
    for result in sorted(filter(own, results), key=lambda r: -r["score"]):
        close = [i for i in free if _iou(result["bbox"], targets[i]["bbox"]) >= threshold]
        # A box to find is preferred to one to skip, then the closest, and of two as close the later one.
        best = max(close, key=lambda i: (not skipped[i], _iou(result["bbox"], targets[i]["bbox"]), i), default=None)
        size = result["bbox"][2] * result["bbox"][3]
        if best is not None:
            free.remove(best)
            if not skipped[best]:
                verdicts.append((result["score"], True))
        elif least <= size <= most and category not in image["not_exhaustive_category_ids"]:
            verdicts.append((result["score"], False))
    return verdicts, skipped.count(False)


def _curve(verdicts: list[tuple[float, bool]], num_targets: int) -> tuple[float, float]:
    right = [verdict for _, verdict in sorted(verdicts, key=lambda verdict: -verdict[0])]
    recalls = [sum(right[: i + 1]) / num_targets for i in range(len(right))]
    precisions = [sum(right[: i + 1]) / (i + 1) for i in range(len(right))]
    best = [
        max((p for r, p in zip(recalls, precisions, strict=True) if r >= at), default=0.0)
        for at in np.linspace(0, 1, 101)
    ]
    return math.fsum(best) / 101, recalls[-1] if recalls else 0.0


def _iou(box: list[float], other: list[float]) -> float:
    (x, y, w, h), (u, v, a, b) = box, other
    shared = max(min(x + w, u + a) - max(x, u), 0) * max(min(y + h, v + b) - max(y, v), 0)
    return shared / (w * h + a * b - shared)


def _mean(values: Any) -> float:
    found = list(values)
    return math.fsum(found) / len(found) if found else -1.0
