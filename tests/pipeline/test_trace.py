import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glipv2.checkpoint import WEIGHTS
from pipeline import schema
from pipeline.guards import hash_picture
from pipeline.lineage import record_model, record_stage
from pipeline.search import Wanted, hide
from pipeline.shards import MANIFEST_NAME, Manifest, count_rejects, describe_files, read_manifest, write_manifest
from pipeline.shards import write_table as write_shard
from pipeline.trace import TraceJob, trace
from pipeline.tracking import Input, Run, open_run

TEXT = "A red mug beside a cat."
TEACHER = "ab" * 32


def picture(seed: int, quality: int = 90) -> bytes:
    """Draw a picture unlike that of any other seed."""
    rough, stream = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(rough).resize((96, 72), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def label(key: int, url: str, **changed: object) -> dict[str, object]:
    digest, perceptual = hash_picture(picture(key))
    row: dict[str, object] = {
        "sample_id": f"web/train/{key}",
        "source": "web",
        "split": "train",
        "image": {"bytes": picture(key), "path": None},
        "image_uri": url,
        "width": 96,
        "height": 72,
        "kind": schema.CAPTION,
        "text": TEXT,
        "phrases": [[2, 9], [19, 22]],
        "boxes": [[1.0, 2.0, 30.5, 40.25], [5.0, 6.0, 7.0, 8.0]],
        "tokens_positive": [[[2, 9]], [[19, 22]]],
        "phrase_index": [0, 1],
        "category_id": [-1, -1],
        "category": ["", ""],
        "score": [0.75, 0.5],
        "iscrowd": [False, False],
        "status": schema.LABELLED,
        "key": key,
        "image_sha256": digest,
        "source_sha256": hashlib.sha256(str(key).encode()).hexdigest(),
        "phash": perceptual,
        "teacher": "glip-t",
        "teacher_sha256": TEACHER,
        "parser": "textblob",
        "parser_version": "0.19",
        "score_threshold": 0.3,
        "nms_iou": 0.6,
        "run_id": "run-1",
        "schema_version": schema.SCHEMA_VERSION,
    }
    return row | changed


def rejected(key: int, url: str) -> dict[str, object]:
    nothing = dict.fromkeys(("image", "boxes", "tokens_positive", "phrase_index", "category_id", "category", "score"))
    return label(key, url, status=schema.REJECTED, reason="no_box", iscrowd=None, **nothing)


def finish(folder: Path, files: dict[str, Sequence[dict[str, object]]], **manifest: Any) -> Path:
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_shard(schema.to_table(list(rows), schema.GROUNDING), folder / name)
    kept, rejects = count_rejects(folder, schema.LABELLED)
    total = sum(map(len, files.values()))
    made = Manifest(stage="pseudo_label", config_hash="c", rows_in=total, rows_out=kept, rejects=rejects)
    write_manifest(folder, replace(made, files=describe_files(folder), **manifest))
    return folder


LABELLED, REJECTED = "outcome=labelled", "outcome=rejected"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Write five labelled rows of three hosts in two shards, and a shard with two rejected rows."""
    hosts = "http://one.example/0.jpg", "https://me@IMG.One.example:8080/1.jpg", "http://two.example/one.example/2.jpg"
    first = [label(key, url) for key, url in enumerate(hosts)]
    second = [
        label(3, "http://notone.example.org/3.jpg", teacher="other", teacher_sha256="cd" * 32, run_id="run-2"),
        label(4, "http://two.example/4.jpg", image={"bytes": picture(4), "path": None}),
    ]
    bad = [rejected(5, "http://one.example/5.jpg"), rejected(6, "http://three.example/6.jpg")]
    files = {f"{LABELLED}/00000.parquet": first, f"{LABELLED}/00001.parquet": second}
    return finish(tmp_path / "labels", {**files, f"{REJECTED}/00000.parquet": bad}, inputs={"teacher": TEACHER})


def read_rows(folder: Path) -> dict[int, dict[str, Any]]:
    files = [str(path) for path in folder.rglob("*.parquet")]
    return {row["key"]: row for row in pads.dataset(files, partitioning=None).to_table().to_pylist()}


def follow(labels: Path, find: Wanted | None = None, **further: Any) -> dict[str, Any]:
    """Trace, and give what was written as JSON with the text under ``told``."""
    cfg = TraceJob(shards=(labels,), json=labels.parent / "trace.json", find=find or Wanted(), **further)
    cfg.check()
    told = trace(cfg)
    answer: dict[str, Any] = json.loads((labels.parent / "trace.json").read_text(encoding="utf-8"))
    return answer | {"told": told}


def keys(labels: Path, find: Wanted) -> list[int]:
    hits = follow(labels, find, examples=9)["hits"]
    return sorted(int(name.rpartition("/")[2]) for hit in hits for name in hit["examples"])


def test_a_box_leads_to_everything_its_label_came_from(labels: Path) -> None:
    answer = follow(labels, key=1, box=1)
    [source] = answer["sources"]
    assert source["file"] == f"{LABELLED}/00000.parquet"
    [shard] = [f for f in describe_files(labels) if f["path"] == source["file"]]
    assert source["file_sha256"] == shard["sha256"]
    assert source["inputs"] == {"teacher": TEACHER}
    [box] = source["boxes"]
    assert box["phrases"] == [{"span": [19, 22], "phrase": "cat"}]
    for said in ("IMG.One.example:8080/1.jpg", TEACHER, "textblob 0.19", "score_threshold 0.3", "run-1", "'cat'"):
        assert said in answer["told"]


def test_a_row_is_found_by_sample_id_without_its_image_in_the_answer(labels: Path) -> None:
    [source] = follow(labels, sample="web/train/3")["sources"]
    assert source["row"]["image_uri"] == "http://notone.example.org/3.jpg"
    assert "image" not in source["row"]
    assert len(source["boxes"]) == 2


def test_a_rejected_row_tells_its_reason(labels: Path) -> None:
    assert "rejected no_box" in follow(labels, key=5)["told"]


def test_a_box_a_row_has_not_is_refused(labels: Path) -> None:
    with pytest.raises(ValueError, match="give 0 to 1"):
        follow(labels, key=1, box=2)


def test_a_key_nobody_has_is_said_in_a_line(labels: Path) -> None:
    assert follow(labels, key=99)["told"] == f"key 99 is in none of {labels}"


@pytest.mark.parametrize(
    ("find", "found"),
    [
        (Wanted(urls=("http://two.example/4.jpg",)), [4]),
        (Wanted(urls=("http://two.example/",)), []),
        (Wanted(hosts=("one.example",)), [0, 1, 5]),
        (Wanted(hosts=("one.example",), subdomains=False), [0, 5]),
        (Wanted(hosts=("ONE.example.",), subdomains=False), [0, 5]),
        (Wanted(hosts=("img.one.example",)), [1]),
        (Wanted(hosts=("notone.example",)), []),
        (Wanted(teachers=("other",)), [3]),
        (Wanted(teachers=("CDCDCDCD",)), [3]),
        (Wanted(teachers=("cdcd",)), []),
        (Wanted(images=(hash_picture(picture(2))[0],)), [2]),
        (Wanted(images=(hashlib.sha256(b"2").hexdigest().upper(),)), [2]),
        (Wanted(runs=("run-2",)), [3]),
        (Wanted(runs=("run-2",), urls=("http://two.example/4.jpg",)), [3, 4]),
    ],
)
def test_rows_are_found_by_what_they_came_from(labels: Path, find: Wanted, found: list[int]) -> None:
    assert keys(labels, find) == found


def test_a_host_of_other_letters_is_found_in_either_spelling(tmp_path: Path) -> None:
    rows = [label(0, "http://bücher.example/a.jpg"), label(1, "http://xn--bcher-kva.example/b.jpg")]
    assert keys(finish(tmp_path / "labels", {"0.parquet": rows}), Wanted(hosts=("bücher.example",))) == [0, 1]


def test_a_picture_is_found_by_its_look(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").write_bytes(picture(3, quality=40))
    assert keys(labels, Wanted(pictures=(tmp_path / "mine.jpg",))) == [3]


def test_shards_are_told_with_rows_found_and_rows_in_use(labels: Path) -> None:
    hits = {hit["file"]: hit for hit in follow(labels, Wanted(hosts=("one.example",)))["hits"]}
    assert {file: (hit["rows"], hit["usable"]) for file, hit in hits.items()} == {
        f"{LABELLED}/00000.parquet": (2, 2),
        f"{REJECTED}/00000.parquet": (1, 0),
    }


def test_nothing_found_is_said_in_a_line(labels: Path) -> None:
    assert follow(labels, Wanted(runs=("no",)))["told"] == f"none of {labels} has run no"


def test_shards_of_an_older_schema_are_searched_by_what_they_have(tmp_path: Path) -> None:
    old = schema.to_table([label(0, "http://a.example/")], schema.GROUNDING).drop_columns(["phash", "source_sha256"])
    folder = finish(tmp_path / "labels", {"0.parquet": [label(0, "http://a.example/")]})
    write_shard(old, folder / "0.parquet")
    assert keys(folder, Wanted(images=(hash_picture(picture(0))[0],))) == [0]


DROPPED = ("image", "text", "phrases", "boxes", "tokens_positive", "phrase_index", "score", "category", "phash")


def drop(labels: Path, find: Wanted, name: str = "clean") -> Path:
    follow(labels, find, drop=True, out=labels.parent / name)
    return labels.parent / name / labels.name


def test_a_takedown_removes_the_content_and_keeps_the_account(labels: Path) -> None:
    clean, before = drop(labels, Wanted(hosts=("one.example",))), read_rows(labels)
    manifest = read_manifest(clean)
    assert manifest is not None
    assert (manifest.rows_in, manifest.rows_out) == (7, 3)
    assert manifest.rejects == {"dropped:host": 3, "no_box": 1}
    after = read_rows(clean)
    assert sorted(after) == sorted(before)
    for key in (0, 1, 5):
        assert {name: after[key][name] for name in DROPPED} == dict.fromkeys(DROPPED)
        assert (after[key]["status"], after[key]["reason"]) == (schema.REJECTED, "dropped:host")
    assert [after[key] for key in (2, 3, 4, 6)] == [before[key] for key in (2, 3, 4, 6)]


def test_nothing_of_the_content_is_left_in_the_files(labels: Path) -> None:
    clean = drop(labels, Wanted(urls=("http://one.example/0.jpg",)))
    stored = b"".join(path.read_bytes() for path in clean.rglob("*") if path.is_file())
    assert picture(0) not in stored
    assert b"http://one.example/0.jpg" not in stored
    assert picture(1) in stored


def test_dropped_rows_lie_with_the_rejected_ones(labels: Path) -> None:
    clean = drop(drop(labels, Wanted(hosts=("one.example",))), Wanted(runs=("run-2",)), "cleaner")
    for folder, status in ((LABELLED, schema.LABELLED), (REJECTED, schema.REJECTED)):
        rows = pads.dataset(str(clean / folder), partitioning=None).to_table(columns=["status", "key"]).to_pylist()
        assert {row["status"] for row in rows} == {status}
    assert len(read_rows(clean)) == 7


def test_a_dropped_address_is_still_known_to_have_been_dropped(labels: Path) -> None:
    url = "http://two.example/4.jpg"
    clean = drop(labels, Wanted(urls=(url,)))
    [hit] = follow(clean, Wanted(urls=(url,)))["hits"]
    assert (hit["rows"], hit["usable"]) == (1, 0)
    assert read_rows(clean)[4]["image_uri"] == hide(url) == hide(hide(url))


def test_a_takedown_that_was_made_is_not_made_again(labels: Path) -> None:
    find = Wanted(teachers=("other",))
    before = (drop(labels, find) / MANIFEST_NAME).stat().st_mtime_ns
    assert (drop(labels, find) / MANIFEST_NAME).stat().st_mtime_ns == before


def test_a_takedown_of_images_forgets_address_and_caption(tmp_path: Path) -> None:
    url = "http://one.example/0.jpg"
    row = {"key": 0, "url": url, "caption": "mine", "stored": "/x", "status": schema.SUCCESS, "sha256": "a" * 64}
    images = tmp_path / "images"
    images.mkdir()
    write_shard(schema.to_table([row | {"image": {"bytes": b"x", "path": None}}], schema.IMAGES), images / "0.parquet")
    write_manifest(
        images, Manifest(stage="download", config_hash="c", rows_in=1, rows_out=1, files=describe_files(images))
    )
    clean = drop(images, Wanted(urls=(url,)))
    [row] = pads.dataset(str(clean / "0.parquet")).to_table().to_pylist()
    assert (row["url"], row["status"], row["reason"]) == (hide(url), schema.REJECTED, "dropped:url")
    assert {row[name] for name in ("caption", "stored")} | {str(row["image"])} == {None, "None"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "give either --key or --sample"),
        ({"key": 1, "find": Wanted(runs=("a",))}, "give either --key or --sample"),
        ({"key": 1, "drop": True, "out": Path("/x")}, "--drop needs"),
        ({"find": Wanted(runs=("a",)), "drop": True}, "--out is missing"),
        ({"shards": (), "key": 1}, "--shards is missing"),
        ({"shards": (Path("here"),), "key": 1}, "relative path"),
    ],
)
def test_a_question_that_is_none_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TraceJob(**{"shards": (Path("/a"),), **wrong}).check()


def test_a_host_given_as_an_address_is_refused() -> None:
    with pytest.raises(ValueError, match="without scheme"):
        Wanted(hosts=("http://one.example/",))


def test_an_unfinished_directory_is_refused(labels: Path) -> None:
    (labels / MANIFEST_NAME).unlink()
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        follow(labels, Wanted(runs=("run-1",)))


def save_model(folder: Path, content: bytes) -> str:
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def record(run: Run, folder: Path) -> Input:
    manifest = read_manifest(folder)
    assert manifest is not None
    record_stage(run, manifest, folder)
    return Input.of(folder, manifest.content_hash, "train")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an output folder whose MLflow store exists: to make one takes seconds."""
    folder = tmp_path_factory.mktemp("home")
    with open_run(folder, "labelling", "k", {}):
        return folder


def test_a_source_leads_to_every_model_made_of_it(labels: Path, tmp_path: Path, home: Path) -> None:
    """Labels -> student -> its own labels -> grandchild, which is measured; a bystander is trained on others."""
    student, grandchild, bystander = (tmp_path / name / "model" for name in ("student", "grandchild", "bystander"))
    weights, measured, _ = (save_model(model, str(model).encode()) for model in (student, grandchild, bystander))
    more = finish(tmp_path / "more", {"0.parquet": [label(9, "http://z.example/")]}, inputs={"teacher": weights})
    clean = drop(labels, Wanted(hosts=("one.example",)))
    with open_run(home, "demo", "k", {}) as run:
        content, further, cleaned = (record(run, folder) for folder in (labels, more, clean))
        for source, model in ((content, student), (further, grandchild), (cleaned, bystander)):
            child = run.child(model.parent.name, model.parent.name, {})
            child.inputs([source])
            record_model(child, model)
        evaluation = run.child("evaluate", "evaluate", {})
        evaluation.inputs([Input.of(grandchild, measured, "model")])
        evaluation.tags({"model": str(grandchild), "weights_sha256": measured})
    answer = follow(labels, Wanted(hosts=("one.example",)), stores=(home,))
    assert {(step["what"], step["name"]) for step in answer["made_of_them"]} == {
        ("model", "student"),
        ("shards", "pseudo_label"),
        ("model", "grandchild"),
        ("run", "evaluate"),
    }
    assert str(grandchild) in answer["told"]
    rejected_only = follow(labels, Wanted(hosts=("three.example",)), stores=(home,))
    assert rejected_only["made_of_them"] == []


def test_a_run_is_told_by_name_and_commit(tmp_path: Path, home: Path) -> None:
    with open_run(home, "labelling", "other", {}) as run:
        pass
    folder = finish(tmp_path / "own", {"0.parquet": [label(0, "http://a.example/", run_id=run.run_id)]})
    [source] = follow(folder, key=0, stores=(home,))["sources"]
    assert (source["run"]["name"], source["run"]["status"]) == (f"labelling {home.name}", "FINISHED")
    assert source["run"]["git_commit"]


def test_no_store_is_made_by_asking(labels: Path, tmp_path: Path) -> None:
    assert "no MLflow store" in follow(labels, Wanted(runs=("run-1",)))["told"]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_rewritten_shard_has_the_columns_and_metadata_of_the_old_one(labels: Path) -> None:
    clean = drop(labels, Wanted(runs=("run-2",)))
    old = pq.read_schema(labels / LABELLED / "00001.parquet")
    written = list(clean.rglob("*-00001.parquet"))
    assert [pq.read_schema(path).equals(old, check_metadata=True) for path in written] == [True]
