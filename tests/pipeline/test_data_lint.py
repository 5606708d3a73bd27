import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data_lint import LINTED, LintDataJob, lint_data
from pipeline.data_lint_report import ERROR, KINDS, NOTE, NUM_EXAMPLES, SEVERITIES, DataReport, Findings
from pipeline.paths import NOT_GIVEN
from pipeline.sources.coco import CocoSource
from tests.pipeline.data_samples import CAPTION, SAMPLES, coco, coco_content, mdetr, mdetr_content, save, shards

Change = Callable[[dict[str, Any]], object]


def look(data: object, name: str = "coco", **options: Any) -> DataReport:
    return lint_data(LintDataJob(format=name, data=data, **options))


def kinds(report: DataReport) -> dict[str, int]:
    return {finding.kind: finding.count for finding in report.findings}


def example(report: DataReport, kind: str) -> str:
    return next(finding.examples[0] for finding in report.findings if finding.kind == kind)


def changed(folder: Path, change: Change) -> CocoSource:
    data, content = coco(folder), coco_content()
    change(content)
    save(data.annotations, content)
    return data


def put(key: str, position: int, **values: object) -> Change:
    return lambda content: content[key][position].update(values)


@pytest.mark.parametrize("name", LINTED)
def test_nothing_is_found_in_a_data_set_without_a_mistake(tmp_path: Path, name: str) -> None:
    report = look(SAMPLES[name](tmp_path), name)
    assert kinds(report) == ({"category_ids_from_zero": 1} if name == "odvg-detection" else {})
    assert report.counts.get("images", report.counts.get("captions")) == 2
    assert report.counts["boxes"] >= 2
    assert report.errors == 0


@pytest.mark.parametrize(
    ("change", "found", "shown"),
    [
        (put("annotations", 0, id=0), "annotation_id_zero", "annotation 0"),
        (put("annotations", 0, id=2), "annotation_id_twice", "annotation 2"),
        (put("annotations", 0, id=[[]]), "entry_malformed", "'annotations', position 0: id is [[]]"),
        (put("annotations", 0, image_id=7), "image_unknown", "annotation 1: image 7"),
        (put("annotations", 0, image_id={}), "image_unknown", "annotation 1: image {}"),
        (put("annotations", 0, bbox=None), "box_malformed", "image 1, annotation 1"),
        (put("annotations", 0, bbox=[1, 2, 3]), "box_malformed", "image 1, annotation 1"),
        (put("annotations", 0, bbox=[1, 2, 10**400, 3]), "box_malformed", "image 1, annotation 1"),
        (put("annotations", 0, bbox=[1, 2, float("nan"), 3]), "box_not_finite", "image 1, annotation 1: 1 2 to nan 5"),
        (put("annotations", 0, bbox=[1, 2, 0, 3]), "box_without_area", "image 1, annotation 1: 1 2 to 1 5"),
        (put("annotations", 0, bbox=[1, 2, -4, 3]), "box_without_area", "1 2 to -3 5"),
        (put("annotations", 0, bbox=[20, 2, 5, 3]), "box_outside", "20 2 to 25 5 in 20 x 10"),
        (put("annotations", 0, bbox=[18, 2, 5, 3]), "box_over_edge", "18 2 to 23 5 in 20 x 10, over by 3"),
        (put("annotations", 0, bbox=[-0.5, 2, 5, 3]), "box_over_edge_slightly", "over by 0.5"),
        (put("annotations", 0, iscrowd=1), "box_of_crowd", "image 1, annotation 1"),
        (put("annotations", 1, bbox=[2, 3, 4, 5], category_id=1), "box_twice", "image 1, annotation 2: category 1"),
        (put("annotations", 0, category_id=9), "category_unknown", "image 1, annotation 1: category 9"),
        (put("annotations", 0, category_id=[1]), "category_unknown", "category [1]"),
        (put("annotations", 0, segmentation=["x"]), "mask_malformed", "annotation 1: 'x'"),
        (put("annotations", 0, segmentation=[[1, 2, 3, 4]]), "polygon_without_corners", "annotation 1"),
        (put("categories", 0, name=""), "category_name_blank", "category 1: ''"),
        (put("categories", 0, name="  "), "category_name_blank", "category 1: '  '"),
        (put("categories", 0, name="Star"), "category_name_twice", "'star': categories 1 and 2"),
        (put("categories", 0, id=2), "category_id_twice", "2: 'ring' and 'star'"),
        (put("categories", 0, id="1"), "entry_malformed", "'categories', position 0: id is '1'"),
        (lambda c: c["categories"].append({"id": 5, "name": "cup"}), "category_unused", "category 5: cup"),
        (lambda c: c["categories"].append({"id": 5, "name": "cup"}), "category_ids_with_gaps", "2 then 5"),
        (lambda c: c["categories"].append({"id": 0, "name": "cup"}), "category_ids_from_zero", "category 0: cup"),
        (put("images", 0, id=2), "image_id_twice", "image 2"),
        (put("images", 0, id=None), "entry_malformed", "'images', position 0: id is None"),
        (put("images", 0, file_name=["1.jpg"]), "entry_malformed", "image 1: file_name is ['1.jpg']"),
        (put("images", 0, file_name="9.jpg"), "image_missing", "image 1: 9.jpg"),
        (put("images", 0, file_name="2.jpg"), "image_file_twice", "2.jpg: image 1 and image 2"),
        (put("images", 0, width=21), "image_size_differs", "image 1: 1.jpg, stated 21 x 10, is 20 x 10"),
        (put("images", 0, width=0), "image_size_not_stated", "image 1: 0 x 10"),
        (put("images", 0, neg_category_ids=[8]), "negative_unknown", "image 1: category 8, said to be absent"),
        (put("images", 0, neg_category_ids=[1]), "negative_boxed", "image 1: category 1"),
        (lambda c: c["annotations"].pop(), "image_without_boxes", "image 2: 2.jpg"),
        (lambda c: c["images"].append("x"), "entry_malformed", "'images', position 2: 'x'"),
        (lambda c: c.pop("images"), "file_unreadable", "no list 'images'"),
    ],
)
def test_each_mistake_is_found_and_shown(tmp_path: Path, change: Change, found: str, shown: str) -> None:
    report = look(changed(tmp_path, change))
    assert found in kinds(report)
    assert shown in example(report, found)


def test_dummy_parent_class_is_told_from_a_real_class_zero(tmp_path: Path) -> None:
    parent = {"id": 0, "name": "shapes", "supercategory": "none"}

    def add_parent(content: dict[str, Any]) -> None:
        content["categories"] = [parent, *({**one, "supercategory": "shapes"} for one in content["categories"])]

    data = changed(tmp_path, add_parent)
    report = look(data)
    assert kinds(report) == {"category_dummy_parent": 1, "category_ids_from_zero": 1}
    save(data.annotations, coco_content() | {"categories": [{**parent, "id": 1}, {"id": 2, "name": "x"}]})
    assert "category_dummy_parent" not in kinds(look(data))


def test_damaged_picture_and_copy_under_another_name_are_found(tmp_path: Path) -> None:
    data = coco(tmp_path)
    whole = (data.images / "1.jpg").read_bytes()
    (data.images / "2.jpg").write_bytes(whole[: len(whole) // 2])
    assert kinds(look(data)) == {"image_unreadable": 1}
    (data.images / "2.jpg").write_bytes(whole)
    assert example(look(data), "image_bytes_twice") == "1.jpg and 2.jpg"


def test_pictures_are_left_alone_if_that_is_wanted(tmp_path: Path) -> None:
    data = coco(tmp_path)
    (data.images / "1.jpg").unlink()
    report = look(data, open_images=False)
    assert kinds(report) == {}
    assert "not looked for" in str(report)


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        ([[0, 99]], {"span_outside": 1, "box_without_span": 1}),
        ([[-1, 6]], {"span_outside": 1, "box_without_span": 1}),
        ([[3, 3]], {"span_empty": 1, "box_without_span": 1}),
        ([], {"box_without_span": 1}),
        ([[2, 6], [3, 3]], {"span_empty": 1}),
        ([[6, 7]], {"span_blank": 1}),
        ([[2, 5]], {"span_cuts_word": 1}),
        ([[13, 16]], {"span_cuts_word": 1}),
        (None, {"span_malformed": 1}),
        ([[1]], {"span_malformed": 1}),
        ([[1, "2"]], {"span_malformed": 1}),
    ],
)
def test_spans_are_checked_against_the_caption(tmp_path: Path, spans: object, found: dict[str, int]) -> None:
    data, content = mdetr(tmp_path), mdetr_content()
    content["annotations"][0]["tokens_positive"] = spans
    save(data.annotations, content)
    assert kinds(look(data, "mdetr")) == found


@pytest.mark.parametrize(("caption", "found"), [(None, "entry_malformed"), (" ", "caption_blank")])
def test_captions_without_text_are_found(tmp_path: Path, caption: object, found: str) -> None:
    data, content = mdetr(tmp_path), mdetr_content()
    content["images"][0]["caption"] = caption
    save(data.annotations, content)
    assert found in kinds(look(data, "mdetr"))


def test_long_captions_are_found_with_a_vocabulary_only(tmp_path: Path) -> None:
    data = mdetr(tmp_path)
    words = save(tmp_path / "vocab.txt", "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CAPTION.split()]))
    assert "caption_too_long" in kinds(look(data, "mdetr", vocabulary=words, max_tokens=5))
    assert "caption_too_long" not in kinds(look(data, "mdetr", vocabulary=words, max_tokens=7))
    assert "caption_too_long" not in kinds(look(data, "mdetr", max_tokens=5))


def test_one_picture_with_several_captions_is_no_repetition(tmp_path: Path) -> None:
    data, content = mdetr(tmp_path), mdetr_content()
    content["images"].append({**content["images"][0], "id": 3})
    save(data.annotations, content)
    assert kinds(look(data, "mdetr")) == {"image_without_boxes": 1}


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "found"),
    [
        ("openimages", "boxes.csv", "0.1,0.5", "0.1,1.5", "box_over_edge"),
        ("openimages", "boxes.csv", "0.1,0.5", "x,0.5", "box_malformed"),
        ("openimages", "boxes.csv", "1,/m/r", "3,/m/r", "entry_malformed"),
        ("openimages", "boxes.csv", "LabelName", "Label", "file_unreadable"),
        ("openimages", "boxes.csv", "1,/m/s", "1,/m/t", "category_unknown"),
        ("openimages", "classes.csv", "star", "Ring", "category_name_twice"),
        ("visual-genome", "objects.json", '["star"]', "[]", "box_without_name"),
        ("visual-genome", "objects.json", '"w": 5', '"w": 0', "box_without_area"),
        ("visual-genome", "objects.json", '"image_id": 2', '"image_id": 1', "image_id_twice"),
        ("visual-genome", "image_data.json", '"width": 20', '"width": 21', "image_size_differs"),
        ("voc", "xml/1.xml", "<xmax>5", "<xmax>50", "box_over_edge"),
        ("voc", "xml/1.xml", "<xmax>5", "<xmax>wide", "box_malformed"),
        ("voc", "xml/1.xml", "</annotation>", "", "xml_malformed"),
        ("voc", "xml/1.xml", "<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', "xml_malformed"),
        ("voc", "xml/1.xml", "<width>20", "<width>0", "image_size_not_stated"),
        ("voc", "xml/1.xml", "ring", "", "xml_malformed"),
        ("flickr30k", "Sentences/1.txt", "a ring]", "a ring", "markup_broken"),
        ("flickr30k", "Annotations/1.xml", "<name>5", "<name>7", "phrase_without_box"),
        ("flickr30k", "Annotations/1.xml", "<xmin>1", "<xmin>9", "box_without_area"),
        ("flickr30k", "train.txt", "2", "4", "file_unreadable"),
        ("phrasecut", "refer.json", "two stars", "", "caption_blank"),
        ("phrasecut", "refer.json", "2__0", "1__0", "sample_id_twice"),
        ("phrasecut", "refer.json", '"image_id": 2', '"image_id": 5', "image_unknown"),
        ("phrasecut", "refer.json", "[[1, 1, 4, 4], [", "[[", "mask_malformed"),
        ("tsv-detection", "train.label.tsv", '"star"', '"cup"', "category_unknown"),
        ("tsv-detection", "train.label.tsv", "[1, 1, 5, 6]", "[1, 1, 5, 60]", "box_over_edge"),
        ("tsv-detection", "train.label.tsv", "2\t", "3\t", "image_missing"),
        ("tsv-detection", "train.hw.tsv", "2\t", "3\t", "entry_malformed"),
        ("tsv-detection", "train.img.tsv", "1\t", "1\t!", "image_unreadable"),
        ("tsv-detection", "map.json", '"ring"', '"Star"', "category_name_twice"),
        ("tsv-caption", "train.label.tsv", "[2, 6]", "[2, 60]", "span_outside"),
        ("tsv-caption", "train.label.tsv", "[0.9, 0.8]", "[0.9]", "entry_malformed"),
        ("odvg-detection", "odvg.jsonl", '"label": 1', '"label": 2', "category_unknown"),
        ("odvg-detection", "odvg.jsonl", '"filename": "1.jpg"', '"filename": 1', "entry_malformed"),
        ("odvg", "odvg.jsonl", "[[2, 6]]", "[2, 60]", "span_outside"),
        ("odvg", "odvg.jsonl", "[1, 1, 5, 6]", "[[1, 1, 5, 6], [1, 1, 1, 1]]", "box_without_area"),
    ],
)
def test_mistakes_of_every_format_are_found(
    tmp_path: Path, name: str, file: str, old: str, new: str, found: str
) -> None:
    data = SAMPLES[name](tmp_path)
    path = tmp_path / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert found in kinds(look(data, name))


def shard_file(folder: Path) -> Path:
    return folder / "out" / "00000.parquet"


def rewrite(path: Path, **columns: object) -> None:
    """Write a shard again with other values in the columns of its first row."""
    table = pq.read_table(path)
    for name, value in columns.items():
        values = [value, *table[name].to_pylist()[1:]]
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)


def edit_manifest(folder: Path, **values: object) -> None:
    path = folder / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda f: (f / "out" / "manifest.json").unlink(), "manifest_missing"),
        (lambda f: (f / "out" / "manifest.json").write_text("{"), "file_unreadable"),
        (lambda f: (f / "out" / "manifest.json").write_text("[]"), "manifest_malformed"),
        (lambda f: edit_manifest(f, rows_in=9), "manifest_malformed"),
        (lambda f: edit_manifest(f, files="x"), "manifest_malformed"),
        (lambda f: edit_manifest(f, schema_version=1), "schema_version_differs"),
        (lambda f: shard_file(f).unlink(), "shard_missing"),
        (lambda f: shard_file(f).write_bytes(b"PAR1 no"), "shard_unreadable"),
        (lambda f: rewrite(shard_file(f), split="other"), "shard_changed"),
        (lambda f: (f / "out" / "more.parquet").write_bytes(shard_file(f).read_bytes()), "shard_stray"),
        (lambda f: rewrite(shard_file(f), boxes=[[1, 1, 2, 2]]), "columns_disagree"),
        (lambda f: rewrite(shard_file(f), boxes=[[1, 1, 1, 2], [0, 0, 9, 9]]), "box_without_area"),
        (lambda f: rewrite(shard_file(f), category_id=[1, 9]), "category_unknown"),
        (lambda f: rewrite(shard_file(f), phrase_index=[0, -1]), "columns_disagree"),
        (lambda f: rewrite(shard_file(f), image={"bytes": b"x", "path": None}), "image_unreadable"),
        (lambda f: rewrite(shard_file(f), image=None), "image_missing"),
        (lambda f: rewrite(shard_file(f), width=3), "image_size_differs"),
        (lambda f: rewrite(shard_file(f), sample_id="set/train/2"), "sample_id_twice"),
        (lambda f: rewrite(shard_file(f), kind="cap"), "row_malformed"),
        (lambda f: pq.write_table(pq.read_table(shard_file(f)).drop(["kind"]), shard_file(f)), "column_missing"),
    ],
)
def test_harm_done_to_shards_is_found(tmp_path: Path, harm: Callable[[Path], object], found: str) -> None:
    data = shards(tmp_path)
    harm(tmp_path)
    assert found in kinds(look(data, "shards"))


def test_captions_of_shards_are_checked(tmp_path: Path) -> None:
    data = shards(tmp_path)
    spans = {"phrases": [[0, 99]], "tokens_positive": [[[0, 99]], [[2, 5]]], "phrase_index": [0, 0]}
    rewrite(shard_file(tmp_path), kind="ground", text=CAPTION, **spans)
    assert {"span_outside", "span_cuts_word"} <= kinds(look(data, "shards")).keys()


def test_errors_come_first_and_only_they_count_as_such(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0].update(id=0, image_id=7)
    content["categories"].append({"id": 3, "name": "cup"})
    data = coco(tmp_path)
    save(data.annotations, content)
    report = look(data)
    assert [finding.severity for finding in report.findings] == ["error", "warning", "note"]
    assert report.errors == 1
    assert str(report).splitlines()[-1] == "Kinds of finding: 1 error, 1 warning, 1 note"


def test_findings_are_counted_but_only_a_few_are_shown() -> None:
    findings = Findings()
    for number in range(100):
        findings.add("box_of_crowd", f"box {number}")
    (finding,) = findings.sorted()
    assert finding.count == 100
    assert finding.examples == ("box 0", "box 1", "box 2")[:NUM_EXAMPLES]


def test_report_says_what_becomes_of_rows_and_fits_a_terminal(tmp_path: Path) -> None:
    data = coco(tmp_path)
    content = coco_content()
    content["images"][0]["file_name"] = "x" * 500 + "\x1b[2J\n"
    content["annotations"][0]["category_id"] = {"deep": [[["x" * 500]]]}
    save(data.annotations, content)
    text = str(look(data))
    assert "rejected as unreadable_image" in text
    assert "images 2, boxes 3, categories 2" in text
    assert all(char.isprintable() or char == "\n" for char in text)
    assert max(map(len, text.splitlines()[1:])) <= 120


def test_every_kind_has_a_severity_and_a_fate() -> None:
    assert {kind.severity for kind in KINDS.values()} == set(SEVERITIES)
    assert all(kind.fate for kind in KINDS.values())
    assert max(map(len, KINDS)) <= 25


def test_report_goes_into_json(tmp_path: Path) -> None:
    data = changed(tmp_path, put("annotations", 0, bbox=[1, 2, float("nan"), 3]))
    look(data, json=tmp_path / "new" / "report.json")
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert report["errors"] == 0
    assert report["findings"][0]["kind"] == "box_not_finite"
    assert report["findings"][0]["count"] == 1


def test_formats_tell_what_becomes_of_their_own_entries(tmp_path: Path) -> None:
    data = SAMPLES["voc"](tmp_path)
    save(data.annotations / "1.xml", "<annotation>")
    assert "rejected as unreadable_annotation" in str(look(data, "voc"))


@pytest.mark.parametrize("option", ["vocabulary", "json"])
def test_relative_paths_are_refused(tmp_path: Path, option: str) -> None:
    job = LintDataJob(format="coco", data=coco(tmp_path), **{option: Path("here")})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"--{option} is here, a relative path"):
        job.check()


def test_shards_need_no_name(tmp_path: Path) -> None:
    LintDataJob(format="shards", data=shards(tmp_path)).check()
    with pytest.raises(ValueError, match=r"--data\.shards is missing"):
        LintDataJob(format="shards", data=LINTED["shards"].blank).check()
    assert LINTED["shards"].blank.shards == NOT_GIVEN


GARBAGE = ["null", "[]", "{}", '""', "-1", "1e999", "NaN", "true", '"\\ud800"', "[" * 90 + "]" * 90, '{"id": {}}']


def mangle(text: str, rng: random.Random) -> str:
    """Cut a text, put garbage where a value was, or take something out of its middle."""
    way, at = rng.randrange(4), rng.randrange(len(text) + 1)
    if way == 0:
        return text[:at]
    if way == 1:
        return text[:at] + text[at + rng.randrange(1, 9) :]
    values = list(re.finditer(r'"[^"]*"|-?\d[\d.]*|\[[^\[\]]*\]', text))
    if not values:
        return text + "\x00"
    value = rng.choice(values)
    return text[: value.start()] + rng.choice(GARBAGE) + text[value.end() :]


@pytest.mark.parametrize("name", LINTED)
def test_no_file_whatever_it_holds_ends_in_an_exception(tmp_path: Path, name: str) -> None:
    data = SAMPLES[name](tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "images" not in path.parts]
    whole = {path: path.read_bytes() for path in files}
    rng = random.Random(name)
    for _ in range(25):
        for path, content in whole.items():
            path.write_bytes(content)
        for path in rng.sample(files, rng.randint(1, len(files))):
            text = path.read_bytes().decode("latin-1")
            path.write_bytes(mangle(mangle(text, rng), rng).encode("latin-1"))
        report = look(data, name, open_images=rng.random() < 0.3)
        assert str(report)
        assert json.dumps(report.as_dict())


def test_deep_nesting_is_found_not_raised(tmp_path: Path) -> None:
    data = coco(tmp_path)
    save(data.annotations, "[" * 100_000 + "]" * 100_000)
    assert kinds(look(data)) == {"file_unreadable": 1}


def test_real_sets_show_their_known_quirks(test_data: Path) -> None:
    folder = test_data / "detection" / "facemask" / "test"
    blank = LINTED["coco"].blank
    upstream = look(replace(blank, annotations=folder / "_annotations.coco.json", images=folder))
    assert {"category_ids_from_zero", "annotation_id_zero"} <= kinds(upstream).keys()
    assert "category_dummy_parent" not in kinds(upstream)
    assert upstream.errors == 0
    cleaned = look(replace(blank, annotations=folder / "annotations_without_background.json", images=folder))
    assert not {"category_ids_from_zero", "annotation_id_zero"} & kinds(cleaned).keys()


def test_real_annotations_without_their_images_lose_every_row(test_data: Path) -> None:
    path = test_data / "lvis_sample" / "lvis_val_30.json"
    report = look(replace(LINTED["lvis"].blank, annotations=path, images=path.parent), "lvis")
    found = {finding.kind: finding for finding in report.findings}
    assert (found["image_missing"].count, found["image_missing"].severity) == (30, ERROR)
    assert found["category_unused"].severity == NOTE
    assert report.errors == 1
