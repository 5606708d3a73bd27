import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline import schema
from pipeline.sources.coco import MISSING_IMAGE, CocoSource, Row
from pipeline.sources.mdetr import COCO_IMAGE, EMPTY_CAPTION, MdetrSource, read_mdetr

CAPTION = "a red ring and two stars"
RING, STARS = [2, 10], [15, 24]


def image(number: int = 1, **changes: object) -> dict[str, object]:
    return {"id": number, "file_name": "a.png", "caption": CAPTION, **changes}


def box(*spans: list[int], **changes: object) -> dict[str, object]:
    head = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [1, 1, 2, 2]}
    return {**head, "tokens_positive": list(spans), **changes}


def write(
    folder: Path, annotations: list[dict[str, object]], images: list[dict[str, object]] | None = None
) -> MdetrSource:
    Image.new("RGB", (20, 10)).save(folder / "a.png")
    path = folder / "grounding.json"
    content = {"images": [image()] if images is None else images, "annotations": annotations, "categories": []}
    path.write_text(json.dumps(content), encoding="utf-8")
    return MdetrSource(annotations=path, images=folder, source="gold", split="train")


def read(
    folder: Path, annotations: list[dict[str, object]], images: list[dict[str, object]] | None = None
) -> list[Row]:
    return list(read_mdetr(write(folder, annotations, images)))


def test_caption_becomes_a_grounding_row(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [box(STARS), box(RING)])
    assert (row["kind"], row["text"], row["sample_id"]) == (schema.GROUND, CAPTION, "gold/train/1")
    assert row["tokens_positive"] == [[STARS], [RING]]
    assert (row["score"], row["category_id"], row["category"]) == ([1.0, 1.0], [-1, -1], ["", ""])
    assert schema.to_table([row], schema.GROUNDING).num_rows == 1


def test_phrases_are_distinct_spans_in_the_order_of_the_caption(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [box(STARS), box(RING), box(STARS)])
    assert row["phrases"] == [RING, STARS]
    assert row["phrase_index"] == [1, 0, 1]


def test_box_of_several_spans_points_to_its_first(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [box(STARS, RING)])
    assert (row["tokens_positive"], row["phrase_index"]) == ([[STARS, RING]], [1])


def test_captions_of_one_image_are_rows_of_their_own(tmp_path: Path) -> None:
    rows = read(tmp_path, [box(RING)], [image(1), image(2)])
    assert [(row["sample_id"], len(row["boxes"])) for row in rows] == [("gold/train/1", 1), ("gold/train/2", 0)]


@pytest.mark.parametrize(
    "useless",
    [box(RING, iscrowd=1), box([20, 25]), box([-1, 4]), box([5, 5]), box(), box(RING, bbox=[1, 1, 0, 3])],
    ids=["crowd", "beyond the caption", "before it", "empty span", "no span", "no area"],
)
def test_useless_box_is_left_out_and_logged(
    tmp_path: Path, useless: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    (row,) = read(tmp_path, [useless, box(STARS)])
    assert (row["phrases"], row["tokens_positive"]) == ([STARS], [[STARS]])
    assert "left out 1 " in caplog.text


def test_box_keeps_its_good_spans(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [box([20, 25], RING)])
    assert row["tokens_positive"] == [[RING]]


@pytest.mark.parametrize(
    ("changes", "reason"), [({"file_name": "b.png"}, MISSING_IMAGE), ({"caption": " "}, EMPTY_CAPTION)]
)
def test_unusable_record_is_a_rejected_row(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    (row,) = read(tmp_path, [], [image() | changes])
    assert (row["status"], row["reason"]) == (schema.REJECTED, reason)


def test_mixed_set_takes_each_image_from_the_folder_of_its_origin(tmp_path: Path) -> None:
    (tmp_path / "vg").mkdir()
    Image.new("RGB", (7, 7)).save(tmp_path / "vg" / "a.png")
    rows = read(tmp_path, [], [image(1, data_source="vg"), image(2, data_source="coco")])
    assert [row["width"] for row in rows] == [7, 20]


def test_sizes_in_quotes_are_numbers(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [box(RING)], [image(width="20", height="10")])
    assert (row["status"], row["width"], row["height"]) == (schema.LABELLED, 20, 10)


@pytest.mark.parametrize("size", ["wide", [20]])
def test_size_that_is_no_number_is_named(tmp_path: Path, size: object) -> None:
    with pytest.raises(ValueError, match=r"grounding\.json: image 1 has width .*; expected pixels"):
        read(tmp_path, [], [image(width=size)])


def test_ids_may_be_texts(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [box(RING, id="b1", image_id="x_1")], [image(id="x_1")])
    assert (row["sample_id"], row["tokens_positive"]) == ("gold/train/x_1", [[RING]])


def test_coco_images_of_the_mixed_set_are_rejected_on_request(tmp_path: Path) -> None:
    source = write(tmp_path, [box(RING)], [image(1, data_source="coco"), image(2, data_source="vg"), image(3)])
    rows = list(read_mdetr(replace(source, without_coco=True)))
    told = [(row["sample_id"], row["reason"]) for row in rows if row["status"] == schema.REJECTED]
    assert told == [("gold/train/1", COCO_IMAGE)]
    assert schema.to_table(rows, schema.GROUNDING)["image"].null_count == 1


def test_coco_images_are_kept_unless_they_are_to_be_left_out(tmp_path: Path) -> None:
    (row,) = read_mdetr(write(tmp_path, [box(RING)], [image(1, data_source="coco")]))
    assert row["status"] == schema.LABELLED


def test_coco_image_that_is_left_out_is_not_looked_for(tmp_path: Path) -> None:
    source = write(tmp_path, [], [image(1, data_source="coco", file_name="nowhere.jpg")])
    (row,) = read_mdetr(replace(source, without_coco=True))
    assert (row["reason"], row["image_uri"], row["text"]) == (COCO_IMAGE, "nowhere.jpg", CAPTION)


def test_missing_caption_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image 1 has caption None; expected a text"):
        read(tmp_path, [], [image(caption=None)])


@pytest.mark.parametrize("spans", [None, [[1]], [["a", "b"]]])
def test_box_without_proper_spans_is_named(tmp_path: Path, spans: object) -> None:
    with pytest.raises(ValueError, match=r"annotation 1 has tokens_positive .*; expected a list of \[begin, end\)"):
        read(tmp_path, [box(tokens_positive=spans)])


def test_real_file_is_read_with_all_boxes(test_data: Path) -> None:
    (path,) = (test_data / "grounding").glob("*.json")
    images = test_data / "captioned_photos" / "images"
    rows = list(read_mdetr(CocoSource(annotations=path, images=images, source="photos", split="train")))
    stated = json.loads(path.read_text(encoding="utf-8"))
    assert Counter(row["status"] for row in rows) == {schema.LABELLED: len(stated["images"])}
    assert sum(len(row["boxes"]) for row in rows) == len(stated["annotations"])
    asked = [{tuple(span) for spans in image["tokens_positive_eval"] for span in spans} for image in stated["images"]]
    assert [set(map(tuple, row["phrases"])) for row in rows] == asked
