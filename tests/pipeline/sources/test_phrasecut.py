import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import schema
from pipeline.sources import phrasecut
from pipeline.sources.coco import MISSING_IMAGE, SIZE_MISMATCH, Row
from pipeline.sources.mdetr import EMPTY_CAPTION
from pipeline.sources.phrasecut import PhraseCutSource, read_phrasecut

WIDTH, HEIGHT = 20, 10
PHRASE = "two black cats"
SQUARE = [[2, 3], [6, 3], [6.5, 8]]
FLAT = [2, 3, 6, 3, 6.5, 8]


def task(number: str = "4__1", **changes: object) -> dict[str, Any]:
    one = {"task_id": number, "image_id": 4, "ann_ids": [1], "phrase": PHRASE}
    return {**one, "instance_boxes": [[2, 3, 4, 5]], "Polygons": [[SQUARE]], **changes}


def write(folder: Path, tasks: object, width: int = WIDTH) -> PhraseCutSource:
    (folder / "refer_val.json").write_text(json.dumps(tasks), encoding="utf-8")
    image = {"image_id": 4, "width": width, "height": HEIGHT, "split": "val", "coco_id": None}
    (folder / "image_data_split.json").write_text(json.dumps([image, image | {"image_id": 5}]), encoding="utf-8")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "4.jpg")
    return PhraseCutSource(
        annotations=folder / "refer_val.json",
        image_data=folder / "image_data_split.json",
        images=folder,
        source="phrasecut",
        split="val",
    )


def read(folder: Path, *tasks: dict[str, Any]) -> list[Row]:
    return list(read_phrasecut(write(folder, list(tasks))))


def test_task_becomes_a_grounding_row_about_its_whole_phrase(tmp_path: Path) -> None:
    (row,) = read(tmp_path, task())
    assert (row["kind"], row["text"], row["sample_id"]) == (schema.GROUND, PHRASE, "phrasecut/val/4__1")
    assert (row["phrases"], row["entity"]) == ([[0, len(PHRASE)]], [0])
    assert (row["boxes"], row["tokens_positive"], row["phrase_index"]) == ([[2, 3, 6, 8]], [[[0, len(PHRASE)]]], [0])
    assert row["segmentation"] == [[FLAT]]


def test_all_polygons_of_every_instance_are_kept(tmp_path: Path) -> None:
    rows = read(tmp_path, task(instance_boxes=[[2, 3, 4, 5], [1, 1, 2, 2]], Polygons=[[SQUARE, SQUARE], [SQUARE]]))
    assert rows[0]["segmentation"] == [[FLAT, FLAT], [FLAT]]
    assert schema.to_table(rows, schema.GROUNDING)["segmentation"].to_pylist() == [[[FLAT, FLAT], [FLAT]]]


def test_instance_without_an_area_goes_with_its_polygons(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (row,) = read(tmp_path, task(instance_boxes=[[30, 3, 4, 5], [1, 1, 2, 2]], Polygons=[[SQUARE, SQUARE], [SQUARE]]))
    assert (row["boxes"], row["segmentation"]) == ([[1, 1, 3, 3]], [[FLAT]])
    assert "left out 1 boxes without an area" in caplog.text


def test_polygon_without_three_corners_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (row,) = read(tmp_path, task(Polygons=[[SQUARE[:2], SQUARE]]))
    assert row["segmentation"] == [[FLAT]]
    assert "left out 1 polygons" in caplog.text


def test_task_without_any_polygon_has_no_masks(tmp_path: Path) -> None:
    (row,) = read(tmp_path, task(Polygons=[[]]))
    assert (row["boxes"], row["segmentation"]) == ([[2, 3, 6, 8]], None)


def test_image_is_read_once_for_tasks_that_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    start = phrasecut.start_row
    monkeypatch.setattr(phrasecut, "start_row", lambda image, *more: loaded.append(image["id"]) or start(image, *more))
    rows = read(tmp_path, task("a"), task("b"), task("c", image_id=5), task("d"))
    assert [row["sample_id"] for row in rows] == [f"phrasecut/val/{name}" for name in "abcd"]
    assert loaded == [4, 5, 4]


@pytest.mark.parametrize("folder", ["VG_100K", "VG_100K_2"])
def test_image_is_found_where_visual_genome_unpacks_it(tmp_path: Path, folder: str) -> None:
    source = write(tmp_path, [task()])
    (tmp_path / folder).mkdir()
    (tmp_path / "4.jpg").rename(tmp_path / folder / "4.jpg")
    (row,) = read_phrasecut(source)
    assert row["status"] == schema.LABELLED


@pytest.mark.parametrize(("changes", "reason"), [({"image_id": 5}, MISSING_IMAGE), ({"phrase": " "}, EMPTY_CAPTION)])
def test_unusable_task_is_a_rejected_row(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    (row,) = read(tmp_path, task(**changes))
    assert (row["status"], row["reason"]) == (schema.REJECTED, reason)


def test_image_of_another_size_is_rejected(tmp_path: Path) -> None:
    (row,) = read_phrasecut(write(tmp_path, [task()], width=WIDTH + 1))
    assert row["reason"] == SIZE_MISMATCH


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task(instance_boxes=[[1, 2, 3]])], "task 4__1: .*expected instance_boxes"),
        ([task(Polygons=[])], "task 4__1: .*expected instance_boxes"),
        ([task(Polygons=[[[1, 2, 3, 4, 5, 6]]])], "task 4__1: .*expected instance_boxes"),
        ([task(image_id=6)], r"image 6; expected one of .*image_data_split\.json"),
        ([{"task_id": "a"}], "entry 0 is no task or image of PhraseCut"),
        ({"tasks": []}, "entry 0 is no task or image of PhraseCut"),
    ],
)
def test_bad_entry_is_named_in_one_line(tmp_path: Path, tasks: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        list(read_phrasecut(write(tmp_path, tasks)))
    assert str(tmp_path / "refer_val.json") in str(error.value)
    assert "\n" not in str(error.value)
