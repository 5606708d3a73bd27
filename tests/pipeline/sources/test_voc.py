import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline import schema
from pipeline.sources.coco import MISSING_IMAGE, SIZE_MISMATCH, CocoSource, Row, read_coco
from pipeline.sources.voc import UNREADABLE_ANNOTATION, VocSource, read_voc, voc_categories

WIDTH, HEIGHT = 20, 10
PART = "<part><name>hand</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></part>"


def thing(name: str = "ring", box: tuple[object, ...] = (2, 3, 6, 8), more: str = "") -> str:
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def xml(*things: str, size: tuple[object, object] = (WIDTH, HEIGHT), filename: str = "") -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{stated}{''.join(things)}</annotation>"


def write(folder: Path, **files: str) -> VocSource:
    (folder / "xml").mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / "xml" / f"{name}.xml").write_text(text, encoding="utf-8")
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}.jpg")
    return VocSource(annotations=folder / "xml", images=folder, source="shapes", split="train")


def read(folder: Path, text: str, **changes: object) -> Row:
    (row,) = read_voc(replace(write(folder, a=text), **changes))  # type: ignore[arg-type]
    return row


def test_file_becomes_a_detection_row(tmp_path: Path) -> None:
    row = read(tmp_path, xml(thing(), thing("star", ("0", "0", "19.5", "10.0"))))
    assert row["boxes"] == [[2, 3, 6, 8], [0, 0, 19.5, 10]]
    assert (row["category_id"], row["category"]) == ([0, 1], ["ring", "star"])
    assert (row["sample_id"], row["image_uri"], row["kind"]) == ("shapes/train/a", "a.jpg", schema.DETECTION)
    assert schema.to_table([row], schema.GROUNDING).num_rows == 1


def test_files_are_read_by_name_and_one_without_objects_is_a_row(tmp_path: Path) -> None:
    rows = read_voc(write(tmp_path, b=xml(), a=xml(thing())))
    assert [(row["sample_id"], len(row["boxes"])) for row in rows] == [("shapes/train/a", 1), ("shapes/train/b", 0)]


def test_pixels_counted_from_one_are_shifted(tmp_path: Path) -> None:
    row = read(tmp_path, xml(thing(box=(1, 1, WIDTH, HEIGHT)), thing(box=(3, 3, 3, 3))), one_based=True)
    assert row["boxes"] == [[0, 0, WIDTH, HEIGHT], [2, 2, 3, 3]]


def test_parts_of_an_object_are_no_objects(tmp_path: Path) -> None:
    row = read(tmp_path, xml(thing("person", more=PART)))
    assert (row["category"], row["boxes"]) == (["person"], [[2, 3, 6, 8]])


def test_difficult_boxes_are_ordinary_boxes(tmp_path: Path) -> None:
    row = read(tmp_path, xml(thing(more="<difficult>1</difficult>")))
    assert (len(row["boxes"]), row["iscrowd"]) == (1, [False])


def test_difficult_boxes_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    things = [thing("ring", more="<difficult>1</difficult>"), thing("star", more="<difficult>0</difficult>")]
    row = read(tmp_path, xml(*things), keep_difficult=False)
    assert row["category"] == ["star"]
    assert "left out 1 difficult boxes" in caplog.text


def test_boxes_without_area_are_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = read(tmp_path, xml(thing(box=(5, 5, 5, 9)), thing(box=(5, 5, "nan", 9)), thing()))
    assert len(row["boxes"]) == 1
    assert "left out 2 boxes without an area" in caplog.text


@pytest.mark.parametrize("size", [(0, 0), ("", "")])
def test_size_that_is_not_stated_is_the_pictures(tmp_path: Path, size: tuple[object, object]) -> None:
    row = read(tmp_path, xml(thing(), size=size))
    assert (row["status"], row["width"], row["height"]) == (schema.LABELLED, WIDTH, HEIGHT)


def test_picture_of_another_size_is_a_rejected_row(tmp_path: Path) -> None:
    row = read(tmp_path, xml(thing(), size=(WIDTH + 1, HEIGHT)))
    assert (row["status"], row["reason"]) == (schema.REJECTED, SIZE_MISMATCH)


@pytest.mark.parametrize(
    ("lies_at", "stated"),
    [("n01/n01_5.JPEG", "%s"), ("n01_5.png", ""), ("n01/photo.jpg", "photo.jpg"), ("photo.jpg", "C:\\me\\photo.jpg")],
)
def test_image_is_found_by_the_name_of_its_file_or_as_stated(tmp_path: Path, lies_at: str, stated: str) -> None:
    (tmp_path / "xml" / "n01").mkdir(parents=True)
    (tmp_path / "images" / lies_at).parent.mkdir(parents=True)
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "images" / lies_at)
    source = replace(write(tmp_path), images=tmp_path / "images")
    (tmp_path / "xml" / "n01" / "n01_5.xml").write_text(xml(thing(), filename=stated), encoding="utf-8")
    (row,) = read_voc(source)
    assert (row["sample_id"], row["image_uri"], row["status"]) == ("shapes/train/n01/n01_5", lies_at, schema.LABELLED)


def test_own_name_goes_before_the_stated_one(tmp_path: Path) -> None:
    source = write(tmp_path, a=xml(filename="b.jpg"), b=xml(filename="a.jpg"))
    assert [row["image_uri"] for row in read_voc(source)] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("stated", ["nowhere.jpg", "x" * 300])
def test_missing_image_is_a_rejected_row(tmp_path: Path, stated: str) -> None:
    source = write(tmp_path, a=xml(thing(), filename=stated))
    (tmp_path / "a.jpg").unlink()
    (row,) = read_voc(source)
    assert (row["status"], row["reason"]) == (schema.REJECTED, MISSING_IMAGE)


@pytest.mark.parametrize(
    "line", ["n1 ring, band", "n1\tring", "n1  ring ,band\r"], ids=["LOC_synset_mapping", "words", "blanks"]
)
def test_ids_are_replaced_by_their_first_name(tmp_path: Path, line: str) -> None:
    (tmp_path / "words.txt").write_text(f"n0 entity\n{line}\n\n", encoding="utf-8")
    row = read(tmp_path, xml(thing("n1")), names=tmp_path / "words.txt")
    assert (row["category"], row["category_id"]) == (["ring"], [0])


def test_ids_of_one_name_are_one_category(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("n1 crane, bird\nn2 crane, machine\nn3 bolt\n", encoding="utf-8")
    things = xml(thing("n1"), thing("n3"), thing("n2"))
    row = read(tmp_path, things, names=tmp_path / "words.txt")
    assert row["category_id"] == [1, 0, 1]


def test_id_without_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("n1 ring\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"words\.txt has no line for 'n2'.*; expected 'id name, other name'"):
        read(tmp_path, xml(thing("n2")), names=tmp_path / "words.txt")


def test_list_of_names_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("n1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"words\.txt has the line 'n1'; expected lines of an id"):
        read(tmp_path, xml(thing("n1")), names=tmp_path / "words.txt")


def test_subset_is_read_in_its_order(tmp_path: Path) -> None:
    source = write(tmp_path, a=xml(thing("ring")), b=xml(thing("star")), c=xml(thing("leaf")))
    (tmp_path / "train.txt").write_text("c  1\na -1\n\n", encoding="utf-8")
    rows = read_voc(replace(source, subset=tmp_path / "train.txt"))
    assert [(row["sample_id"], row["category_id"]) for row in rows] == [
        ("shapes/train/c", [0]),
        ("shapes/train/a", [1]),
    ]


def test_subset_does_not_change_the_ids(tmp_path: Path) -> None:
    source = write(tmp_path, a=xml(thing("ring")), b=xml(thing("leaf")))
    (tmp_path / "train.txt").write_text("a\n", encoding="utf-8")
    assert voc_categories(replace(source, subset=tmp_path / "train.txt")) == {0: "leaf", 1: "ring"}


def test_name_of_the_subset_without_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\nz\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"train\.txt lists z and 0 others that are not there"):
        read(tmp_path, xml(), subset=tmp_path / "train.txt")


def test_folder_without_xml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"xml holds no \.xml file; expected one per image"):
        list(read_voc(write(tmp_path)))


BOMB = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation><object>", "no element found"),
        ("", "no element found"),
        ("<image/>", "its root is 'image'"),
        (xml(thing(""))[:-1], "unclosed token"),
        (xml(thing(" ")), "has no name"),
        (xml(thing(box=(1, 2, "x", 4))), "object 'ring' has bndbox"),
        (xml("<object><name>ring</name></object>"), "object 'ring' has bndbox"),
        (xml(size=("wide", 3)), "could not convert"),
        (xml(size=("1e999", 3)), "infinity"),
        ("<?xml version='1.0' encoding='nowhere'?><annotation/>", "unknown encoding"),
        (f"<!DOCTYPE annotation>{xml()}", "declares a document type"),
        (f'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>{xml(thing("&x;"))}', "declares a document type"),
    ],
)
def test_unreadable_file_is_a_rejected_row_and_told(
    tmp_path: Path, text: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path, a=text, b=xml(thing()))
    bad, good = read_voc(source)
    assert (bad["sample_id"], bad["status"], bad["reason"]) == (
        "shapes/train/a",
        schema.REJECTED,
        UNREADABLE_ANNOTATION,
    )
    assert good["status"] == schema.LABELLED
    assert "a.xml cannot be read: " in caplog.text
    assert said in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_not_expanded(tmp_path: Path, encoding: str) -> None:
    source = write(tmp_path, b=xml())
    text = f'<!DOCTYPE a [<!ENTITY e0 "ha">{BOMB}]>{xml(thing("&e8;"))}'
    (tmp_path / "xml" / "a.xml").write_bytes(text.encode(encoding))
    began = time.process_time()
    assert [row["reason"] for row in read_voc(source) if row["status"] == schema.REJECTED] == [UNREADABLE_ANNOTATION]
    assert time.process_time() - began < 0.1  # expanding takes more, even where the parser sets itself a limit


def test_real_files_have_the_boxes_of_the_same_set_in_coco(test_data: Path) -> None:
    folder = test_data / "detection" / "bccd"
    annotations = folder / "train" / "annotations_without_background.json"
    coco = list(read_coco(CocoSource(annotations=annotations, images=folder / "train", source="bccd", split="train")))
    source = VocSource(
        annotations=folder / "raw_voc", images=folder / "train", source="bccd", split="train", one_based=True
    )
    voc = {row["image_uri"]: row for row in read_voc(source) if row["status"] == schema.LABELLED}
    assert voc.keys() == {row["image_uri"] for row in coco}
    for row in coco:
        assert voc[row["image_uri"]]["boxes"] == row["boxes"]
        assert voc[row["image_uri"]]["category"] == row["category"]


def test_every_real_file_is_a_row(test_data: Path) -> None:
    folder = test_data / "detection" / "bccd"
    source = VocSource(annotations=folder / "raw_voc", images=folder / "valid", source="bccd", split="valid")
    stated = json.loads((folder / "valid" / "annotations_without_background.json").read_text(encoding="utf-8"))
    counts = Counter(row["reason"] if row["status"] == schema.REJECTED else "" for row in read_voc(source))
    assert counts == {"": len(stated["images"]), MISSING_IMAGE: 120 - len(stated["images"])}
