"""The judge of the chaos suite must see what it is there for: every case breaks a sound output in one way."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.shards import MANIFEST_NAME, Manifest, describe_files, read_manifest, write_manifest
from tests.chaos.invariants import Made, Recorded, check

FINISHED = Recorded(status="FINISHED", metrics={"pseudo_label/rows_in": 6.0, "pseudo_label/rows_out": 4.0})


def write_shard(path: Path, keys: list[int], *, right: float = 8.0) -> None:
    rows = [
        {
            "sample_id": f"web/train/{key}",
            "source": "web",
            "split": "train",
            "kind": schema.CAPTION,
            "key": key,
            "text": f"caption {key}",
            "boxes": [[0.0, 0.0, right, 4.0]],
            "score": [0.5],
            "status": schema.REJECTED if key % 3 == 0 else schema.LABELLED,
            "reason": "no_box" if key % 3 == 0 else None,
            "schema_version": schema.SCHEMA_VERSION,
        }
        for key in keys
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(schema.to_table(rows, schema.GROUNDING), path)


def finish(labels: Path) -> None:
    found = describe_files(labels)
    manifest = Manifest(
        stage="pseudo_label", config_hash="a", rows_in=6, rows_out=4, rejects={"no_box": 2}, files=found
    )
    write_manifest(labels, manifest)


def sound(folder: Path) -> Made:
    write_shard(folder / "labels" / "a.parquet", [0, 1, 2])
    write_shard(folder / "labels" / "b.parquet", [3, 4, 5])
    finish(folder / "labels")
    return Made(folder=folder, runs=[FINISHED])


@pytest.fixture
def undisturbed(tmp_path: Path) -> Made:
    return sound(tmp_path / "undisturbed")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return sound(tmp_path / "made")


def test_an_output_of_the_same_rows_in_other_shards_holds(tmp_path: Path, undisturbed: Made) -> None:
    other = tmp_path / "other"
    write_shard(other / "labels" / "c.parquet", [5, 0])
    write_shard(other / "labels" / "d.parquet", [1, 2, 3, 4])
    finish(other / "labels")
    assert check("labels", Made(folder=other, runs=[FINISHED]), undisturbed).holds


def lose(labels: Path) -> None:
    write_shard(labels / "b.parquet", [3, 4])
    finish_unchecked(labels)


def double(labels: Path) -> None:
    write_shard(labels / "b.parquet", [3, 4, 5, 1])
    finish_unchecked(labels)


def finish_unchecked(labels: Path) -> None:
    """Let the manifest list what is there, whatever the account says."""
    path = labels / MANIFEST_NAME
    path.unlink()
    saved = {"stage": "pseudo_label", "config_hash": "a", "rows_in": 6, "rows_out": 4, "rejects": {"no_box": 2}}
    path.write_text(json.dumps({**saved, "files": describe_files(labels)}))


def test_a_lost_row_is_counted(made: Made, undisturbed: Made) -> None:
    lose(made.folder / "labels")
    verdict = check("labels", made, undisturbed)
    assert (verdict.lost, verdict.doubled) == (1, 0)
    assert "labels: rows_in is 6, counted 5" in verdict.broken


def test_a_doubled_row_is_counted(made: Made, undisturbed: Made) -> None:
    double(made.folder / "labels")
    verdict = check("labels", made, undisturbed)
    assert (verdict.lost, verdict.doubled) == (0, 1)


def change_a_box(labels: Path) -> None:
    write_shard(labels / "b.parquet", [3, 4, 5], right=9.0)
    finish(labels)


def tear(labels: Path) -> None:
    path = labels / "b.parquet"
    path.write_bytes(path.read_bytes()[:-40])


def add_a_stray(labels: Path) -> None:
    (labels / "rest.tmp").write_bytes(b"x")


def forget_the_manifest(labels: Path) -> None:
    (labels / MANIFEST_NAME).unlink()


def reject_otherwise(labels: Path) -> None:
    manifest = read_manifest(labels)
    assert manifest is not None
    write_manifest(labels, replace(manifest, rejects={"worker_crash": 2}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (change_a_box, "('label', 4) has changed"),
        (add_a_stray, "labels/rest.tmp is a stray file"),
        (forget_the_manifest, "labels has no manifest, although the command ended well"),
        (reject_otherwise, "labels: rejects is {'worker_crash': 2}, counted {'no_box': 2}"),
    ],
)
def test_what_does_not_hold_is_said(made: Made, undisturbed: Made, harm: Callable[[Path], None], said: str) -> None:
    harm(made.folder / "labels")
    assert said in check("labels", made, undisturbed).broken


def test_a_torn_shard_is_an_error(made: Made, undisturbed: Made) -> None:
    tear(made.folder / "labels")
    with pytest.raises(pa.ArrowInvalid):
        check("labels", made, undisturbed)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([FINISHED, Recorded(status="RUNNING")], "1 MLflow runs are still RUNNING"),
        ([Recorded(status="FAILED", metrics=FINISHED.metrics)], "no MLflow run is FINISHED"),
        (
            [Recorded(status="FINISHED")],
            "labels: MLflow has {'rows_in': None, 'rows_out': None}, the manifest 6 in and 4 out",
        ),
    ],
)
def test_what_is_wrong_in_mlflow_is_said(made: Made, undisturbed: Made, runs: list[Recorded], said: str) -> None:
    assert check("labels", replace(made, runs=runs), undisturbed).broken == [said]


def trained(folder: Path, losses: list[float], weights: bytes = b"w") -> Made:
    path = folder / "model" / "model" / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(weights)
    history = [{"step": float(step), "loss": loss} for step, loss in enumerate(losses, 1)]
    return Made(folder=folder, runs=[Recorded(status="FINISHED", history=history)])


@pytest.mark.parametrize(
    ("losses", "weights", "lost", "broken"),
    [
        ([2.0, 1.0], b"w", 0, []),
        ([2.0], b"w", 1, []),
        ([2.0, 1.0000001], b"w", 0, ["('step', 2.0) has changed"]),
        ([2.0, 1.0], b"v", 0, ["('weights', 'model') has changed"]),
    ],
)
def test_a_training_must_be_the_same_bit_for_bit(
    tmp_path: Path, losses: list[float], weights: bytes, lost: int, broken: list[str]
) -> None:
    verdict = check("pretrain", trained(tmp_path / "a", losses, weights), trained(tmp_path / "b", [2.0, 1.0]))
    assert (verdict.lost, verdict.broken) == (lost, broken)


def swept(folder: Path, ap: float, seconds: float) -> Made:
    (folder / "trials").mkdir(parents=True)
    (folder / "trials" / "k.json").write_text(json.dumps({"ap": ap, "seconds": seconds}))
    (folder / "sweep.json").write_text(json.dumps({"trials": [{"ap": ap}], "cost": {"trial_seconds": seconds}}))
    return Made(folder=folder, runs=[Recorded(status="FINISHED")])


def test_a_sweep_must_come_to_the_same_table_whatever_it_took(tmp_path: Path) -> None:
    undisturbed = swept(tmp_path / "undisturbed", 5.0, 3.0)
    assert check("sweep", swept(tmp_path / "slower", 5.0, 4.0), undisturbed).holds
    other = check("sweep", swept(tmp_path / "other", 6.0, 3.0), undisturbed)
    assert other.broken == ["('trial', 'k') has changed", "('table', 'trials') has changed"]


def test_a_finished_trial_that_was_run_again_is_seen(tmp_path: Path) -> None:
    made = swept(tmp_path / "made", 5.0, 3.0)
    before = {"trials/k.json": json.dumps({"ap": 5.0, "seconds": 2.9}).encode()}
    verdict = check("sweep", made, swept(tmp_path / "undisturbed", 5.0, 3.0), kept=before)
    assert verdict.broken == ["trials/k.json was finished and is written anew"]
