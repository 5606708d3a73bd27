"""Pascal VOC average precision by hand."""

import random
from pathlib import Path
from typing import Any

import pytest

from glipv2.evaluation.voc import VocDetection, VocObject, detections_of, read_detections, read_objects, voc_metrics

Box = tuple[float, float, float, float]
A, B, C, NOWHERE = (1, 1, 10, 10), (21, 1, 30, 10), (41, 1, 60, 20), (200, 200, 210, 210)
TRUTH = {"000001": [VocObject(name="cat", box=A), VocObject(name="cat", box=B)], "x": [VocObject(name="cat", box=C)]}

XML = """<annotation><filename>x.jpg</filename>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmax>10</xmax><xmin>1</xmin><ymax>10.5</ymax><ymin>1</ymin></bndbox>
<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part></object>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>21</xmin><ymin>1</ymin><xmax>30</xmax><ymax>10</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>41</xmin><ymin>1</ymin><xmax>60</xmax><ymax>20</ymax></bndbox></object>
</annotation>"""


def found(image: str, score: float, box: Box, name: str = "cat") -> VocDetection:
    return VocDetection(image, name, score, box)


def test_both_rules_by_hand() -> None:
    detections = [found("000001", 0.9, A), found("000001", 0.8, NOWHERE), found("x", 0.7, C)]
    scores = voc_metrics(TRUTH, detections)
    # Right, wrong, right of three: precision 1 up to recall 1/3, and 2/3 up to recall 2/3.
    assert scores["AP_cat"] == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    assert scores["AP07_cat"] == pytest.approx((4 + 3 * 2 / 3) / 11)
    assert (scores["mAP"], scores["mAP07"]) == (scores["AP_cat"], scores["AP07_cat"])


def test_a_box_found_twice_is_wrong_the_second_time() -> None:
    detections = [found("x", 0.9, C), found("x", 0.8, C), found("000001", 0.7, A)]
    assert voc_metrics(TRUTH, detections)["AP_cat"] == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)


def test_the_closest_box_counts_even_if_it_was_found_before() -> None:
    truth = {"x": [VocObject(name="cat", box=(1, 1, 10, 10)), VocObject(name="cat", box=(3, 1, 12, 10))]}
    detections = [found("x", 0.9, (1, 1, 10, 10)), found("x", 0.8, (1, 1, 11, 10))]
    assert voc_metrics(truth, detections)["AP_cat"] == pytest.approx(0.5)


def test_sides_are_part_of_a_box_and_half_an_overlap_is_enough() -> None:
    truth = {"x": [VocObject(name="cat", box=(1, 1, 10, 10))]}
    assert voc_metrics(truth, [found("x", 1, (1, 1, 10, 5))])["mAP"] == 1
    assert voc_metrics(truth, [found("x", 1, (1, 1, 10, 4.99))])["mAP"] == 0


def test_a_box_without_area_hits_nothing() -> None:
    nothing = (10.0, 10.0, 9.0, 9.0)
    truth = {"a": [VocObject(name="cat", box=nothing)]}
    assert voc_metrics(truth, [found("a", 0.9, nothing)])["mAP"] == 0


def test_difficult_objects_count_as_nothing() -> None:
    truth = {"x": [VocObject(name="cat", box=A, difficult=True), VocObject(name="cat", box=B)]}
    detections = [found("x", 0.9, A), found("x", 0.8, A), found("x", 0.7, B)]
    assert voc_metrics(truth, detections)["mAP"] == voc_metrics(truth, detections)["mAP07"] == pytest.approx(1)
    assert voc_metrics(truth, detections[:2])["mAP"] == 0


def test_a_class_of_difficult_objects_has_no_part_in_the_mean() -> None:
    truth = {**TRUTH, "y": [VocObject(name="bat", box=A, difficult=True), VocObject(name="cow", box=A)]}
    scores = voc_metrics(truth, [found("x", 1, C), found("y", 1, A, "bat"), found("y", 1, A, "cow")])
    assert (scores["AP_bat"], scores["AP07_bat"]) == (-1, -1)
    assert scores["mAP"] == pytest.approx((scores["AP_cat"] + 1) / 2)
    assert voc_metrics({"x": []}, [])["mAP"] == -1


def test_no_detections_score_0_and_perfect_ones_1() -> None:
    assert voc_metrics(TRUTH, [])["mAP"] == voc_metrics(TRUTH, [])["mAP07"] == 0
    perfect = [found(image, 0.5, item.box) for image, objects in TRUTH.items() for item in objects]
    assert voc_metrics(TRUTH, perfect)["mAP"] == voc_metrics(TRUTH, perfect)["mAP07"] == pytest.approx(1)


def test_order_of_detections_does_not_matter() -> None:
    draw = random.Random(3)
    boxes = [A, B, C, NOWHERE]
    detections = [found(draw.choice(["000001", "x"]), n / 40, draw.choice(boxes)) for n in range(40)]
    expected = voc_metrics(TRUTH, detections)
    draw.shuffle(detections)
    assert voc_metrics(TRUTH, detections) == expected
    assert 0 < expected["mAP"] < 1


def test_unknown_classes_are_left_out_and_unknown_images_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert voc_metrics(TRUTH, [found("x", 1, C, "unicorn")])["mAP"] == 0
    assert "left out 1 predictions of classes" in caplog.text
    with pytest.raises(ValueError, match="image '1', which the truth does not have"):
        voc_metrics(TRUTH, [found("1", 1, C)])


def test_annotations_are_read_without_parts(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(XML, encoding="utf-8")
    cat = VocObject(name="cat", box=(1, 1, 10, 10.5))
    dogs = [VocObject(name="dog", box=B, difficult=True), VocObject(name="dog", box=C)]
    assert read_objects(tmp_path, ["x"]) == {"x": [cat, *dogs]}
    (tmp_path / "x.xml").write_text(XML.replace("<xmax>10</xmax>", ""), encoding="utf-8")
    for image in ("x", "y"):
        with pytest.raises(ValueError, match=rf"{image}.xml cannot be read as VOC annotation"):
            read_objects(tmp_path, [image])


def test_text_files_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_test_cat.txt").write_text("000001 0.9 1 1 10 10\nx 0.25 41 1 60 20.5\n", encoding="utf-8")
    (tmp_path / "comp4_det_test_tea_pot.txt").write_text("x 1e-3 1 1 10 10\n", encoding="utf-8")
    read = read_detections(tmp_path)
    assert read == [
        found("000001", 0.9, A),
        found("x", 0.25, (41, 1, 60, 20.5)),
        found("x", 1e-3, A, "tea_pot"),
    ]
    content = [
        {"image_id": "000001", "category": "cat", "score": 0.9, "bbox": [1, 1, 9, 9]},
        {"image_id": "x", "category_id": "cat", "score": 0.25, "bbox": [41, 1, 19, 19.5]},
        {"image_id": "x", "category": "tea_pot", "score": 1e-3, "bbox": [1, 1, 9, 9]},
    ]
    assert detections_of(content) == read


@pytest.mark.parametrize("line", ["x 0.5 1 2 3", "x high 1 2 3 4", "x nan 1 2 3 4"])
def test_a_broken_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "comp4_det_test_cat.txt"
    path.write_text(f"x 0.9 1 1 10 10\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"cat.txt:2 is '{line}'; expected: image score xmin ymin xmax ymax"):
        read_detections(path)


def test_files_that_are_no_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no results; expected files named as comp4_det_test_person"):
        read_detections(tmp_path)
    with pytest.raises(ValueError, match=r"cat.txt does not name a class"):
        read_detections(tmp_path / "cat.txt")
    with pytest.raises(ValueError, match=r"cat.txt cannot be read"):
        read_detections(tmp_path / "comp4_det_test_cat.txt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "the predictions are no list but a dict"),
        ([{"image_id": "x", "category_id": 3, "bbox": [1, 1, 2, 2], "score": 1}], r"predictions\[0\] is"),
        ([{"image_id": "x", "category": "cat", "bbox": [1, 1, 2], "score": 1}], r"predictions\[0\] has bbox"),
        ([7], r"predictions\[0\] is 7; expected a list of"),
    ],
)
def test_a_broken_json_is_named(content: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        detections_of(content)
