import json
import logging
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import schema
from pipeline.import_data import ImportJob, import_data, pin_inputs, told
from pipeline.paths import NOT_GIVEN
from pipeline.shards import read_manifest
from pipeline.sources.formats import FORMATS
from tests.pipeline.data_samples import SAMPLES, coco, coco_content, save, voc


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_becomes_shards(tmp_path: Path, name: str) -> None:
    data = SAMPLES[name](tmp_path)
    job = ImportJob(format=name, data=data, out=tmp_path / "out")
    job.check()
    said = import_data(job)
    manifest = read_manifest(job.out)
    assert manifest is not None
    assert manifest.rows_in == manifest.rows_out == 2
    assert f"2 of 2 rows in {job.out}" in said
    assert "rejected: none" in said
    categories = {"ring", "star"} if FORMATS[name].categories else set()
    assert set(manifest.config["categories"].values()) == categories  # type: ignore[attr-defined]
    boxes = pq.read_table(job.out / "00000.parquet")["boxes"].to_pylist()
    assert all(boxes)


def test_rejects_are_told_by_reason_with_the_first_of_them(tmp_path: Path) -> None:
    data = coco(tmp_path)
    (data.images / "1.jpg").unlink()
    Image.new("RGB", (7, 7)).save(data.images / "2.jpg")
    said = import_data(ImportJob(format="coco", data=data, out=tmp_path / "out"))
    assert "0 of 2 rows" in said
    assert "rejected: 1 missing_image: set/train/1 (1.jpg)" in said
    assert "rejected: 1 size_mismatch: set/train/2 (2.jpg)" in said


def test_a_finished_directory_of_the_same_inputs_is_only_read(tmp_path: Path) -> None:
    job = ImportJob(format="coco", data=coco(tmp_path), out=tmp_path / "out")
    first = import_data(job)
    written = (job.out / "manifest.json").stat().st_mtime_ns
    assert import_data(job) == first
    assert (job.out / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("change", ["annotations", "picture", "split", "format"])
def test_other_inputs_are_refused_for_a_finished_directory(tmp_path: Path, change: str) -> None:
    job = ImportJob(format="coco", data=coco(tmp_path), out=tmp_path / "out")
    import_data(job)
    if change == "annotations":
        save(job.data.annotations, coco_content() | {"info": {}})
    if change == "picture":
        (job.data.images / "3.jpg").touch()
    if change == "split":
        job = replace(job, data=replace(job.data, split="val"))
    if change == "format":
        job = replace(job, format="lvis")
    with pytest.raises(ValueError, match="made by another configuration or from other inputs"):
        import_data(job)


def test_a_folder_of_labels_is_pinned_by_content_and_one_of_images_by_sizes(tmp_path: Path) -> None:
    data = voc(tmp_path)
    before = pin_inputs(data)
    path = data.annotations / "1.xml"
    path.write_text(path.read_text().replace("ring", "gnir"))
    assert {name for name, pin in pin_inputs(data).items() if pin != before[name]} == {"data.annotations"}


def test_where_data_lie_does_not_matter(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, other = coco(tmp_path / "a"), coco(tmp_path / "b")
    for picture in other.images.iterdir():
        picture.write_bytes((first.images / picture.name).read_bytes())
    assert pin_inputs(first) == pin_inputs(other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"annotations": NOT_GIVEN}, "--data.annotations is missing"),
        ({"images": Path("here")}, "--data.images is here, a relative path"),
        ({"annotations": Path("/nowhere.json")}, "--data.annotations is /nowhere.json, which does not exist"),
        ({"split": "a/b"}, "--data.split is 'a/b'; give a name without a slash"),
        ({"source": ""}, "--data.source is ''"),
    ],
)
def test_a_wrong_source_is_named_by_its_flag(tmp_path: Path, change: dict[str, object], said: str) -> None:
    job = ImportJob(format="coco", data=replace(coco(tmp_path), **change), out=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=said):
        job.check()


def test_a_path_that_may_be_left_out_may_be_left_out(tmp_path: Path) -> None:
    ImportJob(format="voc", data=voc(tmp_path), out=tmp_path / "out").check()


@pytest.mark.parametrize(("name", "said"), [("cocoa", "give one of coco, "), ("voc", "which reads VocSource")])
def test_a_source_of_another_format_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImportJob(format=name, data=coco(tmp_path), out=tmp_path / "out").check()


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "voc"])  # its XML files are rows, each rejected
def test_a_file_of_another_format_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    data = SAMPLES[name](tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".jpg":
            path.write_text("[1, 2, 3]\nno, such, thing\n")
    with pytest.raises(ValueError, match=str(tmp_path)) as refused:
        import_data(ImportJob(format=name, data=data, out=tmp_path / "out"))
    assert "\n" not in str(refused.value)


def test_an_import_that_failed_can_be_done_again(tmp_path: Path) -> None:
    data = coco(tmp_path)
    broken = coco_content()
    broken["annotations"][2]["category_id"] = 9
    save(data.annotations, broken)
    job = ImportJob(format="coco", data=data, out=tmp_path / "out")
    with pytest.raises(ValueError, match="category_id 9"):
        import_data(job)
    save(data.annotations, coco_content())
    assert "2 of 2 rows" in import_data(job)


def test_rows_passed_on_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert list(told(iter(range(5)), "import x")) == [0, 1, 2, 3, 4]
    assert "5 rows" in caplog.text


def test_real_sets_are_imported_whole(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "captioned_photos"
    blank = FORMATS["coco"].blank
    data = replace(blank, annotations=folder / "coco_instances.json", images=folder / "images")
    assert "70 of 70 rows" in import_data(ImportJob(format="coco", data=data, out=tmp_path / "out"))
    stated = json.loads(data.annotations.read_text(encoding="utf-8"))
    rows = pq.read_table(tmp_path / "out" / "00000.parquet", columns=["boxes", "kind"])
    assert sum(map(len, rows["boxes"].to_pylist())) == len(stated["annotations"])
    assert set(rows["kind"].to_pylist()) == {schema.DETECTION}
