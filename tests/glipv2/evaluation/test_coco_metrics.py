"""COCO metrics against pycocotools itself, and what pycocotools alone gets wrong or does not take."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glipv2.evaluation.coco import NAMES, coco_metrics
from glipv2.evaluation.coco_json import IouType

Record = dict[str, Any]
MakeData = Callable[[int], tuple[Record, list[Record]]]


def official(truth: Record, results: list[Record], iou_type: IouType, folder: Path) -> dict[str, float]:
    """Let pycocotools alone read and score the files."""
    (folder / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    known = COCO(str(folder / "truth.json"))
    evaluation = COCOeval(known, known.loadRes(str(folder / "results.json")), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


def without(results: list[Record], key: str) -> list[Record]:
    return [{name: value for name, value in result.items() if name != key} for result in results]


def perfect(truth: Record) -> list[Record]:
    return [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1 / (1 + number)}
        for number, a in enumerate(truth["annotations"])
        if not a["iscrowd"]
    ]


@pytest.mark.parametrize("seed", range(4))
def test_boxes_score_as_with_pycocotools(seed: int, make_data: MakeData, tmp_path: Path) -> None:
    truth, results = make_data(seed)
    expected = official(truth, without(results, "segmentation"), "bbox", tmp_path)
    assert coco_metrics(truth, results) == expected
    assert 0 < expected["AP"] < 1


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("with_boxes", [False, True])
def test_masks_score_as_with_pycocotools(seed: int, with_boxes: bool, make_data: MakeData, tmp_path: Path) -> None:
    truth, results = make_data(seed)
    results = results if with_boxes else without(results, "bbox")
    expected = official(truth, results, "segm", tmp_path)
    assert coco_metrics(truth, results, "segm") == expected
    assert 0 < expected["AP"] < 1


def test_masks_of_results_may_be_polygons_and_run_lengths(make_data: MakeData) -> None:
    truth, _ = make_data(0)
    results = []
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
        own = {key: annotation[key] for key in ("image_id", "category_id", "segmentation")}
        results.append({**own, "score": 0.5})
    assert {type(result["segmentation"]) for result in results} == {list, dict}
    assert coco_metrics(truth, results, "segm")["AP"] == pytest.approx(1)


def test_annotation_0_counts(make_data: MakeData) -> None:
    truth, results = make_data(1)
    expected = coco_metrics(truth, results)
    for annotation in truth["annotations"]:
        annotation["id"] -= 1
    assert coco_metrics(truth, results) == expected


def test_numbers_of_annotations_may_be_missing_or_texts(make_data: MakeData) -> None:
    truth, results = make_data(1)
    expected = coco_metrics(truth, results)
    for annotation in truth["annotations"]:
        annotation["id"] = f"a{annotation['id']}"
    assert coco_metrics(truth, results) == expected
    for annotation in truth["annotations"]:
        del annotation["id"]
    assert coco_metrics(truth, results) == expected


@pytest.mark.parametrize("part", ["truth", "results", "both"])
def test_ids_of_images_and_categories_may_be_texts(part: str, make_data: MakeData) -> None:
    truth, results = make_data(2)  # images 1, 8, 15 and so on, with equal scores: their order decides the AP
    expected = coco_metrics(truth, results)
    records = results if part != "truth" else []
    if part != "results":
        for known in (*truth["images"], *truth["categories"]):
            known["id"] = str(known["id"])
        records = [*records, *truth["annotations"]]
    for record in records:
        record |= {key: str(record[key]) for key in ("image_id", "category_id")}
    assert coco_metrics(truth, results) == expected


def test_missing_area_is_that_of_the_box(make_data: MakeData) -> None:
    truth, results = make_data(3)
    for annotation in truth["annotations"]:
        annotation |= {"iscrowd": 0, "area": annotation["bbox"][2] * annotation["bbox"][3]}
    expected = coco_metrics(truth, results)
    for annotation in truth["annotations"]:
        del annotation["iscrowd"], annotation["area"]
    assert coco_metrics(truth, results) == expected


def test_perfect_predictions_score_1(make_data: MakeData) -> None:
    truth, _ = make_data(0)
    scores = coco_metrics(truth, perfect(truth))
    assert [scores[name] for name in ("AP", "APs", "APm", "APl", "AR100")] == pytest.approx([1] * 5)


def test_no_predictions_score_0_and_no_truth_minus_1(make_data: MakeData) -> None:
    truth, results = make_data(0)
    assert coco_metrics(truth, [])["AP"] == 0
    assert set(coco_metrics({**truth, "annotations": []}, results).values()) == {-1}


def test_order_of_predictions_does_not_matter(make_data: MakeData) -> None:
    truth, results = make_data(1)
    for number, result in enumerate(results):
        result["score"] = number / len(results)
    expected = coco_metrics(truth, results)
    random.Random(0).shuffle(results)
    assert coco_metrics(truth, results) == pytest.approx(expected, abs=1e-12)


def test_what_is_given_stays_as_it_is(make_data: MakeData) -> None:
    truth, results = make_data(1)
    before = copy.deepcopy((truth, results))
    coco_metrics(truth, results, "segm")
    assert (truth, results) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox": [1, 2, 3]}, r"predictions\[1\] has bbox \[1, 2, 3\]; expected COCO results"),
        ({"score": float("nan")}, r"predictions\[1\] has score nan"),
        ({"score": "high"}, r"predictions\[1\] has score 'high'"),
        ({"image_id": 99}, r"predictions\[1\] is of image 99, which the truth does not have"),
    ],
)
def test_a_broken_prediction_is_named(change: Record, said: str, make_data: MakeData) -> None:
    truth, results = make_data(0)
    results[1] |= change
    with pytest.raises(ValueError, match=said):
        coco_metrics(truth, results)


def test_what_is_no_list_of_predictions_is_refused(make_data: MakeData) -> None:
    truth, results = make_data(0)
    with pytest.raises(ValueError, match="the predictions are no list but a dict"):
        coco_metrics(truth, {"annotations": results})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"predictions\[0\] lacks bbox, category_id, image_id, score"):
        coco_metrics(truth, ["x"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"predictions\[0\] lacks segmentation"):
        coco_metrics(truth, without(results, "segmentation"), "segm")


def test_what_is_no_truth_is_refused(make_data: MakeData) -> None:
    truth, results = make_data(0)
    with pytest.raises(ValueError, match="no COCO json"):
        coco_metrics({"images": []}, results)
    with pytest.raises(ValueError, match=r"annotations\[0\] of the truth lacks bbox"):
        coco_metrics({**truth, "annotations": [{"image_id": 1, "category_id": 2}]}, results)
    del truth["images"][0]["height"]
    with pytest.raises(ValueError, match="image 1 of the truth has no height"):
        coco_metrics(truth, results, "segm")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("annotations", "area", None),
        ("annotations", "area", "12"),
        ("annotations", "iscrowd", None),
        ("annotations", "segmentation", [["a", 1, 2, 3, 4, 5]]),
        ("annotations", "image_id", [1]),
        ("images", "height", "320"),
        ("categories", "id", None),
    ],
)
def test_a_value_of_another_kind_is_named(part: str, key: str, value: Any, make_data: MakeData) -> None:
    truth, results = make_data(0)
    truth[part][0][key] = value
    with pytest.raises(ValueError, match=rf"{part}\[0\] of the truth has|image 1 of the truth has no {key}") as told:
        coco_metrics(truth, results, "segm")
    assert "\n" not in str(told.value)


def test_what_the_lists_do_not_name_is_left_out_and_counted(
    make_data: MakeData, caplog: pytest.LogCaptureFixture
) -> None:
    truth, results = make_data(0)
    expected = coco_metrics(truth, results)
    truth["annotations"].append({**truth["annotations"][0], "category_id": 77})
    assert coco_metrics(truth, [*results, {**results[0], "category_id": 77}]) == expected
    assert "left out 1 annotations" in caplog.text
    assert "left out 1 predictions" in caplog.text
