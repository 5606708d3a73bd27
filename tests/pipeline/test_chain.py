"""The chain of a run, upward to the list of URLs and downward to what was made of it, over several stores."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from glipv2.checkpoint import WEIGHTS, weights_sha256
from jobs.lineage import arguments
from pipeline.chain import LineageJob, lineage
from pipeline.lineage import record_model, record_stage
from pipeline.shards import Manifest, describe_files, write_manifest, write_table
from pipeline.tracking import Input, Run, open_run

URLS = "feed" * 16
"""Hash of the list."""
TEACHER = "beef" * 16


def make_directory(folder: Path, stage: str, run: str, **inputs: str) -> Manifest:
    """Write a finished directory of one row."""
    folder.mkdir(parents=True)
    write_table(pa.table({"sample_id": [str(folder)]}), folder / "0.parquet")
    made = Manifest(
        stage=stage,
        config_hash="c",
        rows_in=1,
        rows_out=1,
        files=describe_files(folder),
        inputs=inputs,
        run_id=run,
    )
    write_manifest(folder, made)
    return made


def train(out: Path, sources: Sequence[tuple[Path, Manifest]], name: str = "model") -> tuple[Run, Path]:
    model = out / name / "model"
    with open_run(out, "pretrain", name, {"name": name}) as run:
        run.inputs([Input.of(place, made.content_hash, "train") for place, made in sources])
        model.mkdir(parents=True)
        (model / WEIGHTS).write_text(f"weights of {model}")
        record_model(run, model)
    return run, model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """List -> labels, in a store of their own; labels and an imported set -> model -> sweep, each in its own store."""
    root = tmp_path_factory.mktemp("chain")
    with open_run(root / "web", "pseudo_label", "k", {}) as labelling:
        labelling.inputs([Input(name="cc/pairs.tsv", hash=URLS, place="/data/cc/pairs.tsv", role="pairs")])
        labelling.inputs([Input(name="glip-t", hash=TEACHER, place="/models/glip-t", role="teacher")])
        labels = make_directory(
            root / "web" / "labels", "pseudo_label", labelling.run_id, pairs="0" * 64, teacher=TEACHER
        )
        record_stage(labelling, labels, root / "web" / "labels")
    boxes = make_directory(root / "boxes", "coco", "", annotations="a" * 64)
    pretrain, model = train(root / "nano", [(root / "web" / "labels", labels), (root / "boxes", boxes)])
    with open_run(root / "swept", "sweep", "k", {}) as sweep:
        sweep.inputs([Input.of(model, weights_sha256(model), "model")])
        trial = sweep.child("Fish-full-3", "t1", {"dataset": "Fish"}, kind="trial")
        trial.finish()
    return SimpleNamespace(root=root, labelling=labelling, pretrain=pretrain, sweep=sweep, trial=trial, model=model)


@pytest.fixture(autouse=True)
def _own_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def halves(told: str) -> tuple[str, str]:
    upward, downward = told.split("what was made of it:")
    return upward, downward


def test_a_sweep_leads_back_to_the_list_of_urls_over_every_store(made: SimpleNamespace) -> None:
    upward, downward = halves(lineage(LineageJob(run=str(made.root / "swept"))))
    lines = upward.splitlines()
    assert lines[0].startswith("sweep swept run ")
    assert "FINISHED" in lines[0]
    told = [line.lstrip("│├└─ ") for line in lines[2:]]
    assert [line.split(":")[0] for line in told] == ["model", "train", "pairs", "teacher", "train", "annotations"]
    assert f"made by pretrain nano run {made.pretrain.run_id[:10]} FINISHED commit " in told[0]
    assert f"{made.root / 'web' / 'labels'}  made by pseudo_label run {made.labelling.run_id[:10]}" in told[1]
    assert told[2] == f"pairs: cc/pairs.tsv {URLS[:10]} /data/cc/pairs.tsv"
    assert "made by coco" in told[4], "known by its manifest alone"
    assert [len(line) - len(line.lstrip("│├└─ ")) for line in lines[2:]] == [3, 6, 9, 9, 6, 9]
    assert "1 runs inside: 1 FINISHED" in downward


def test_labels_lead_to_all_that_was_made_of_them(made: SimpleNamespace) -> None:
    stores = (made.root / "nano", made.root / "swept")
    upward, downward = halves(lineage(LineageJob(run=str(made.root / "web" / "labels"), stores=stores)))
    assert upward.startswith("pseudo_label web run ")
    first, second = downward.strip().splitlines()
    assert first.startswith("└─ model ")
    assert str(made.model) in first
    assert second.startswith("   └─ ")
    assert str(made.root / "swept") in second


def test_a_trial_is_told_by_its_sweep(made: SimpleNamespace) -> None:
    upward, _ = halves(lineage(LineageJob(run=made.trial.run_id[:12], stores=(made.root / "swept",))))
    assert upward.startswith("Fish-full-3 run ")
    assert "part of: sweep swept run " in upward
    assert "/data/cc/pairs.tsv" in upward


def test_a_model_is_found_by_its_folder_or_that_of_its_training(made: SimpleNamespace) -> None:
    told = {lineage(LineageJob(run=str(place))) for place in (made.model, made.model.parent)}
    assert len(told) == 1
    assert f"run {made.pretrain.run_id[:10]}" in told.pop()


def test_the_whole_chain_is_written_as_json(made: SimpleNamespace) -> None:
    path = made.root / "told" / "chain.json"
    lineage(LineageJob(run=str(made.root / "swept"), json=path))
    chain = json.loads(path.read_text(encoding="utf-8"))
    [model] = chain["made_of"]
    labels = model["further"][0]
    assert labels["facts"]["made_by"]["run_id"] == made.labelling.run_id
    assert labels["further"][0]["facts"]["hash"] == URLS[:32]


def test_a_directory_made_anew_is_not_taken_for_the_one_that_was_used(tmp_path: Path) -> None:
    boxes = make_directory(tmp_path / "boxes", "coco", "", annotations="a" * 64)
    train(tmp_path / "nano", [(tmp_path / "boxes", boxes)])
    (tmp_path / "boxes" / "manifest.json").unlink()
    write_manifest(tmp_path / "boxes", Manifest(stage="other", config_hash="d", rows_in=0, rows_out=0))
    upward, _ = halves(lineage(LineageJob(run=str(tmp_path / "nano"))))
    assert "made by other" not in upward
    assert str(tmp_path / "boxes") in upward


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("0123456789", "0123456789 is not known in sqlite:///"),
        ("ab", "at least 4 characters"),
        ("/nowhere/at/all", "is not known in sqlite:///"),
    ],
)
def test_an_unknown_run_is_said_in_a_line(made: SimpleNamespace, run: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        lineage(LineageJob(run=run, stores=(made.root / "web",)))
    assert "\n" not in str(refused.value)


def test_misuse_of_the_command_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.lineage", "0123456789"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=_environment())
    assert ended.returncode == 2
    assert "0123456789 is not known as there is no MLflow store; give a run's id" in ended.stderr
    assert ended.stderr.count("\n") == 1


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def test_a_command_without_a_run_is_told_how_to_give_one() -> None:
    with pytest.raises(ValueError, match="give a run's id, or the folder a job wrote"):
        LineageJob().check()


def test_a_folder_may_be_given_as_it_lies_and_an_id_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "swept").mkdir()
    assert arguments(["swept", "--json", "/x"]) == ["", "--run", str(tmp_path / "swept"), "--json", "/x"]
    assert arguments(["4f1c2a9b"]) == ["", "--run", "4f1c2a9b"]
    assert arguments(["--help"]) == ["", "--help"]
