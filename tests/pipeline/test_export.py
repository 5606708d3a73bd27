import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from pipeline import schema
from pipeline.export import COCO_FILE, IMAGES, LABEL_MAP, NO_BOX, ODVG_FILE, ExportConfig, export
from pipeline.selection import SelectionConfig
from pipeline.shards import Manifest, count_rejects, describe_files, write_manifest, write_table
from pipeline.sources.coco import CocoSource, read_coco
from pipeline.sources.mdetr import read_mdetr
from pipeline.sources.odvg import read_odvg
from pipeline.sources.store import store_source

TEXT = 'A "red" mug beside a Cat, née cat.'
MUG, CAT, OTHER_CAT = [0, 11], [19, 24], [30, 33]
EVERY = ExportConfig(all_boxes=True)
ROUND_TRIP = ("text", "phrases", "tokens_positive", "phrase_index", "width", "height", "status", "image")


def encoded(width: int = 64, height: int = 48, colour: str = "red", kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, kind)
    return stream.getvalue()


def label(key: int, **changed: object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "sample_id": f"web/train/{key}",
        "source": "web",
        "split": "train",
        "image": {"bytes": encoded(), "path": None},
        "image_uri": f"http://a.example/{key}.jpg",
        "width": 64,
        "height": 48,
        "kind": schema.CAPTION,
        "text": TEXT,
        "phrases": [MUG, CAT, OTHER_CAT],
        "entity": [0, 1, 1],
        "boxes": [[0.1, 0.2, 33.333332, 40.7], [1.5, 2.5, 64.0, 48.0], [0.0, 0.0, 5.0, 5.0]],
        "tokens_positive": [[MUG], [CAT, OTHER_CAT], [MUG]],
        "phrase_index": [0, 1, 0],
        "category_id": [-1, -1, -1],
        "category": ["", "", ""],
        "score": [0.91234, 0.5, 0.31],
        "iscrowd": [False, False, False],
        "status": schema.LABELLED,
        "key": key,
        "schema_version": schema.SCHEMA_VERSION,
    }
    return row | changed


def without_labels(key: int, status: str = schema.REJECTED) -> dict[str, Any]:
    names = ("boxes", "tokens_positive", "phrase_index", "category_id", "category", "score", "iscrowd")
    reason = "no_box" if status == schema.REJECTED else None
    return label(key, status=status, reason=reason, image=None, **dict.fromkeys(names))


def finish(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    write_table(schema.to_table(rows, schema.GROUNDING), folder / "00000.parquet")
    kept, rejects = count_rejects(folder, schema.LABELLED)
    described = describe_files(folder)
    write_manifest(
        folder,
        Manifest(stage="made", config_hash="c", rows_in=len(rows), rows_out=kept, rejects=rejects, files=described),
    )
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return finish(
        tmp_path / "labels", [label(5), without_labels(6), label(7, image={"bytes": encoded(), "path": None})]
    )


def coco(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / COCO_FILE).read_text(encoding="utf-8"))
    return content


def odvg(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ODVG_FILE).read_text(encoding="utf-8").splitlines()]


def source(folder: Path, file: str) -> CocoSource:
    return CocoSource(annotations=folder / file, images=folder / IMAGES, source="again", split="train")


def assert_same(row: dict[str, Any], other: dict[str, Any], names: tuple[str, ...]) -> None:
    assert {name: row[name] for name in names} == {name: other[name] for name in names}
    assert len(row["boxes"]) == len(other["boxes"])
    for box, same in zip(row["boxes"], other["boxes"], strict=True):
        assert box == pytest.approx(same, abs=1e-3)


def test_odvg_brings_boxes_phrases_spans_and_scores_back(labels: Path, tmp_path: Path) -> None:
    export(ExportConfig(format="odvg", all_boxes=True), labels, tmp_path / "out")
    first, second = read_odvg(source(tmp_path / "out", ODVG_FILE))
    assert_same(first, label(5), (*ROUND_TRIP, "kind", "entity", "category", "category_id", "iscrowd"))
    assert first["score"] == pytest.approx(label(5)["score"], abs=1e-6)
    assert second["text"] == TEXT


def test_coco_brings_boxes_phrases_and_spans_back(labels: Path, tmp_path: Path) -> None:
    export(EVERY, labels, tmp_path / "out")
    first, _ = read_mdetr(source(tmp_path / "out", COCO_FILE))
    assert_same(first, label(5), ROUND_TRIP)


def test_coco_brings_phrases_back_as_categories(labels: Path, tmp_path: Path) -> None:
    export(EVERY, labels, tmp_path / "out")
    first, _ = read_coco(source(tmp_path / "out", COCO_FILE))
    assert_same(first, label(5), ("width", "height"))
    assert first["category"] == ['a "red" mug', "a cat", 'a "red" mug']


def test_coco_counts_annotations_from_1_and_carries_scores(labels: Path, tmp_path: Path) -> None:
    export(EVERY, labels, tmp_path / "out")
    content = coco(tmp_path / "out")
    assert [annotation["id"] for annotation in content["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [annotation["image_id"] for annotation in content["annotations"]] == [1, 1, 1, 2, 2, 2]
    assert content["annotations"][0]["score"] == pytest.approx(0.91234, abs=1e-6)
    assert content["annotations"][1]["tokens_positive"] == [CAT, OTHER_CAT]
    assert [(image["key"], image["caption"]) for image in content["images"]] == [(5, TEXT), (7, TEXT)]
    assert len(content["categories"]) == 2


def test_the_rule_chooses_the_boxes(labels: Path, tmp_path: Path) -> None:
    export(ExportConfig(selection=SelectionConfig(min_score=0.6)), labels, tmp_path / "out")
    assert len(coco(tmp_path / "out")["annotations"]) == 2


def test_a_caption_without_a_chosen_box_is_no_image_without_objects(labels: Path, tmp_path: Path) -> None:
    manifest = export(ExportConfig(selection=SelectionConfig(min_score=0.99)), labels, tmp_path / "out")
    assert coco(tmp_path / "out") == {"images": [], "annotations": [], "categories": []}
    assert (manifest.rows_in, manifest.rows_out, manifest.rejects) == (3, 0, {NO_BOX: 2, "no_box": 1})


def test_images_are_the_stored_bytes(tmp_path: Path) -> None:
    picture = encoded(colour="blue", kind="PNG")
    labels = finish(tmp_path / "labels", [label(0, image={"bytes": picture, "path": None})])
    export(EVERY, labels, tmp_path / "out")
    [image] = coco(tmp_path / "out")["images"]
    assert image["file_name"].endswith(".png")
    assert (tmp_path / "out" / IMAGES / image["file_name"]).read_bytes() == picture


def test_images_are_left_out_if_not_wanted(labels: Path, tmp_path: Path) -> None:
    export(ExportConfig(write_images=False), labels, tmp_path / "out")
    assert not (tmp_path / "out" / IMAGES).exists()
    assert len(coco(tmp_path / "out")["images"]) == 2


def test_many_images_are_written_only_if_asked(labels: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no-write-images"):
        export(ExportConfig(max_images_gib=0), labels, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def human() -> dict[str, Any]:
    categories = {"category_id": [7, 2, 7], "category": ["Cat", "traffic light", "Cat"], "phrase_index": [-1] * 3}
    nothing = dict.fromkeys(("text", "phrases", "tokens_positive", "key"))
    scores = {"score": [1.0] * 3, "iscrowd": [False, False, True]}
    return label(0) | {"kind": schema.DETECTION} | nothing | categories | scores


@pytest.fixture
def detection(tmp_path: Path) -> Path:
    rows = [human(), human() | {"boxes": [], "score": [], "category": [], "category_id": [], "iscrowd": []}]
    store_source(rows, tmp_path / "human", name="h", inputs={}, categories={2: "traffic light", 5: "dog", 7: "Cat"})
    return tmp_path / "human"


def test_human_boxes_keep_their_vocabulary_in_coco(detection: Path, tmp_path: Path) -> None:
    export(ExportConfig(), detection, tmp_path / "out")
    first, second = read_coco(source(tmp_path / "out", COCO_FILE))
    assert_same(first, human(), ("category_id", "category", "iscrowd", "score"))
    assert second["boxes"] == []
    assert [category["name"] for category in coco(tmp_path / "out")["categories"]] == ["traffic light", "dog", "Cat"]


def test_human_boxes_are_labels_from_0_in_odvg_and_crowds_are_none(detection: Path, tmp_path: Path) -> None:
    export(ExportConfig(format="odvg"), detection, tmp_path / "out")
    assert json.loads((tmp_path / "out" / LABEL_MAP).read_text()) == {"0": "traffic light", "1": "dog", "2": "Cat"}
    first, _ = read_odvg(source(tmp_path / "out", ODVG_FILE))
    assert (first["kind"], first["category"], first["category_id"]) == (
        schema.DETECTION,
        ["Cat", "traffic light"],
        [2, 0],
    )


def test_an_export_is_not_made_twice_nor_mixed(labels: Path, tmp_path: Path) -> None:
    made = export(EVERY, labels, tmp_path / "out")
    assert export(EVERY, labels, tmp_path / "out") == made
    with pytest.raises(ValueError, match="another configuration"):
        export(ExportConfig(format="odvg"), labels, tmp_path / "out")


def test_unfinished_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        export(EVERY, tmp_path, tmp_path / "out")


def write_odvg(folder: Path, *lines: object) -> CocoSource:
    (folder / IMAGES).mkdir()
    (folder / IMAGES / "a.jpg").write_bytes(encoded())
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / ODVG_FILE).write_text(text, encoding="utf-8")
    return source(folder, ODVG_FILE)


def test_a_region_of_others_may_have_many_boxes(tmp_path: Path) -> None:
    regions = [
        {"bbox": [[0, 0, 9, 9], [5, 5, 90, 40]], "phrase": "cats", "tokens_positive": [[4, 8]]},
        {"bbox": [1, 1, 5, 5], "phrase": "two", "tokens_positive": [0, 3]},
        {"bbox": [1, 1, 1, 5], "phrase": "flat", "tokens_positive": [[0, 3]]},
        {"bbox": [1, 1, 5, 5], "phrase": "elsewhere", "tokens_positive": [[30, 33]]},
    ]
    grounding = {"caption": "two cats", "regions": regions}
    [row] = read_odvg(write_odvg(tmp_path, {"filename": "a.jpg", "height": 48, "width": 64, "grounding": grounding}))
    assert row["kind"] == schema.GROUND
    assert row["boxes"] == [[0, 0, 9, 9], [5, 5, 64, 40], [1, 1, 5, 5]]
    assert row["tokens_positive"] == [[[4, 8]], [[4, 8]], [[0, 3]]]
    assert (row["phrases"], row["phrase_index"]) == ([[0, 3], [4, 8]], [1, 1, 0])
    assert row["score"] == [1.0, 1.0, 1.0]


def test_a_missing_image_is_a_rejected_row(tmp_path: Path) -> None:
    line = {"filename": "b.jpg", "height": 48, "width": 64, "grounding": {"caption": "x", "regions": []}}
    [row] = read_odvg(write_odvg(tmp_path, line))
    assert (row["status"], row["reason"]) == (schema.REJECTED, "missing_image")


@pytest.mark.parametrize(("line", "said"), [("{", "line 2 is no json"), ({"filename": "a"}, "line 2 lacks")])
def test_a_line_that_is_no_odvg_is_named(line: object, said: str, tmp_path: Path) -> None:
    good = {"filename": "a.jpg", "height": 48, "width": 64, "grounding": {"caption": "x", "regions": []}}
    with pytest.raises(ValueError, match=said):
        list(read_odvg(write_odvg(tmp_path, good, line)))


def test_real_boxes_survive_both_formats(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "captioned_photos"
    photos = CocoSource(annotations=folder / "coco_instances.json", images=folder / "images", source="c", split="v")
    rows = list(read_coco(photos))[:20]
    store_source(rows, tmp_path / "labels", name="c", inputs={})
    for form, file, read in (("coco", COCO_FILE, read_coco), ("odvg", ODVG_FILE, read_odvg)):
        out = tmp_path / form
        export(ExportConfig(format=form), tmp_path / "labels", out)  # type: ignore[arg-type]
        for row, again in zip(
            (r for r in rows if r["status"] == schema.LABELLED), read(source(out, file)), strict=True
        ):
            kept = [i for i, crowd in enumerate(row["iscrowd"]) if not crowd or form == "coco"]
            expected = row | {name: [row[name][i] for i in kept] for name in ("boxes", "category")}
            assert_same(again, expected, ("category", "width", "height", "image"))


def test_shards_open_in_pandas(labels: Path) -> None:
    frame = pd.read_parquet(labels / "00000.parquet")
    assert frame["key"].tolist() == [5, 6, 7]
    assert frame["boxes"][0][0].tolist() == pytest.approx(label(5)["boxes"][0])


def test_shards_open_in_hugging_face_datasets_with_pictures(labels: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    program = (
        "import sys, datasets\n"
        "rows = datasets.load_dataset('parquet', data_files=sys.argv[1], split='train')\n"
        "assert isinstance(rows.features['image'], datasets.Image), rows.features\n"
        "print(rows[0]['image'].size, rows[0]['boxes'][0][0], rows[1]['image'], rows[0]['text'])\n"
    )
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "home")}
    ended = subprocess.run(
        [sys.executable, "-c", program, str(labels / "00000.parquet")],
        env=os.environ | quiet | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("(64, 48) 0.1")
    assert ended.stdout.strip().endswith(f"None {TEXT}")
