from pathlib import Path

import pytest
from PIL import Image

from pipeline import schema
from pipeline.sources.coco import MISSING_IMAGE, Row
from pipeline.sources.openimages import OpenImagesSource, openimages_categories, read_openimages

WIDTH, HEIGHT = 40, 20
HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
CLASSES = '/m/ring,Ring\n/m/star,"Star, bright"\n/m/leaf,Leaf\n'
RING, STAR, LEAF = 0, 1, 2


def box(image: str, label: str = "ring", corners: str = "0.25,0.5,0.1,0.9", group: str = "0") -> str:
    return f"{image},xclick,/m/{label},1,{corners},0,1,{group},0,0"


def said(image: str, label: str, confidence: str, by: str = "verification") -> str:
    return f"{image},{by},/m/{label},{confidence}"


def write(folder: Path, boxes: list[str], verified: list[str] | None = None, header: str = HEADER) -> OpenImagesSource:
    for name in ("aa", "bb", "cc"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}.jpg")
    (folder / "boxes.csv").write_text("\n".join([header, *boxes]), encoding="utf-8")
    (folder / "classes.csv").write_text(CLASSES, encoding="utf-8")
    if verified is not None:
        (folder / "verified.csv").write_text(
            "\n".join(["ImageID,Source,LabelName,Confidence", *verified]), encoding="utf-8"
        )
    return OpenImagesSource(
        boxes=folder / "boxes.csv",
        classes=folder / "classes.csv",
        images=folder,
        source="open",
        split="train",
        verified=None if verified is None else folder / "verified.csv",
    )


def read(folder: Path, boxes: list[str], verified: list[str] | None = None) -> list[Row]:
    return list(read_openimages(write(folder, boxes, verified)))


def test_boxes_of_an_image_become_a_row_in_pixels(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [box("aa"), box("aa", "star", "0,1,0.5,1")])
    assert row["boxes"] == [pytest.approx([10, 2, 20, 18]), pytest.approx([0, 10, WIDTH, HEIGHT])]
    assert (row["category_id"], row["category"]) == ([RING, STAR], ["Ring", "Star, bright"])
    assert (row["sample_id"], row["image_uri"], row["kind"]) == ("open/train/aa", "aa.jpg", schema.DETECTION)
    assert schema.to_table([row], schema.GROUNDING)["segmentation"].null_count == 1


def test_images_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = read(tmp_path, [box("aa"), box("bb"), box("bb"), box("cc")])
    assert [(row["sample_id"][-2:], len(row["boxes"])) for row in rows] == [("aa", 1), ("bb", 2), ("cc", 1)]


def test_rows_come_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    rows = read_openimages(write(tmp_path, [box("bb"), box("cc"), box("aa")]))
    assert next(rows)["sample_id"] == "open/train/bb"


def test_group_is_a_crowd(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [box("aa", group=flag) for flag in ("0", "1", "-1")])
    assert row["iscrowd"] == [False, True, False]


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    header = "LabelName,ImageID,IsGroupOf,YMax,YMin,XMax,XMin,XClick1X"
    (row,) = read_openimages(write(tmp_path, ["/m/leaf,aa,1,0.9,0.1,0.5,0.25,0.3"], header=header))
    assert (row["boxes"], row["category_id"], row["iscrowd"]) == ([pytest.approx([10, 2, 20, 18])], [LEAF], [True])


def test_boxes_without_area_are_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (row,) = read(tmp_path, [box("aa", corners="0.5,0.5,0,1"), box("aa", corners="0.6,0.5,0,1"), box("aa")])
    assert len(row["boxes"]) == 1
    assert "left out 2 boxes" in caplog.text


def test_missing_image_is_a_rejected_row(tmp_path: Path) -> None:
    first, second = read(tmp_path, [box("aa"), box("dd")])
    assert (first["status"], second["status"], second["reason"]) == (schema.LABELLED, schema.REJECTED, MISSING_IMAGE)


def test_without_verified_labels_nothing_is_said_of_other_classes(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [box("aa")])
    assert {"neg_category_ids", "not_exhaustive_ids"}.isdisjoint(row)


def test_verified_labels_become_federated_ids(tmp_path: Path) -> None:
    lines = [said("aa", "ring", "1"), said("aa", "star", "0"), said("aa", "leaf", "1.0", "crowdsource-verification")]
    (row,) = read(tmp_path, [box("aa", "ring")], lines)
    assert (row["neg_category_ids"], row["not_exhaustive_ids"]) == ([STAR], [LEAF])


def test_box_and_presence_go_before_a_verified_absence(tmp_path: Path) -> None:
    lines = [said("aa", "ring", "0"), said("aa", "star", "0"), said("aa", "star", "1")]
    (row,) = read(tmp_path, [box("aa", "ring")], lines)
    assert (row["neg_category_ids"], row["not_exhaustive_ids"]) == ([], [STAR])


def test_verified_labels_go_to_their_own_image(tmp_path: Path) -> None:
    lines = [said("a0", "leaf", "0"), said("aa", "star", "0"), said("ab", "ring", "0"), said("cc", "leaf", "0")]
    rows = read(tmp_path, [box("aa"), box("bb"), box("cc")], lines)
    assert [row["neg_category_ids"] for row in rows] == [[STAR], [], [LEAF]]


def test_verified_labels_of_a_missing_image_do_not_spoil_the_next(tmp_path: Path) -> None:
    lines = [said("aa", "star", "0"), said("ab", "leaf", "0"), said("bb", "leaf", "0")]
    rows = read(tmp_path, [box("aa"), box("ab"), box("bb")], lines)
    assert [row.get("neg_category_ids") for row in rows] == [[STAR], None, [LEAF]]


def test_verified_label_of_no_boxable_class_is_passed_over(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [box("aa")], [said("aa", "sky", "0"), said("aa", "leaf", "0")])
    assert row["neg_category_ids"] == [LEAF]


def test_class_ids_are_positions_with_or_without_header(tmp_path: Path) -> None:
    source = write(tmp_path, [])
    older = openimages_categories(source)
    source.classes.write_text("\ufeffLabelName,DisplayName\n" + CLASSES, encoding="utf-8")
    assert openimages_categories(source) == older == {RING: "Ring", STAR: "Star, bright", LEAF: "Leaf"}


@pytest.mark.parametrize(
    ("boxes", "verified", "message"),
    [
        ([box("bb"), box("aa")], None, r"boxes\.csv, line 3: image aa comes after bb; .* LC_ALL=C sort"),
        ([box("aa"), box("bb"), box("aa")], None, "image aa comes after bb"),
        ([box("aa", "moon")], None, r"image aa has a box of \['/m/moon', .*; expected a label of the class list"),
        ([box("aa", corners="0,x,0,1")], None, "image aa has a box of .*'x'"),
        (["aa,xclick,/m/ring,1,0.5"], None, "image aa has a box of .*None"),
        ([box("cc")], [said("bb", "ring", "1"), said("aa", "ring", "1")], r"verified\.csv, line 3: image aa"),
        ([box("aa")], [said("aa", "leaf", "0.7", "machine")], "Confidence '0.7'; expected 0 or 1: give the labels"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, boxes: list[str], verified: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, boxes, verified)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("header", ["ImageID,LabelName", ""])
def test_file_without_the_columns_is_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(ValueError, match=r"boxes\.csv has no column \w+; expected a csv of Open Images"):
        list(read_openimages(write(tmp_path, [], header=header)))


def test_class_list_of_another_form_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, [])
    source.classes.write_text("/m/ring Ring\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"classes\.csv has the line .*; expected a csv of LabelName and DisplayName"):
        openimages_categories(source)


@pytest.mark.parametrize("name", ["boxes", "classes", "verified"])
def test_absent_file_is_named(tmp_path: Path, name: str) -> None:
    source = write(tmp_path, [box("aa")], [])
    (tmp_path / f"{name}.csv").unlink()
    with pytest.raises(ValueError, match=rf"{name}\.csv cannot be read"):
        list(read_openimages(source))
