"""The pipeline on other people's data: real photos, hostile files, real detection sets. Skips where they are absent."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.recipes import photos
from jobs.transfer_recipes import few_shot
from pipeline import schema
from pipeline.captions import label_captions
from pipeline.flow import sweep_alone
from pipeline.miniature.server import serve_folder
from pipeline.shards import open_rows, read_manifest

pytestmark = pytest.mark.ray


def captioned(test_data: Path) -> list[tuple[str, str]]:
    with (test_data / "captioned_photos" / "pairs.tsv").open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["caption"], f"captioned_photos/{row['file']}") for row in rows]


def hostile(test_data: Path) -> list[tuple[str, str]]:
    lines = (test_data / "bad_images" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [("a dog on a table", f"bad_images/{json.loads(line)['file']}") for line in lines]


def test_every_photo_and_every_hostile_file_ends_labelled_or_rejected(
    ray_session: None, test_data: Path, eager_model: Path, tmp_path: Path
) -> None:
    given = captioned(test_data) + hostile(test_data)
    pairs, out = tmp_path / "pairs.tsv", tmp_path / "out"
    cfg = replace(photos(), pairs=str(pairs), teacher=str(eager_model), out=str(out))
    with serve_folder(test_data) as base:
        lines = "".join(f"{caption}\t{base}/{file}\n" for caption, file in given)
        pairs.write_text("caption\turl\n" + lines, encoding="utf-8")
        fetch = replace(cfg.download.fetch, allow_hosts=(base.removeprefix("http://"),))
        download = replace(cfg.download, fetch=fetch)
        report = label_captions(replace(cfg, download=download, label=replace(cfg.label, num_teachers=1))).report
    labels = read_manifest(out / "labels")
    assert labels is not None
    assert labels.rows_in == len(given)
    # Every photo can be had; of the hostile files only some.
    failed = sum(count for reason, count in labels.rejects.items() if reason.startswith("failed"))
    assert 0 < failed <= len(hostile(test_data))
    found = open_rows(out / "labels").to_table(["key", "status", "reason"]).to_pylist()
    assert sorted(row["key"] for row in found) == list(range(len(given)))
    assert all((row["status"] == schema.LABELLED) != bool(row["reason"]) for row in found)
    assert report is not None
    assert "failed_to_resize" in report.html.read_text(encoding="utf-8")


def test_a_short_trial_runs_on_a_real_detection_set(
    ray_session: None, test_data: Path, eager_model: Path, tmp_path: Path
) -> None:
    job = few_shot()
    short = replace(job.sweep, shots=(1,), seeds=(3,), max_epochs=1, evaluate_every=1)
    cfg = replace(
        job,
        checkpoint=eager_model,
        data=test_data / "detection",
        datasets=("aquarium",),
        out=tmp_path / "out",
        sweep=short,
    )
    sweep_alone(cfg)
    trials = json.loads((cfg.out / "sweep.json").read_text(encoding="utf-8"))["trials"]
    assert [(t["dataset"], t["mode"], t["shots"]) for t in trials] == [
        ("aquarium", "zero-shot", 0),
        ("aquarium", "prompt", 1),
    ]
    assert all(0 <= t["ap"] <= 100 for t in trials)
