import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from glipv2.evaluation.coco import coco_metrics
from glipv2.evaluation.errors import MEASURES, Verdict, judge

Record = dict[str, Any]
CAT, DOG, PERSON = 1, 2, 3


def box_of(image: Any, category: Any, box: list[float], **more: Any) -> Record:
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def truth_of(*annotations: Record, images: tuple[Record, ...] = ({"id": 7},)) -> Record:
    names = {CAT: "cat", DOG: "dog", PERSON: "person"}
    categories = [{"id": id_, "name": name} for id_, name in names.items()]
    numbered = [{"id": number, **a} for number, a in enumerate(annotations)]
    return {"images": list(images), "categories": categories, "annotations": numbered}


TRUTH = truth_of(
    box_of(7, CAT, [0, 0, 100, 100]),
    box_of(7, DOG, [200, 0, 100, 100]),
    box_of(7, PERSON, [400, 0, 200, 200], iscrowd=1),
)
FOUND = {
    Verdict.RIGHT: box_of(7, CAT, [0, 0, 100, 100], score=0.95),
    Verdict.DUPLICATE: box_of(7, CAT, [2, 0, 100, 100], score=0.85),
    Verdict.WRONG_CLASS: box_of(7, DOG, [0, 0, 100, 100], score=0.75),
    Verdict.POOR_BOX: box_of(7, DOG, [260, 0, 100, 100], score=0.65),
    Verdict.WRONG_CLASS_AND_POOR_BOX: box_of(7, CAT, [260, 0, 100, 100], score=0.55),
    Verdict.BACKGROUND: box_of(7, CAT, [700, 700, 50, 50], score=0.45),
    Verdict.IGNORED: box_of(7, PERSON, [410, 10, 50, 50], score=0.35),
}


@pytest.mark.parametrize("kind", FOUND)
def test_every_detection_is_of_its_kind(kind: Verdict) -> None:
    judged = judge(TRUTH, list(FOUND.values()))
    position = list(FOUND).index(kind)
    assert judged.detections[position]["bbox"] == FOUND[kind]["bbox"]
    assert judged.verdicts[position] == kind


@pytest.mark.parametrize("seed", range(4))
def test_measures_are_those_of_coco(seed: int, make_data: Callable[[int], tuple[Record, list[Record]]]) -> None:
    truth, results = make_data(seed)
    official, own = coco_metrics(truth, results), judge(truth, results).overall
    for name in MEASURES:
        assert own[name] == pytest.approx(official[name]) or (official[name] == -1 and math.isnan(own[name]))


def test_what_is_found_and_what_is_right_are_equally_many(
    make_data: Callable[[int], tuple[Record, list[Record]]],
) -> None:
    judged = judge(*make_data(1))
    assert (judged.verdicts == Verdict.RIGHT).sum() == (judged.found_at > -math.inf).sum() > 0


def test_an_annotation_knows_the_score_it_was_found_at() -> None:
    judged = judge(TRUTH, list(FOUND.values()))
    assert [t["category_id"] for t in judged.truth] == [CAT, DOG]  # a crowd is nothing to be found
    assert judged.found_at.tolist() == [0.95, -math.inf]


def test_false_positives_are_counted_from_the_threshold_on() -> None:
    counted = judge(TRUTH, list(FOUND.values())).kinds(0.65)
    assert [kind for kind, number in counted.items() if number] == [
        Verdict.WRONG_CLASS,
        Verdict.POOR_BOX,
        Verdict.DUPLICATE,
    ]
    assert sum(counted.values()) == 3


@pytest.mark.parametrize(
    ("threshold", "right", "wrong"), [(0.96, 0, 0), (0.95, 1, 0), (0.8, 1, 1), (0.45, 1, 5), (0.0, 1, 5)]
)
def test_a_point_counts_scores_at_or_above_the_threshold(threshold: float, right: int, wrong: int) -> None:
    point = judge(TRUTH, list(FOUND.values())).curve().at(threshold)
    assert (point.num_right, point.num_wrong, point.num_truth) == (right, wrong, 2)


def test_precision_recall_and_f1_are_of_the_counts() -> None:
    point = judge(TRUTH, list(FOUND.values())).curve().at(0.8)
    assert (point.precision, point.recall, point.f1) == (0.5, 0.5, 0.5)


def test_the_best_threshold_has_the_highest_f1() -> None:
    curve = judge(TRUTH, list(FOUND.values())).curve()
    best = curve.best()
    assert best.threshold == 0.95
    assert best.f1 == pytest.approx(2 / 3) == max(curve.at(score).f1 for score in curve.scores)


def test_equal_scores_fall_on_one_side_of_every_threshold() -> None:
    results = [box_of(7, CAT, [0, 0, 100, 100], score=0.5), box_of(7, CAT, [500, 500, 9, 9], score=0.5)]
    curve = judge(TRUTH, results).curve()
    assert (curve.scores.tolist(), curve.num_right.tolist(), curve.num_wrong.tolist()) == ([0.5], [1], [1])


def test_a_category_has_its_own_curve() -> None:
    curves = judge(TRUTH, list(FOUND.values())).category_curves()
    told = {category: (c.num_truth, len(c.scores)) for category, c in curves.items()}
    assert told == {CAT: (1, 4), DOG: (1, 2), PERSON: (0, 0)}


def test_calibration_compares_scores_with_what_is_right() -> None:
    calibration = judge(TRUTH, list(FOUND.values())).calibration()
    assert calibration is not None
    filled = {b.low: (b.count, b.mean_score, b.share_right) for b in calibration.bins if b.count}
    assert filled[0.9] == (1, 0.95, 1.0)
    assert filled[0.8] == (1, 0.85, 0.0)
    assert 0.3 not in filled  # what is ignored does not count
    assert calibration.error == pytest.approx((0.05 + 0.85 + 0.75 + 0.65 + 0.55 + 0.45) / 6)


def test_a_score_of_one_is_in_the_last_bin() -> None:
    calibration = judge(TRUTH, [FOUND[Verdict.RIGHT] | {"score": 1.0}]).calibration()
    assert calibration is not None
    assert calibration.bins[-1].count == 1


def test_scores_that_are_no_fractions_have_no_calibration() -> None:
    assert judge(TRUTH, [FOUND[Verdict.RIGHT] | {"score": 12.5}]).calibration() is None


def test_without_detections_everything_is_missed() -> None:
    judged = judge(TRUTH, [])
    point, calibration = judged.curve().best(), judged.calibration()
    assert (point.num_right, point.num_wrong, point.num_truth) == (0, 0, 2)
    assert math.isnan(point.threshold)
    assert judged.overall["AP"] == 0
    assert calibration is not None
    assert math.isnan(calibration.error)


def test_without_truth_everything_is_background() -> None:
    judged = judge(truth_of(), [FOUND[Verdict.RIGHT]])
    assert judged.verdicts.tolist() == [Verdict.BACKGROUND]
    assert all(math.isnan(value) for value in judged.overall.values())
    assert math.isnan(judged.curve().at(0.5).recall)


def test_ids_may_be_texts() -> None:
    truth = {
        "images": [{"id": "a"}],
        "categories": [{"id": "x"}],
        "annotations": [box_of("a", "x", [0, 0, 10, 10])],
    }
    judged = judge(truth, [box_of("a", "x", [0, 0, 10, 10], score=0.5)])
    assert judged.verdicts.tolist() == [Verdict.RIGHT]
    assert judged.categories == {"x": "x"}


def test_an_unknown_image_is_told_in_a_line() -> None:
    with pytest.raises(ValueError, match=r"predictions\[1\] is of image 8, which the truth does not have; give "):
        judge(TRUTH, [FOUND[Verdict.RIGHT], FOUND[Verdict.RIGHT] | {"image_id": 8}])


def test_unknown_categories_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    judged = judge(TRUTH, [FOUND[Verdict.RIGHT], FOUND[Verdict.RIGHT] | {"category_id": 9}])
    assert len(judged.detections) == 1
    assert "left out 1 predictions of categories the truth does not have" in caplog.text


def test_what_nobody_looked_for_is_not_judged() -> None:
    image = {"id": 7, "neg_category_ids": [DOG], "not_exhaustive_category_ids": [CAT]}
    truth = truth_of(box_of(7, CAT, [0, 0, 100, 100]), images=(image,))
    far = [500.0, 500.0, 50.0, 50.0]
    results = [box_of(7, category, far, score=0.5) for category in (CAT, DOG, PERSON)]
    judged = judge(truth, results)
    told = {d["category_id"]: Verdict(v) for d, v in zip(judged.detections, judged.verdicts, strict=True)}
    assert told == {CAT: Verdict.IGNORED, DOG: Verdict.BACKGROUND}


def test_crowds_are_shown_though_nothing_to_be_found() -> None:
    assert judge(TRUTH, []).shown == {7: {CAT, DOG, PERSON}}


def test_points_can_be_written_as_they_are() -> None:
    assert asdict(judge(TRUTH, []).curve().at(0.5)) == {
        "threshold": 0.5,
        "num_right": 0,
        "num_wrong": 0,
        "num_truth": 2,
    }
