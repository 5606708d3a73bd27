"""What MLflow has of a sweep: names that its compare page, its columns and its charts are useful by."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run as MlflowRun

from glipv2.transfer.protocol import Mode, protocol_for
from pipeline.report.inputs import ZERO_SHOT
from pipeline.result_store import ResultStore
from pipeline.sources.odinw import ANNOTATION_FILE, OdinwDataset
from pipeline.storage import Place
from pipeline.sweep_follow import STOPPED, Follow, compare, describe
from pipeline.sweep_summary import overall
from pipeline.tracking import open_run
from pipeline.trial import PROBE, TrialInputs, TrialSpec

COMPARED = {"dataset", "mode", "shots", "seed", "lr", "weight_decay"}


def tuned(mode: Mode = "full", seed: int = 3) -> TrialSpec:
    return TrialSpec(dataset="Fish", mode=mode, shots=3, seed=seed, tuning=protocol_for(mode, 3))


SPECS = {
    "tuned": tuned(),
    "stopped": tuned(seed=30),
    "untuned": TrialSpec(dataset="Fish"),
    PROBE: TrialSpec(dataset=PROBE),
}
HISTORY = [
    {"epoch": 0, "val_ap": 5.0, "lr": 1e-4, "offset_norm": 0.0},
    {"epoch": 2, "val_ap": 9.0, "lr": 1e-4, "offset_norm": 0.0, "loss": 0.5},
    {"epoch": 4, "val_ap": 8.0, "lr": 1e-5, "offset_norm": 0.0, "loss": 0.25},
]
OUTCOMES: dict[str, dict[str, Any]] = {
    "tuned": {"ap": 12.0, "ap50": 20.0, "val_ap": 9.0, "probe_ap": 30.0, "seconds": 42.0, "steps": 7, "best_epoch": 2}
    | {"cache_mib": 0.0, "images": ["a.jpg"], "history": HISTORY},
    "stopped": {"epoch": 2, "val_ap": 1.0, STOPPED: 2},
    "untuned": {"ap": 4.0, "ap50": 9.0, "val_ap": None, "seconds": 3.0, "steps": 0, "best_epoch": 0, "history": []},
    PROBE: {"ap": 33.0, "ap50": 0.0, "probe_ap": 33.0, "seconds": 2.0, "history": []},
}


def follow(folder: Path, order: Sequence[str]) -> dict[str, MlflowRun]:
    """Tell a sweep's follower of trials in this order, and read back what MLflow has, by key."""
    dataset = OdinwDataset(name="Fish", root=folder / "odinw")
    for split in ("train", "valid", "test"):
        (dataset.folder / split).mkdir(parents=True, exist_ok=True)
        (dataset.folder / split / ANNOTATION_FILE).write_text(split, encoding="utf-8")
    store = ResultStore(Place.of(folder / "trials"))
    for key, outcome in OUTCOMES.items():
        store.write(key, {**describe(SPECS[key]), **outcome})
    with open_run(folder, "sweep", "".join(order), {}) as run:
        follower = Follow(run, store, SPECS, TrialInputs(model=folder, root=dataset.root))
        for key in order:
            follower.done(key)
        assert run.settle() == 0
    client = mlflow.MlflowClient(tracking_uri=run.uri)
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{run.run_id}' and tags.`glipv2.job` = 'trial'")
    return {child.data.tags["trial_key"]: child for child in children}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("follow")


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_trial_has_the_columns_people_compare_by_and_no_others(folder: Path) -> None:
    runs = follow(folder, list(SPECS))
    assert runs["tuned"].data.params.keys() == COMPARED
    assert runs["tuned"].info.run_name == "Fish-full-3-seed3-lr0.0001-wd0.05"
    assert json.loads(runs["tuned"].data.tags["tuning"])["batch_size"] == 4
    assert [given.dataset.name for given in runs["tuned"].inputs.dataset_inputs] == ["Fish"]
    assert runs["tuned"].data.metrics == {
        **{"ap": 12.0, "ap50": 20.0, "zero_shot_ap": 4.0, "gain": 8.0, "probe_ap": 30.0, "forgetting": 3.0},
        **{"seconds": 42.0, "best_val_ap": 9.0, "best_epoch": 2, "steps": 7, "cache_mib": 0.0},
        **{"val_ap": 8.0, "loss": 0.25, "current_lr": 1e-5, "offset_norm": 0.0},
    }
    assert runs["untuned"].data.params == {"dataset": "Fish", "mode": ZERO_SHOT, "shots": "0", "seed": "0"}
    assert runs["untuned"].data.metrics == {"ap": 4.0, "ap50": 9.0, "seconds": 3.0}
    assert {key: run.info.status for key, run in runs.items()} == {
        **dict.fromkeys(SPECS, "FINISHED"),
        "stopped": "KILLED",
    }


def test_the_compare_page_begins_with_the_ap_and_charts_need_no_sections(folder: Path) -> None:
    run = follow(folder, ["tuned", "untuned", PROBE])["tuned"]
    assert next(iter(run.data.metrics)) == "ap"
    assert not [name for name in run.data.metrics if "/" in name]


def test_a_trial_s_run_lasts_as_long_as_the_trial_did(folder: Path) -> None:
    run = follow(folder, ["tuned", PROBE, "untuned"])["tuned"]
    assert 42_000 <= run.info.end_time - run.info.start_time < 60_000


def test_a_trial_is_compared_whichever_ends_first(folder: Path) -> None:
    for order in (["untuned", PROBE, "tuned"], ["tuned", PROBE, "untuned", "stopped"]):
        metrics = follow(folder, order)["tuned"].data.metrics
        assert (metrics["gain"], metrics["forgetting"]) == (8.0, 3.0)


def test_what_did_not_finish_or_belongs_to_another_set_is_not_compared() -> None:
    untuned, other = (
        {**describe(spec), **OUTCOMES["untuned"]} for spec in (SPECS["untuned"], TrialSpec(dataset="Cat"))
    )
    assert compare({**describe(SPECS["stopped"]), **OUTCOMES["stopped"]}, [untuned]) == {}
    assert compare({**describe(SPECS["tuned"]), **OUTCOMES["tuned"]}, [other]) == {}


def test_a_sweep_is_compared_with_others_by_means_over_sets_and_draws() -> None:
    results = [{**describe(SPECS[key]), **OUTCOMES[key]} for key in ("tuned", "untuned", PROBE)]
    results.append({**results[0], "ap": 14.0, "seed": 30})
    assert overall(results) == {
        "mean_ap full 3": 13.0,
        "mean_gain full 3": 9.0,
        "mean_forgetting full 3": 3.0,
        "mean_ap zero-shot": 4.0,
    }
