import json
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import schema
from pipeline.sources.coco import (
    MISSING_IMAGE,
    SIZE_MISMATCH,
    UNREADABLE_IMAGE,
    CocoSource,
    Row,
    categories,
    clamp_box,
    load_picture,
    read_coco,
)

WIDTH, HEIGHT = 20, 10


def content(**changes: object) -> dict[str, Any]:
    image = {"id": 5, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    annotation = {"id": 0, "image_id": 5, "category_id": 7, "bbox": [2, 3, 4, 5]}
    ring, star = {"id": 7, "name": "ring"}, {"id": 0, "name": "star"}
    return {"images": [image], "annotations": [annotation], "categories": [ring, star], **changes}


def write(folder: Path, coco: object) -> CocoSource:
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    path = folder / "annotations.json"
    path.write_text(json.dumps(coco), encoding="utf-8")
    return CocoSource(annotations=path, images=folder, source="shapes", split="train")


def read(folder: Path, **changes: object) -> list[Row]:
    return list(read_coco(write(folder, content(**changes))))


def boxed(*boxes: list[float], **more: object) -> list[dict[str, object]]:
    head = {"image_id": 5, "category_id": 7}
    return [{**head, "id": number, "bbox": box, **more} for number, box in enumerate(boxes)]


def test_image_becomes_a_detection_row(tmp_path: Path) -> None:
    (row,) = read(tmp_path)
    assert row["boxes"] == [[2, 3, 6, 8]]
    assert {key: row[key] for key in ("sample_id", "kind", "status", "image_uri", "width", "height")} == {
        "sample_id": "shapes/train/5",
        "kind": schema.DETECTION,
        "status": schema.LABELLED,
        "image_uri": "a.png",
        "width": WIDTH,
        "height": HEIGHT,
    }
    assert (row["category_id"], row["category"], row["score"], row["iscrowd"]) == ([7], ["ring"], [1.0], [False])


def test_rows_fit_the_schema(tmp_path: Path) -> None:
    table = schema.to_table(read(tmp_path), schema.GROUNDING)
    assert table["boxes"].to_pylist() == [[[2, 3, 6, 8]]]
    assert table["text"].null_count == table["tokens_positive"].null_count == 1


def test_file_bytes_are_stored_as_they_are(tmp_path: Path) -> None:
    (row,) = read(tmp_path)
    assert row["image"] == {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}


def test_boxes_are_clamped_to_the_image(tmp_path: Path) -> None:
    (row,) = read(tmp_path, annotations=boxed([-3, -3, 6, 6], [15, 5, 50, 50]))
    assert row["boxes"] == [[0, 0, 3, 3], [15, 5, WIDTH, HEIGHT]]


def test_boxes_without_area_are_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (row,) = read(tmp_path, annotations=boxed([1, 1, 0, 5], [30, 1, 5, 5], [1, 1, 2, 2], [1, 1, float("nan"), 2]))
    assert row["boxes"] == [[1, 1, 3, 3]]
    assert "left out 3 boxes" in caplog.text


def test_crowds_keep_their_flag(tmp_path: Path) -> None:
    (row,) = read(tmp_path, annotations=boxed([1, 1, 2, 2], iscrowd=1))
    assert row["iscrowd"] == [True]


def test_image_without_boxes_is_a_row(tmp_path: Path) -> None:
    (row,) = read(tmp_path, annotations=[])
    assert (row["status"], row["boxes"]) == (schema.LABELLED, [])


def test_federated_ids_are_kept(tmp_path: Path) -> None:
    image = {"id": 5, "file_name": "a.png", "neg_category_ids": [0], "not_exhaustive_category_ids": [7]}
    (row,) = read(tmp_path, images=[image])
    assert (row["neg_category_ids"], row["not_exhaustive_ids"]) == ([0], [7])


def test_only_the_images_asked_for_are_read(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": "a.png"} for number in (5, 6, 8)]
    rows = read_coco(write(tmp_path, content(images=images)), only={8, 5})
    assert [row["sample_id"] for row in rows] == ["shapes/train/5", "shapes/train/8"]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"file_name": "b.png"}, MISSING_IMAGE),
        ({"file_name": "broken.png"}, UNREADABLE_IMAGE),
        ({"file_name": "a.png", "width": WIDTH + 1, "height": HEIGHT}, SIZE_MISMATCH),
        ({"coco_url": "http://images.example/val/c.jpg"}, MISSING_IMAGE),
    ],
)
def test_unusable_image_is_a_rejected_row(tmp_path: Path, image: dict[str, object], reason: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (row,) = read(tmp_path, images=[{"id": 5, **image}])
    assert (row["status"], row["reason"]) == (schema.REJECTED, reason)
    assert schema.to_table([row], schema.GROUNDING)["image"].null_count == 1


def test_unknown_stated_size_is_no_mismatch(tmp_path: Path) -> None:
    (row,) = read(tmp_path, images=[{"id": 5, "file_name": "a.png", "width": 0, "height": 0}])
    assert (row["width"], row["height"]) == (WIDTH, HEIGHT)


def test_image_known_by_address_only_is_found_by_folder_and_name(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / "val" / "c.png")
    (row,) = read(tmp_path, images=[{"id": 5, "coco_url": "http://images.example/x/val/c.png"}], annotations=[])
    assert (row["status"], row["image_uri"]) == (schema.LABELLED, "val/c.png")


TRIANGLE, SQUARE = [1, 1, 5, 1, 5.5, 6], [0, 0, 2, 0, 2, 2, 0, 2]
RLE = {"counts": [3, 5, 192], "size": [HEIGHT, WIDTH]}


def test_polygons_are_kept_box_by_box(tmp_path: Path) -> None:
    ring, star = boxed([1, 1, 5, 6], [0, 0, 9, 9])
    (row,) = read(tmp_path, annotations=[ring | {"segmentation": [TRIANGLE, SQUARE]}, star])
    table = schema.to_table([row], schema.GROUNDING)
    assert table["segmentation"].to_pylist() == [[[TRIANGLE, SQUARE], []]]


def test_masks_of_boxes_left_out_are_left_out_too(tmp_path: Path) -> None:
    flat, star = boxed([1, 1, 0, 0], [0, 0, 9, 9])
    (row,) = read(tmp_path, annotations=[flat | {"segmentation": [TRIANGLE]}, star | {"segmentation": [SQUARE]}])
    assert row["segmentation"] == [[SQUARE]]


@pytest.mark.parametrize("given", [{}, {"segmentation": []}, {"segmentation": None}, {"segmentation": RLE}])
def test_row_without_any_polygon_has_no_masks(tmp_path: Path, given: dict[str, object]) -> None:
    (row,) = read(tmp_path, annotations=boxed([1, 1, 2, 2], iscrowd=1, **given))
    assert row["segmentation"] is None


@pytest.mark.parametrize(
    ("useless", "said"),
    [
        ([[1, 1, 5, 5]], "1 polygons without three corners"),
        ([[]], "1 polygons without three corners"),
        ([[*TRIANGLE, 3]], "1 polygons without three corners"),
        ([[1, 1, 5, 1, 5, float("nan")]], "1 polygons without three corners"),
        (RLE, "1 masks in RLE"),
    ],
)
def test_useless_mask_leaves_the_box_and_is_logged(
    tmp_path: Path, useless: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    (row,) = read(tmp_path, annotations=boxed([1, 1, 5, 6], segmentation=useless))
    assert (len(row["boxes"]), row["segmentation"]) == (1, None)
    assert f"left out {said}" in caplog.text


def test_rle_of_a_crowd_is_no_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, annotations=boxed([1, 1, 5, 6], iscrowd=1, segmentation=RLE))
    assert caplog.text == ""


@pytest.mark.parametrize(
    "lies_at",
    ["images/v1/patch8/objects365_v1_7.png", "patch8/objects365_v1_7.png", "objects365_v1_7.png"],
)
def test_objects365_image_is_found_as_people_unpack_it(tmp_path: Path, lies_at: str) -> None:
    (tmp_path / lies_at).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (3, 3)).save(tmp_path / lies_at)
    name = "images/v1/patch8/objects365_v1_7.png"
    (row,) = read(tmp_path, images=[{"id": 5, "file_name": name}], annotations=[])
    assert (row["status"], row["image_uri"]) == (schema.LABELLED, name)


def test_whole_name_goes_before_its_last_part(tmp_path: Path) -> None:
    (tmp_path / "patch").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / "patch" / "a.png")
    (row,) = read(tmp_path, images=[{"id": 5, "file_name": "patch/a.png"}], annotations=[])
    assert row["width"] == 3


def test_name_written_on_windows_is_found(tmp_path: Path) -> None:
    (row,) = read(tmp_path, images=[{"id": 5, "file_name": "JPEGImages\\a.png"}])
    assert row["status"] == schema.LABELLED


def test_name_that_no_file_can_have_is_a_rejected_row(tmp_path: Path) -> None:
    (row,) = read(tmp_path, images=[{"id": 5, "file_name": "x" * 300}])
    assert (row["status"], row["reason"]) == (schema.REJECTED, UNREADABLE_IMAGE)


@pytest.mark.parametrize("lies_at", ["val2017/000000000007.png", "000000000007.png"])
@pytest.mark.parametrize("named", [{}, {"file_name": "COCO_val2014_000000000007.png"}], ids=["v1", "v0.5"])
def test_lvis_image_is_found_by_its_address(tmp_path: Path, named: dict[str, str], lies_at: str) -> None:
    (tmp_path / lies_at).parent.mkdir(exist_ok=True)
    Image.new("L", (3, 3)).save(tmp_path / lies_at)
    url = "http://images.example.org/val2017/000000000007.png"
    (row,) = read(tmp_path, images=[{"id": 5, "coco_url": url, **named}], annotations=[])
    assert row["status"] == schema.LABELLED


def test_image_ids_may_be_texts(tmp_path: Path) -> None:
    images = [{"id": name, "file_name": "a.png"} for name in ("x", "y")]
    boxes = boxed([1, 1, 2, 2], [1, 1, 3, 3], image_id="y")
    rows = read(tmp_path, images=images, annotations=boxes)
    assert [(row["sample_id"], len(row["boxes"])) for row in rows] == [("shapes/train/x", 0), ("shapes/train/y", 2)]


@pytest.mark.parametrize("number", [{}, {"id": None}, {"id": "b7"}])
def test_annotation_needs_no_number(tmp_path: Path, number: dict[str, object]) -> None:
    (row,) = read(tmp_path, annotations=[{"image_id": 5, "category_id": 7, "bbox": [2, 3, 4, 5], **number}])
    assert row["boxes"] == [[2, 3, 6, 8]]


@pytest.mark.parametrize(("suffix", "stored"), [("jpg", "JPEG"), ("png", "PNG")])
def test_turned_image_is_stored_upright(tmp_path: Path, suffix: str, stored: str) -> None:
    image, tags = Image.new("RGB", (WIDTH, HEIGHT)), Image.Exif()
    image.paste((255, 0, 0), (0, 0, WIDTH // 2, HEIGHT))
    tags[0x0112] = 6  # shown turned by 90 degrees clockwise: what was left is on top
    image.save(tmp_path / f"turned.{suffix}", exif=tags)
    picture = load_picture(tmp_path / f"turned.{suffix}")
    upright = Image.open(BytesIO(picture.encoded))
    assert (picture.width, picture.height) == upright.size == (HEIGHT, WIDTH)
    assert (upright.format, upright.getexif().get(0x0112)) == (stored, None)
    red, green, _ = upright.convert("RGB").getpixel((5, 2))  # type: ignore[misc]
    assert red > 200 > green


def test_truncated_image_is_refused(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-400])
    with pytest.raises(OSError, match="truncated"):
        load_picture(tmp_path / "half.jpg")


def test_categories_come_by_ascending_id_and_keep_id_zero(tmp_path: Path) -> None:
    assert list(categories(write(tmp_path, content()).annotations).items()) == [(0, "star"), (7, "ring")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "no list 'images'"),
        ({"annotations": [{"image_id": 5}]}, r"annotation 0 has bbox None; expected \[x, y, width, height\]"),
        ({"annotations": [*boxed([1, 1, 2, 2]), 3]}, "entry 1 of 'annotations' is 3; expected an object"),
        ({"annotations": boxed([1, 1, 2, 2], segmentation=[1, 1, 5, 1, 5, 5])}, "annotation 0 has segmentation .*poly"),
        ({"annotations": boxed([1, 1, 2, 2], segmentation=[[[1, 1], [5, 1], [5, 5]]])}, "expected polygons"),
        ({"categories": [{"id": "7"}]}, "entry 0 of 'categories' has id '7'; expected an integer"),
        ({"images": [{"id": 1.5}]}, "entry 0 of 'images' has id 1.5; expected an integer or a text"),
        ({"images": [{"id": 5}, {"id": "5"}]}, "1 image ids occur twice"),
        ({"annotations": boxed([1, 1, 2, 2], image_id=9)}, "annotation 0 is for image 9, which is not in 'images'"),
        ({"annotations": boxed([1, 1, 2])}, r"annotation 0 has bbox \[1, 1, 2\]; expected \[x, y, width, height\]"),
        ({"annotations": boxed([1, 1, 2, 2], category_id=3)}, "annotation 0 has category_id 3; expected the id of a"),
        ({"images": [{"id": 5}, {"id": 5}]}, "1 image ids occur twice"),
    ],
)
def test_bad_entry_is_named_in_one_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, **changes)
    assert str(tmp_path / "annotations.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "", "\xff", "[]"])
def test_file_that_is_no_coco_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"odd\.json .*expected a COCO"):
        categories(path)


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read"):
        categories(tmp_path / "nowhere.json")


def test_box_that_covers_the_image_ends_at_its_size() -> None:
    assert clamp_box([0, 0, WIDTH, HEIGHT], WIDTH, HEIGHT) == [0, 0, WIDTH, HEIGHT]


def test_real_photos_are_read_with_all_boxes(test_data: Path) -> None:
    folder = test_data / "captioned_photos"
    annotations = folder / "coco_instances.json"
    rows = list(read_coco(CocoSource(annotations=annotations, images=folder / "images", source="coco", split="x")))
    stated = json.loads(annotations.read_text(encoding="utf-8"))
    assert Counter(row["status"] for row in rows) == {schema.LABELLED: len(stated["images"])}
    assert sum(len(row["boxes"]) for row in rows) == len(stated["annotations"])
    assert sum(sum(row["iscrowd"]) for row in rows) == sum(a["iscrowd"] for a in stated["annotations"])


def test_masks_of_real_photos_are_their_polygons(test_data: Path) -> None:
    folder = test_data / "captioned_photos"
    annotations = folder / "coco_instances.json"
    rows = read_coco(CocoSource(annotations=annotations, images=folder / "images", source="coco", split="x"))
    stated = json.loads(annotations.read_text(encoding="utf-8"))["annotations"]
    polygons = [p for row in rows for mask in row["segmentation"] or () for p in mask]
    assert Counter(map(len, polygons)) == Counter(len(p) for a in stated if not a["iscrowd"] for p in a["segmentation"])


def test_polygons_of_real_photos_lie_in_their_boxes(test_data: Path) -> None:
    folder = test_data / "captioned_photos"
    annotations = folder / "coco_instances.json"
    rows = read_coco(CocoSource(annotations=annotations, images=folder / "images", source="coco", split="x"))
    for row in rows:
        for (x1, y1, x2, y2), mask in zip(row["boxes"], row["segmentation"] or (), strict=False):
            for polygon in mask:
                assert x1 - 2 <= min(polygon[::2]) <= max(polygon[::2]) <= x2 + 2
                assert y1 - 2 <= min(polygon[1::2]) <= max(polygon[1::2]) <= y2 + 2


@pytest.mark.parametrize("name", ["aquarium", "bccd", "facemask", "fruits", "raccoon"])
def test_real_detection_set_is_read_with_all_boxes(test_data: Path, name: str) -> None:
    for path in (test_data / "detection" / name / "test").glob("*.json"):
        rows = list(read_coco(CocoSource(annotations=path, images=path.parent, source=name, split="test")))
        stated = json.loads(path.read_text(encoding="utf-8"))
        assert Counter(row["status"] for row in rows) == {schema.LABELLED: len(stated["images"])}
        assert sum(len(row["boxes"]) for row in rows) == len(stated["annotations"])


def test_real_lvis_without_images_is_rejected_row_by_row(test_data: Path, tmp_path: Path) -> None:
    path = test_data / "lvis_sample" / "lvis_val_30.json"
    rows = list(read_coco(CocoSource(annotations=path, images=tmp_path, source="lvis", split="val")))
    assert Counter(row["reason"] for row in rows) == {MISSING_IMAGE: 30}


def test_real_lvis_is_read_with_masks_and_federated_ids(test_data: Path, tmp_path: Path) -> None:
    path = test_data / "lvis_sample" / "lvis_val_30.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    for image in stated["images"]:
        Image.new("L", (image["width"], image["height"])).save(tmp_path / image["coco_url"].split("/")[-1])
    rows = list(read_coco(CocoSource(annotations=path, images=tmp_path, source="lvis", split="val")))
    assert sum(len(row["boxes"]) for row in rows) == len(stated["annotations"])
    assert [len(row["boxes"]) for row in rows] == [sum(map(bool, row["segmentation"] or ())) for row in rows]
    assert [row["neg_category_ids"] for row in rows] == [image["neg_category_ids"] for image in stated["images"]]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning:PIL")
def test_hostile_files_are_read_or_refused_but_never_crash(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "bad_images"
    manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = [record for record in manifest if "huge" not in record["traits"]]
    images = [{"id": number, "file_name": record["file"]} for number, record in enumerate(chosen)]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}), encoding="utf-8")
    rows = read_coco(CocoSource(annotations=path, images=folder, source="bad", split="x"))
    wrong = [
        record["file"]
        for record, row in zip(chosen, rows, strict=True)
        if (record["expected"], row["status"]) in {("decode", schema.REJECTED), ("reject", schema.LABELLED)}
    ]
    assert wrong == []


@pytest.mark.parametrize("field", ["image_id", "category_id"])
@pytest.mark.parametrize("wrong", [[1], {"id": 1}])
def test_an_id_that_is_a_list_or_an_object_is_one_line(tmp_path: Path, field: str, wrong: object) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], field: wrong}
    content = {"images": [{"id": 1}], "annotations": [annotation], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    source = CocoSource(annotations=tmp_path / "a.json", images=tmp_path, source="s", split="t")
    with pytest.raises(ValueError, match="expected the id of"):
        list(read_coco(source))
