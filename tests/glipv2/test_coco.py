"""COCO average precision on hand-made truths."""

import json
import math
from pathlib import Path

import pytest
import torch

from glipv2.evaluation.coco import AveragePrecision, average_precision, mean_of
from glipv2.inference.predictor import Prediction

NOTHING = Prediction(boxes_xyxy=torch.zeros(0, 4), scores=[], labels=[])
BOXES = {10: [(0, [5.0, 5.0, 25.0, 30.0]), (1, [30.0, 10.0, 60.0, 50.0])], 3: [(1, [2.0, 2.0, 40.0, 40.0])]}
"""Image id to (category, box); ids start at 0, and 0 is a real category, as in a real face-mask data set."""


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    boxes = [(image, category, box) for image, found in BOXES.items() for category, box in found]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for number, (image, category, (x1, y1, x2, y2)) in enumerate(boxes)
    ]
    content = {
        "images": [{"id": image, "width": 64, "height": 64} for image in (3, 10, 11)],
        "categories": [{"id": category, "name": str(category)} for category in (0, 1, 7)],
        "annotations": annotations,
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def predict(image: int, shift: float = 0.0) -> Prediction:
    found = BOXES.get(image, [])
    return Prediction(
        boxes_xyxy=torch.tensor([box for _, box in found]).reshape(-1, 4) + shift,
        scores=[0.9] * len(found),
        labels=[category for category, _ in found],
    )


def test_perfect_predictions_score_100(truth: Path) -> None:
    # The first annotation has id 0, which pycocotools alone would take for "no match".
    result = average_precision(truth, [11, 3, 10], [predict(11), predict(3), predict(10)])
    assert result.ap == pytest.approx(100)
    assert result.ap50 == pytest.approx(100)


def test_no_predictions_score_0(truth: Path) -> None:
    result = average_precision(truth, [3, 10], [NOTHING, NOTHING])
    assert result.ap == result.ap50 == 0


def test_every_category_has_its_own_score_and_none_without_truth(truth: Path) -> None:
    result = average_precision(truth, [3, 10], [NOTHING, predict(10)])
    expected = {0: 100.0, 1: 50.0, 7: math.nan}  # half of the boxes of category 1 are found: recall up to .5
    assert result.per_category_ap50 == pytest.approx(expected, abs=1, nan_ok=True)


def test_wrong_categories_score_0(truth: Path) -> None:
    swapped = Prediction(boxes_xyxy=predict(10).boxes_xyxy, scores=[0.9, 0.9], labels=[1, 0])
    assert average_precision(truth, [3, 10], [NOTHING, swapped]).ap50 == 0


def test_loose_boxes_count_at_the_lower_overlaps_only(truth: Path) -> None:
    result = average_precision(truth, [3, 10], [predict(3, shift=2.0), predict(10, shift=2.0)])
    assert result.ap50 == pytest.approx(100)
    assert 40 < result.ap < 90


def test_only_the_given_images_count(truth: Path) -> None:
    assert average_precision(truth, [3], [predict(3)]).ap == pytest.approx(100)


def test_images_without_truth_have_no_score(truth: Path) -> None:
    assert math.isnan(average_precision(truth, [11], [NOTHING]).ap)


def test_crowds_neither_help_nor_harm(truth: Path) -> None:
    content = json.loads(truth.read_text(encoding="utf-8"))
    content["annotations"][1]["iscrowd"] = 1
    truth.write_text(json.dumps(content), encoding="utf-8")
    result = average_precision(truth, [3, 10], [predict(3), predict(10)])
    assert result.ap == pytest.approx(100)


def test_the_scores_can_be_written_as_json(truth: Path) -> None:
    result = average_precision(truth, [3, 10], [predict(3), predict(10)])
    assert json.loads(json.dumps(result.per_category_ap50)).keys() == {"0", "1", "7"}


def test_the_mean_of_some_categories_leaves_out_those_without_truth() -> None:
    result = AveragePrecision(ap=1.0, ap50=1.0, per_category_ap50={0: 20.0, 1: 40.0, 7: math.nan})
    assert mean_of(result, [0, 1, 7]) == 30
    assert mean_of(result, [7]) is None
