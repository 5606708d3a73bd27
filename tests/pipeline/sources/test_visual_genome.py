import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline import schema
from pipeline.sources.coco import MISSING_IMAGE, SIZE_MISMATCH, Row
from pipeline.sources.visual_genome import VisualGenomeSource, read_visual_genome, visual_genome_categories

WIDTH, HEIGHT = 20, 10
Thing = dict[str, object]


def thing(*names: object, **changes: object) -> Thing:
    return {"object_id": 9, "x": 2, "y": 3, "w": 4, "h": 5, "names": list(names), "synsets": [], **changes}


def write(folder: Path, images: dict[int, list[Thing]], *, aliases: str = "", min_count: int = 1) -> VisualGenomeSource:
    objects = [{"image_id": number, "objects": things} for number, things in images.items()]
    sizes = [{"image_id": number, "width": WIDTH, "height": HEIGHT, "url": "http://a.example"} for number in images]
    for number in images:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{number}.jpg")
    (folder / "objects.json").write_text(json.dumps(objects), encoding="utf-8")
    (folder / "image_data.json").write_text(json.dumps(sizes), encoding="utf-8")
    (folder / "alias.txt").write_text(aliases, encoding="utf-8")
    return VisualGenomeSource(
        objects=folder / "objects.json",
        image_data=folder / "image_data.json",
        images=folder,
        source="vg",
        split="train",
        aliases=folder / "alias.txt" if aliases else None,
        min_count=min_count,
    )


def read(folder: Path, *things: Thing, aliases: str = "", min_count: int = 1) -> Row:
    (row,) = read_visual_genome(write(folder, {1: list(things)}, aliases=aliases, min_count=min_count))
    return row


def test_image_becomes_a_detection_row(tmp_path: Path) -> None:
    row = read(tmp_path, thing("tree"))
    assert (row["boxes"], row["category"], row["category_id"]) == ([[2, 3, 6, 8]], ["tree"], [0])
    assert (row["sample_id"], row["kind"], row["status"]) == ("vg/train/1", schema.DETECTION, schema.LABELLED)
    assert schema.to_table([row], schema.GROUNDING).num_rows == 1


def test_images_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = read_visual_genome(write(tmp_path, {7: [thing("tree")], 2: []}))
    assert [(row["sample_id"], len(row["boxes"])) for row in rows] == [("vg/train/7", 1), ("vg/train/2", 0)]


def test_spellings_of_a_name_are_one_category(tmp_path: Path) -> None:
    row = read(tmp_path, thing("Tree "), thing(" tree"), thing("oak  TREE"), thing("oak tree"))
    assert row["category"] == ["tree", "tree", "oak tree", "oak tree"]


def test_alias_is_replaced_by_the_first_name_of_its_line(tmp_path: Path) -> None:
    row = read(tmp_path, thing("Trees"), thing("tree"), thing("man"), aliases="tree,trees\r\n\r\nperson, man,woman\r\n")
    assert row["category"] == ["tree", "tree", "person"]


def test_first_name_that_is_not_blank_counts(tmp_path: Path) -> None:
    row = read(tmp_path, thing(" ", "man", "person"))
    assert row["category"] == ["man"]


def test_vocabulary_has_the_most_frequent_name_first(tmp_path: Path) -> None:
    things = {1: [thing("sky"), thing("tree")], 2: [thing("tree"), thing("man")]}
    assert list(visual_genome_categories(write(tmp_path, things)).items()) == [(0, "tree"), (1, "man"), (2, "sky")]


def test_ids_of_rows_are_those_of_the_vocabulary(tmp_path: Path) -> None:
    source = write(tmp_path, {1: [thing("sky"), thing("tree")], 2: [thing("tree"), thing("man")]})
    names = visual_genome_categories(source)
    for row in read_visual_genome(source):
        assert [names[number] for number in row["category_id"]] == row["category"]


def test_rare_and_missing_names_are_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    things = [thing("tree"), thing("trees"), thing("sky"), thing(), thing(""), thing("", "")]
    row = read(tmp_path, *things, aliases="tree,,trees", min_count=2)
    assert row["category"] == ["tree", "tree"]
    assert "left out 4 boxes without a name or with a rare one" in caplog.text


def test_boxes_are_clamped_and_those_without_area_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = read(tmp_path, thing("tree", x=-3), thing("tree", w=99, h=99), thing("tree", w=0))
    assert row["boxes"] == [[0, 3, 1, 8], [2, 3, WIDTH, HEIGHT]]
    assert "left out 1 boxes without an area" in caplog.text


@pytest.mark.parametrize("folder", ["VG_100K", "VG_100K_2"])
def test_image_is_found_where_its_archive_unpacks(tmp_path: Path, folder: str) -> None:
    source = write(tmp_path, {1: [thing("tree")]})
    (tmp_path / folder).mkdir()
    (tmp_path / "1.jpg").rename(tmp_path / folder / "1.jpg")
    (row,) = read_visual_genome(source)
    assert (row["status"], row["image_uri"]) == (schema.LABELLED, f"{folder}/1.jpg")


def test_missing_image_is_a_rejected_row(tmp_path: Path) -> None:
    source = write(tmp_path, {1: [thing("tree")]})
    (tmp_path / "1.jpg").unlink()
    (row,) = read_visual_genome(source)
    assert (row["status"], row["reason"]) == (schema.REJECTED, MISSING_IMAGE)


def test_picture_of_another_size_is_a_rejected_row(tmp_path: Path) -> None:
    source = write(tmp_path, {1: [thing("tree")]})
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(tmp_path / "1.jpg")
    (row,) = read_visual_genome(source)
    assert row["reason"] == SIZE_MISMATCH


def test_image_of_unknown_size_is_read(tmp_path: Path) -> None:
    source = write(tmp_path, {1: [thing("tree")]})
    source.image_data.write_text("[]", encoding="utf-8")
    (row,) = read_visual_genome(source)
    assert (row["status"], row["width"]) == (schema.LABELLED, WIDTH)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as json"),
        ("{}", "holds no list"),
        ('[{"id": 1, "objects": []}]', "entry 0 has no image_id"),
        ('[{"image_id": 1}]', "image 1 has no objects or odd ones"),
        (json.dumps([{"image_id": 1, "objects": [thing("tree"), thing("tree", w="4")]}]), "image 1 has no objects or"),
        (json.dumps([{"image_id": 1, "objects": [thing("tree", names="tree")]}]), "image 1 has no objects or odd ones"),
    ],
)
def test_file_of_another_form_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    source = write(tmp_path, {})
    source.objects.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"objects\.json:? {message}.*; expected objects\.json of Visual") as error:
        visual_genome_categories(source)
    assert "\n" not in str(error.value)


def test_absent_aliases_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.txt cannot be read"):
        visual_genome_categories(replace(write(tmp_path, {}), aliases=tmp_path / "nowhere.txt"))


def test_count_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_count is 0; give 1"):
        write(tmp_path, {}, min_count=0)
