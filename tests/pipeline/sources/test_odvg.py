import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import schema
from pipeline.sources.coco import CocoSource, Row
from pipeline.sources.odvg import OdvgSource, odvg_categories, read_odvg

HEAD = {"filename": "a.png", "height": 10, "width": 20}
CAPTION = "two cats"
CATS = {"bbox": [1, 2, 3, 4], "phrase": "cats", "tokens_positive": [[4, 8]]}
CUP = {"bbox": [1, 2, 3, 4], "label": 0, "category": "cup"}


def detection(*instances: object, **changes: object) -> dict[str, Any]:
    return {**HEAD, "detection": {"instances": list(instances)}, **changes}


def grounding(*regions: object, **changes: object) -> dict[str, Any]:
    return {**HEAD, "grounding": {"caption": CAPTION, "regions": list(regions)}, **changes}


def write(folder: Path, *lines: object) -> CocoSource:
    Image.new("RGB", (20, 10)).save(folder / "a.png")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "a.jsonl").write_text(text, encoding="utf-8")
    return CocoSource(annotations=folder / "a.jsonl", images=folder, source="odvg", split="train")


def read(folder: Path, *lines: object) -> list[Row]:
    return list(read_odvg(write(folder, *lines)))


def test_instances_are_boxes_of_categories(tmp_path: Path) -> None:
    (row,) = read(tmp_path, detection(CUP, {"bbox": [0, 0, 99, 99], "label": 3, "category": "plate/dish"}))
    assert (row["kind"], row["sample_id"]) == (schema.DETECTION, "odvg/train/1")
    assert row["boxes"] == [[1, 2, 3, 4], [0, 0, 20, 10]]
    assert (row["category_id"], row["category"]) == ([0, 3], ["cup", "plate/dish"])


def test_boxes_without_area_are_left_out_and_counted_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (row,) = read(tmp_path, grounding({**CATS, "bbox": [[1, 2, 3, 4], [5, 5, 5, 9], [5, 5, 9, 5]]}))
    assert row["boxes"] == [[1, 2, 3, 4]]
    assert "left out 2 boxes without an area" in caplog.text


def test_region_whose_spans_are_elsewhere_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (row,) = read(tmp_path, grounding({**CATS, "tokens_positive": [[8, 9]]}, CATS))
    assert row["tokens_positive"] == [[[4, 8]]]
    assert "left out 1 boxes without a span" in caplog.text


def test_line_without_instances_is_a_row(tmp_path: Path) -> None:
    (row,) = read(tmp_path, detection())
    assert (row["status"], row["boxes"]) == (schema.LABELLED, [])


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    rows = read(tmp_path, detection(CUP), "", detection(CUP), "")
    assert [row["sample_id"] for row in rows] == ["odvg/train/1", "odvg/train/3"]


def test_lines_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    rows = read_odvg(write(tmp_path, detection(CUP), "{"))
    assert next(rows)["boxes"] == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (detection(CUP, width="20"), "has width '20'; expected int"),
        (detection(CUP, filename=None), "has filename None; expected str"),
        ({**HEAD, "detection": {}}, "has instances None; expected list"),
        ({**HEAD, "detection": []}, r"has \[\] where ODVG has an object"),
        (detection("cup"), "has 'cup' where ODVG has an object"),
        (detection({**CUP, "label": "0"}), "has label '0'; expected int"),
        (detection({"bbox": [1, 2, 3, 4], "label": 0}), "has category None; expected str"),
        (detection({**CUP, "bbox": ["1", 2, 3, 4]}), r"has bbox \['1', 2, 3, 4\]; expected"),
        (detection({**CUP, "bbox": [1, 2, 3]}), r"has bbox \[1, 2, 3\]; expected"),
        (grounding({**CATS, "bbox": []}), r"has bbox \[\]; expected"),
        (grounding({"bbox": [1, 2, 3, 4], "phrase": "cats"}), "has tokens_positive None; expected list"),
        (grounding({**CATS, "tokens_positive": [["4", 8]]}), "has tokens_positive .*expected a list of"),
        ({**HEAD, "grounding": {"caption": 5, "regions": []}}, "has caption 5; expected str"),
        (HEAD, "lacks detection and grounding"),
        ("[]", "lacks detection and grounding"),
        ("{", "is no json"),
    ],
)
def test_line_of_another_form_is_named_in_one_line(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, detection(CUP), line)
    assert str(error.value).startswith(f"{tmp_path / 'a.jsonl'}, line 2 ")
    assert "\n" not in str(error.value)


def test_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    source = write(tmp_path)
    source.annotations.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"a\.jsonl is no text"):
        list(read_odvg(source))


def label_map(folder: Path, content: object) -> OdvgSource:
    path = folder / "label_map.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return OdvgSource(annotations=folder / "a.jsonl", images=folder, source="odvg", split="train", label_map=path)


def test_label_map_gives_names_by_ascending_label(tmp_path: Path) -> None:
    names = odvg_categories(label_map(tmp_path, {"10": "ring", "0": "plate/dish", "9": "star"}))
    assert list(names.items()) == [(0, "plate/dish"), (9, "star"), (10, "ring")]


@pytest.mark.parametrize("content", [["cup"], {"cup": 0}, {"0": 1}])
def test_other_map_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ValueError, match=r"label_map\.json is something else; expected a label map"):
        odvg_categories(label_map(tmp_path, content))
