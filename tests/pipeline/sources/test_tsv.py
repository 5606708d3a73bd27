import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import schema
from pipeline.sources import tsv_files
from pipeline.sources.coco import MISSING_IMAGE, SIZE_MISMATCH, UNREADABLE_IMAGE, Row
from pipeline.sources.mdetr import EMPTY_CAPTION
from pipeline.sources.tsv import (
    TsvCaptionSource,
    TsvDetectionSource,
    read_tsv_captions,
    read_tsv_detection,
    tsv_categories,
)

HEIGHT = 10
CUP = {"rect": [1, 2, 3, 4], "class": "cup"}
CAPTION = "a red cup on a table"
WORDS = [[0, 1], [2, 5], [6, 9]]
RED_CUP, TABLE = [0, 9], [13, 20]
BOX, OTHER_BOX = [1, 2, 3, 4], [2, 2, 9, 9]


def picture(width: int) -> str:
    stream = BytesIO()
    Image.new("RGB", (width, HEIGHT)).save(stream, format="JPEG")
    return base64.b64encode(stream.getvalue()).decode()


PICTURES = {"x": picture(21), "y": picture(22), "z": picture(23)}
"""Each of a width of its own, by which it is known."""


def write_tsv(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{key}\t{value}\n" for key, value in rows), encoding="utf-8")
    return path


def write_index(images: Path) -> None:
    lines = images.read_bytes().splitlines(keepends=True)
    offsets = [sum(map(len, lines[:number])) for number in range(len(lines))]
    images.with_suffix(".lineidx").write_text("".join(f"{offset}\n" for offset in offsets), encoding="utf-8")


def detection(folder: Path, labels: Sequence[tuple[str, object]], images: Sequence[str] = "xyz") -> TsvDetectionSource:
    (folder / "map.json").write_text(json.dumps({"__background__": 0, "plate": 5, "cup": 3}), encoding="utf-8")
    return TsvDetectionSource(
        images=write_tsv(folder / "a.img.tsv", [(key, PICTURES[key]) for key in images]),
        labels=write_tsv(folder / "a.label.tsv", [(key, json.dumps(label)) for key, label in labels]),
        label_map=folder / "map.json",
        source="o365",
        split="train",
    )


def read_one(folder: Path, label: object) -> Row:
    (row,) = read_tsv_detection(detection(folder, [("x", label)]))
    return row


def caption(**changes: object) -> dict[str, Any]:
    v1 = {"img_h": HEIGHT, "img_w": 21, "caption": CAPTION, "bboxes": [BOX], "scores": [0.75]}
    return {**v1, "tokens_positive": [WORDS], **changes}


def captions(folder: Path, *labels: tuple[str, object]) -> TsvCaptionSource:
    return TsvCaptionSource(
        images=write_tsv(folder / "a.img.tsv", list(PICTURES.items())),
        labels=write_tsv(folder / "a.label.tsv", [(key, json.dumps(label)) for key, label in labels]),
        source="cc3m",
        split="train",
    )


def read_caption(folder: Path, **changes: object) -> Row:
    (row,) = read_tsv_captions(captions(folder, ("x", caption(**changes))))
    return row


def test_line_becomes_a_detection_row(tmp_path: Path) -> None:
    row = read_one(tmp_path, [CUP, {"rect": [-1, 5, 99, 99], "class": "plate", "conf": 0.5}])
    assert (row["kind"], row["sample_id"], row["image_uri"]) == (schema.DETECTION, "o365/train/x", "x")
    assert row["boxes"] == [[1, 2, 3, 4], [0, 5, 21, 10]]
    assert (row["category_id"], row["category"], row["score"]) == ([3, 5], ["cup", "plate"], [1.0, 0.5])
    assert row["image"]["bytes"] == base64.b64decode(PICTURES["x"])
    assert schema.to_table([row], schema.GROUNDING).num_rows == 1


def test_objects_may_lie_in_an_object(tmp_path: Path) -> None:
    assert read_one(tmp_path, {"objects": [CUP]})["boxes"] == [[1, 2, 3, 4]]


def test_group_is_a_crowd(tmp_path: Path) -> None:
    assert read_one(tmp_path, [CUP, {**CUP, "IsGroupOf": 1}])["iscrowd"] == [False, True]


def test_box_without_an_area_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_one(tmp_path, [{**CUP, "rect": [5, 5, 5, 9]}, CUP])["boxes"] == [[1, 2, 3, 4]]
    assert "left out 1 boxes without an area" in caplog.text


def test_pictures_in_the_order_of_the_labels_are_read_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tsv_files._Images, "_index", None)
    rows = read_tsv_detection(detection(tmp_path, [(key, [CUP]) for key in "xyz"]))
    assert [row["width"] for row in rows] == [21, 22, 23]


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("order", ["zxy", "xxz", "xz"])
def test_pictures_in_another_order_are_found_by_key(tmp_path: Path, order: str, indexed: bool) -> None:
    source = detection(tmp_path, [(key, [CUP]) for key in order])
    if indexed:
        write_index(source.images)
    assert [row["width"] for row in read_tsv_detection(source)] == [{"x": 21, "y": 22, "z": 23}[key] for key in order]


def test_index_beside_the_pictures_is_used(tmp_path: Path) -> None:
    source = detection(tmp_path, [(key, [CUP]) for key in "zy"])
    source.images.with_suffix(".lineidx").write_text("0\n", encoding="utf-8")
    assert [row.get("reason") for row in read_tsv_detection(source)] == [MISSING_IMAGE, MISSING_IMAGE]


def test_index_of_another_file_is_refused(tmp_path: Path) -> None:
    source = detection(tmp_path, [("z", [CUP])])
    source.images.with_suffix(".lineidx").write_text(f"0\n{len(source.images.read_bytes()) - 9}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no key at byte"):
        list(read_tsv_detection(source))


def test_missing_picture_is_a_rejected_row_between_others(tmp_path: Path) -> None:
    rows = read_tsv_detection(detection(tmp_path, [(key, [CUP]) for key in "xwy"]))
    assert [(row.get("reason"), row.get("width")) for row in rows] == [(None, 21), (MISSING_IMAGE, None), (None, 22)]


@pytest.mark.parametrize(
    "broken",
    ["", f"{PICTURES['x'][:8]}!{PICTURES['x'][8:]}", base64.b64encode(b"no picture").decode(), PICTURES["x"][:200]],
    ids=["nothing", "no base64", "no picture", "half a picture"],
)
def test_broken_picture_is_a_rejected_row(tmp_path: Path, broken: str) -> None:
    source = detection(tmp_path, [("x", [CUP]), ("y", [CUP])])
    write_tsv(source.images, [("x", broken), ("y", PICTURES["y"])])
    assert [row.get("reason") for row in read_tsv_detection(source)] == [UNREADABLE_IMAGE, None]


def test_picture_is_the_last_of_several_columns(tmp_path: Path) -> None:
    source = detection(tmp_path, [("x", [CUP])])
    write_tsv(source.images, [("x", f"old\t{PICTURES['x']}")])
    assert [row["width"] for row in read_tsv_detection(source)] == [21]


@pytest.mark.parametrize("size", ['[{"height": 10, "width": %d}]', '{"height": 10, "width": %d}', "10 %d"])
def test_picture_of_another_size_than_stated_is_rejected(tmp_path: Path, size: str) -> None:
    source = detection(tmp_path, [("x", [CUP]), ("y", [CUP])])
    sizes = write_tsv(tmp_path / "a.hw.tsv", [("x", size % 21), ("y", size % 99)])
    rows = read_tsv_detection(replace(source, sizes=sizes))
    assert [row.get("reason") for row in rows] == [None, SIZE_MISMATCH]


def test_listed_lines_are_read_once_each_in_the_order_of_the_labels(tmp_path: Path) -> None:
    source = detection(tmp_path, [(key, [CUP]) for key in "xyz"])
    lines = tmp_path / "a.linelist.tsv"
    lines.write_text("2\n0\n2\n", encoding="utf-8")
    rows = read_tsv_detection(replace(source, line_list=lines))
    assert [(row["sample_id"], row["width"]) for row in rows] == [("o365/train/x", 21), ("o365/train/z", 23)]


def test_sizes_are_those_of_the_listed_lines(tmp_path: Path) -> None:
    source = detection(tmp_path, [(key, [CUP]) for key in "xy"])
    (tmp_path / "a.linelist.tsv").write_text("1\n", encoding="utf-8")
    sizes = write_tsv(tmp_path / "a.hw.tsv", [("x", "10 21"), ("y", "10 22")])
    rows = read_tsv_detection(replace(source, sizes=sizes, line_list=tmp_path / "a.linelist.tsv"))
    assert [row["status"] for row in rows] == [schema.LABELLED]


def test_label_map_gives_names_by_ascending_id_without_the_background(tmp_path: Path) -> None:
    assert list(tsv_categories(detection(tmp_path, [])).items()) == [(3, "cup"), (5, "plate")]


def test_label_map_may_lie_below_a_key_or_be_a_list(tmp_path: Path) -> None:
    source = detection(tmp_path, [])
    source.label_map.write_text(json.dumps({"label_to_idx": {"cup": 1}, "attribute_to_idx": {}}), encoding="utf-8")
    (tmp_path / "map.tsv").write_text("cup\nplate\n", encoding="utf-8")
    assert tsv_categories(source) == {1: "cup"}
    assert tsv_categories(replace(source, label_map=tmp_path / "map.tsv")) == {1: "cup", 2: "plate"}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"boxes": []}, "has no list of objects"),
        ([{"class": "cup"}], r"expected an object with rect \[x1, y1, x2, y2\]"),
        ([{**CUP, "rect": ["1", 2, 3, 4]}], r"expected an object with rect \[x1, y1, x2, y2\]"),
        ([{**CUP, "class": "spoon"}], "has class 'spoon'; expected a name of the label map"),
    ],
)
def test_bad_label_is_named_in_one_line(tmp_path: Path, label: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        list(read_tsv_detection(detection(tmp_path, [("x", [CUP]), ("y", label)])))
    assert str(error.value).startswith(f"{tmp_path / 'a.label.tsv'}, line 2 ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels", "x\n", r"a\.label\.tsv, line 1: .*expected a key, a tab and json"),
        ("labels", "x\t{\n", r"a\.label\.tsv, line 1: .*expected a key, a tab and json"),
        ("sizes", "y\t10 21\n", r"more\.tsv, line 1 is about 'y'; expected 'x'"),
        ("sizes", "x\ttall\n", r"more\.tsv, line 1 has .*; expected a key, a tab and"),
        ("sizes", "", r"more\.tsv, line 1 has .*; expected a key, a tab and"),
        ("line_list", "one\n", r"more\.tsv: .*expected a number per line"),
        ("label_map", "[]", r"map\.json is something else; expected a label map"),
        ("label_map", '{"cup": "1"}', r"map\.json is something else; expected a label map"),
    ],
)
def test_file_of_another_form_is_named_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    source = detection(tmp_path, [("x", [CUP])])
    path = getattr(source, name) or tmp_path / "more.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        list(read_tsv_detection(replace(source, **{name: path})))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["images", "labels", "label_map"])
def test_absent_file_is_named(tmp_path: Path, name: str) -> None:
    source = detection(tmp_path, [("x", [CUP])])
    getattr(source, name).unlink()
    with pytest.raises(ValueError, match=f"{getattr(source, name).name} cannot be read"):
        list(read_tsv_detection(source))


def test_line_becomes_a_caption_row(tmp_path: Path) -> None:
    row = read_caption(tmp_path, bboxes=[OTHER_BOX, BOX], scores=[0.5, 0.75], tokens_positive=[[TABLE], WORDS])
    assert (row["kind"], row["text"], row["sample_id"]) == (schema.CAPTION, CAPTION, "cc3m/train/x_0")
    assert (row["phrases"], row["entity"]) == ([RED_CUP, TABLE], [0, 1])
    assert (row["boxes"], row["score"]) == ([OTHER_BOX, BOX], [0.5, 0.75])
    assert (row["tokens_positive"], row["phrase_index"]) == ([[TABLE], [RED_CUP]], [1, 0])
    assert schema.to_table([row], schema.GROUNDING).num_rows == 1


def test_boxes_of_equal_spans_belong_to_one_entity(tmp_path: Path) -> None:
    row = read_caption(tmp_path, bboxes=[BOX, OTHER_BOX], scores=[0.5, 0.5], tokens_positive=[WORDS, WORDS[::-1]])
    assert (row["phrases"], row["entity"], row["phrase_index"]) == ([RED_CUP], [0], [0, 0])


def test_nested_label_reads_as_the_flat_one(tmp_path: Path) -> None:
    tokens = {"tokens_positive": [WORDS, [TABLE]]}
    nested = read_caption(tmp_path, bboxes=[[BOX, OTHER_BOX], [BOX]], scores=[[0.9, 0.8], [0.7]], **tokens)
    flat = read_caption(
        tmp_path,
        bboxes=[BOX, OTHER_BOX, BOX],
        scores=[0.9, 0.8, 0.7],
        tokens_positive=[WORDS, WORDS, [TABLE]],
    )
    assert nested == flat


def test_entity_without_a_box_is_kept_as_a_phrase(tmp_path: Path) -> None:
    row = read_caption(tmp_path, bboxes=[[], [BOX]], scores=[[], [0.9]], tokens_positive=[[TABLE], WORDS])
    assert (row["phrases"], row["entity"], row["phrase_index"]) == ([RED_CUP, TABLE], [0, 1], [0])


def test_phrase_of_several_entities_is_that_of_one_with_a_box(tmp_path: Path) -> None:
    row = read_caption(tmp_path, bboxes=[[], [BOX]], scores=[[], [0.9]], tokens_positive=[[RED_CUP, TABLE], [RED_CUP]])
    assert (row["phrases"], row["entity"], row["phrase_index"]) == ([RED_CUP, TABLE], [0, 1], [0])


def test_box_points_to_the_phrase_that_is_its_own(tmp_path: Path) -> None:
    shared = [[RED_CUP], [RED_CUP, TABLE]]
    row = read_caption(tmp_path, bboxes=[BOX, OTHER_BOX], scores=[0.9, 0.9], tokens_positive=shared)
    assert (row["entity"], row["phrase_index"], row["tokens_positive"]) == ([0, 1], [0, 1], shared)


@pytest.mark.parametrize(
    "useless",
    [{"bboxes": [[5, 5, 5, 9]]}, {"tokens_positive": [[[19, 99]]]}, {"tokens_positive": [[]]}],
    ids=["no area", "beyond the caption", "no span"],
)
def test_useless_box_is_left_out_and_logged(
    tmp_path: Path, useless: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    row = read_caption(tmp_path, **useless)
    assert (row["status"], row["boxes"]) == (schema.LABELLED, [])
    assert "left out 1 boxes" in caplog.text


@pytest.mark.parametrize(("changes", "reason"), [({"caption": " "}, EMPTY_CAPTION), ({"img_w": 40}, SIZE_MISMATCH)])
def test_unusable_caption_is_a_rejected_row(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    row = read_caption(tmp_path, **changes)
    assert (row["status"], row["reason"]) == (schema.REJECTED, reason)


def test_captions_of_one_image_are_rows_of_their_own(tmp_path: Path) -> None:
    rows = read_tsv_captions(captions(tmp_path, ("x", caption()), ("x", caption())))
    assert [(row["sample_id"], row["status"]) for row in rows] == [
        ("cc3m/train/x_0", schema.LABELLED),
        ("cc3m/train/x_1", schema.LABELLED),
    ]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([{"caption": CAPTION}], "is no caption with boxes"),
        ({"caption": CAPTION}, "is no caption with boxes"),
        (caption(caption=None), "is no caption with boxes"),
        (caption(scores=[0.5, 0.5]), "is no caption with boxes"),
        (caption(bboxes=[[1, 2, 3]]), "expected a score per xyxy box"),
        (caption(bboxes=[[BOX]]), "expected a score per xyxy box"),
        (caption(bboxes=[[BOX]], scores=[[0.5, 0.5]]), "expected a score per xyxy box"),
        (caption(scores=["0.5"]), "expected a score per xyxy box"),
        (caption(tokens_positive=[[0, 5]]), "has tokens_positive"),
    ],
)
def test_bad_caption_is_named_in_one_line(tmp_path: Path, label: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        list(read_tsv_captions(captions(tmp_path, ("x", label))))
    assert str(error.value).startswith(f"{tmp_path / 'a.label.tsv'}, line 1 ")
    assert "\n" not in str(error.value)
