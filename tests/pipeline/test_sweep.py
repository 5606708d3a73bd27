"""The sweep: which trials there are, what runs twice (nothing), and what its summary says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from ray import cloudpickle
from ray.tune import Result
from safetensors.torch import load_file, save_file

from glipv2.transfer.protocol import protocol_for
from jobs.cli import parse
from jobs.transfer_recipes import SWEEPS
from pipeline.evaluate import Benchmark
from pipeline.halving import HalvingWithinGroups
from pipeline.miniature.world import World
from pipeline.protocol import read_protocol
from pipeline.report.inputs import ZERO_SHOT
from pipeline.result_store import ResultStore
from pipeline.sources.odinw import ANNOTATION_FILE, OdinwDataset
from pipeline.storage import Place
from pipeline.sweep import STOPPED, SearchConfig, SweepConfig, SweepInputs, choose, list_trials, name_failures, sweep
from pipeline.sweep_follow import Follow
from pipeline.sweep_summary import benchmark_means, best_rates, forgetting, summarize, tables
from pipeline.tracking import Run, open_run
from pipeline.trial import ALL, PROBE, TrialConfig, TrialInputs, TrialSpec, run_trial, trial_key

ROOT = Path(__file__).resolve().parents[2]


def plan(**changes: Any) -> SweepConfig:
    return replace(SweepConfig(shots=(1,), seeds=(3, 30), max_epochs=1), **changes)


def specs(cfg: SweepConfig) -> list[TrialSpec]:
    return list_trials(cfg, [OdinwDataset(name="Fish", root=Path("/odinw"))], probed=False)


def test_zero_shot_is_always_measured_once() -> None:
    assert [spec.mode for spec in specs(plan())] == [ZERO_SHOT, "prompt", "prompt"]


def test_all_data_are_trained_on_once_whatever_the_number_of_draws() -> None:
    assert [spec.seed for spec in specs(plan(shots=(ALL,)))][1:] == [3]


def test_every_pair_of_rates_is_a_trial_of_its_group() -> None:
    found = specs(plan(seeds=(3,), search=SearchConfig(lr_times=(1.0, 0.5), decay_times=(1.0, 2.0))))[1:]
    rates = {(spec.tuning.lr, spec.tuning.weight_decay) for spec in found if spec.tuning}
    assert rates == {(0.05, 0.25), (0.05, 0.5), (0.025, 0.25), (0.025, 0.5)}
    assert len({spec.group for spec in found}) == 1


def test_drawn_rates_lie_between_the_ends_and_are_the_same_each_time() -> None:
    search = SearchConfig(lr_times=(0.1, 10.0), decay_times=(1.0,), draws=5)
    drawn = list(search.pairs())
    assert drawn == list(search.pairs())
    assert len({lr for lr, _ in drawn}) == 5
    assert all(0.1 <= lr <= 10.0 and decay == pytest.approx(1.0) for lr, decay in drawn)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: plan(shots=(0,)), "zero-shot is always measured"),
        (lambda: plan(seeds=()), "give one seed or more"),
        (lambda: SearchConfig(lr_times=()), "give factors above 0"),
        (lambda: TrialConfig(averages=(1.5,)), "give parts between 0"),
    ],
)
def test_senseless_sweeps_are_refused_in_one_line(wrong: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def result(group: str, val_ap: float, **more: Any) -> dict[str, Any]:
    return {"group": group, "val_ap": val_ap, **more}


def test_the_rates_that_did_best_in_validation_are_chosen_the_first_of_equals() -> None:
    found = choose([result("a", 1.0), result("a", 3.0, lr=1), result("a", 3.0, lr=2), result("b", 0.0)])
    assert found == [result("a", 3.0, lr=1), result("b", 0.0)]


def test_a_trial_that_was_stopped_is_never_chosen() -> None:
    assert choose([result("a", 9.0, **{STOPPED: 4}), result("a", 1.0)]) == [result("a", 1.0)]


class FakeTrial:
    def __init__(self, name: str, group: str) -> None:
        self.trial_id, self.config = name, {"group": group}


def test_a_trial_is_stopped_for_being_worse_than_its_own_kind_alone() -> None:
    scheduler = HalvingWithinGroups(
        lambda config: str(config["group"]), time_attr="epoch", metric="val_ap", max_t=16, grace_period=1
    )
    told = []
    for name, group, ap in [
        ("a1", "a", 50.0),
        ("a2", "a", 60.0),
        ("b1", "b", 5.0),
        ("b2", "b", 6.0),
        ("a3", "a", 10.0),
    ]:
        trial: Any = FakeTrial(name, group)
        scheduler.on_trial_add(None, trial)
        told.append(scheduler.on_trial_result(None, trial, {"epoch": 1, "val_ap": ap}))
    assert told == ["CONTINUE", "CONTINUE", "CONTINUE", "CONTINUE", "STOP"]


def results_of(protocol_name: str, mode: str, draws: dict[int, float]) -> list[dict[str, Any]]:
    names = [dataset.name for dataset in read_protocol(protocol_name).datasets]
    shots: Any = 0 if mode == ZERO_SHOT else 3
    return [
        {"dataset": name, "mode": mode, "shots": shots, "seed": seed, "ap": ap}
        for seed, ap in draws.items()
        for name in names
    ]


EMPTY: dict[str, Any] = {
    "means": [],
    "lost": [],
    "forgetting": [],
    "rates": [],
    "cost": {"trial_seconds": 0.0, "gpu_seconds": 0.0},
}


def test_the_mean_of_a_benchmark_stands_beside_the_papers() -> None:
    protocol = read_protocol("odinw13")
    results = results_of("odinw13", ZERO_SHOT, {0: 40.0}) + results_of("odinw13", "prompt", {3: 50.0, 30: 60.0})
    zero, tuned = benchmark_means(results, protocol, "manual")
    assert (zero["mean"], zero["paper"]["GLIPv2-T"]) == (40.0, 48.5)
    assert (tuned["mean"], tuned["std"], tuned["paper"]["GLIPv2-T"]) == (55.0, 5.0, 55.6)


def test_each_data_set_of_a_benchmark_stands_beside_the_papers() -> None:
    protocol = read_protocol("odinw13")
    results = results_of("odinw13", ZERO_SHOT, {0: 40.0}) + results_of("odinw13", "prompt", {3: 50.0, 30: 60.0})
    means = benchmark_means(results, protocol, "manual")
    zero, tuned = (t for t in tables({**EMPTY, "means": means}) if t.caption.startswith("Data set by data set"))
    assert zero.rows[2][:2] == ["Aquarium", "40.0 ± 0.0"]
    assert zero.rows[2][zero.columns.index("GLIPv2-T")] == "18.4"
    assert tuned.rows[2][:2] == ["Aquarium", "55.0 ± 5.0"]
    assert tuned.rows[2][tuned.columns.index("GLIP-T")] == "37.6"
    assert "GLIPv2-T" not in tuned.columns  # its cells are lost


def test_a_mean_over_too_few_data_sets_is_refused() -> None:
    with pytest.raises(ValueError, match="Thermal is missing"):
        benchmark_means(results_of("odinw13", ZERO_SHOT, {0: 40.0})[:-1], read_protocol("odinw13"), "manual")


def test_a_mean_with_other_prompts_than_the_benchmarks_is_refused() -> None:
    with pytest.raises(ValueError, match="has prompts raw, not manual"):
        benchmark_means(results_of("odinw13", ZERO_SHOT, {0: 40.0}), read_protocol("odinw13"), "raw")


def test_rates_that_all_diverged_leave_out_their_mean_and_no_other() -> None:
    protocol = read_protocol("odinw13")
    common = {"seconds": 1.0, "tuning": None, "ap50": 0.0, "val_ap": 0.0}
    results = [
        {**common, **result, "group": f"{result['dataset']}-{result['mode']}-{result['seed']}"}
        for mode in (ZERO_SHOT, "full")
        for result in results_of("odinw13", mode, {3: 40.0})
    ]
    results[-1] = {**results[-1], STOPPED: 0.0, "reason": "diverged at step 7"}
    found = summarize(results, plan(), protocol)
    assert [(row["mode"], row["mean"]) for row in found["means"]] == [(ZERO_SHOT, 40.0)]
    assert [(row["dataset"], row["mode"], row["reason"]) for row in found["lost"]] == [
        (protocol.datasets[-1].name, "full", "diverged at step 7")
    ]
    assert found["cost"]["trial_seconds"] == 26.0
    assert any("diverged at step 7" in row for table in tables(found) for row in table.rows)


def test_forgetting_is_the_probe_before_and_after() -> None:
    tuned = {"dataset": "Fish", "mode": "full", "shots": 1, "seed": 3, "ap": 9.0, "averages": [], "probe_ap": 20.0}
    found = forgetting([{"dataset": PROBE, "ap": 30.0, "tuning": None}, {**tuned, "tuning": {}}])
    assert [(row["probe_before"], row["probe_after"]) for row in found] == [(30.0, 20.0)]


@pytest.fixture
def inputs(world: World, eager_model: Path, tmp_path: Path) -> SweepInputs:
    trial = TrialInputs(model=eager_model, root=world.odinw)
    return SweepInputs(trial=trial, datasets=("LoneHearts",), store=Place.of(tmp_path / "store"))


def test_what_decides_a_trial_decides_its_key(inputs: SweepInputs) -> None:
    spec = list_trials(plan(), [OdinwDataset(name="LoneHearts", root=inputs.trial.root)], probed=False)[1]
    assert spec.tuning is not None
    key = trial_key(spec, TrialConfig(), inputs.trial)
    assert trial_key(spec, TrialConfig(threads=2, keep_models=True, node_resource="label"), inputs.trial) == key
    for other in (
        replace(spec, seed=4),
        replace(spec, shots=3),
        replace(spec, dataset="NightMoons"),
        replace(spec, tuning=replace(spec.tuning, lr=0.1)),
    ):
        assert trial_key(other, TrialConfig(), inputs.trial) != key


def test_what_is_tuned_to_decides_the_key_too(world: World, eager_model: Path, tmp_path: Path) -> None:
    shutil.copytree(world.odinw / "LoneHearts", tmp_path / "odinw" / "LoneHearts")
    shutil.copytree(eager_model, tmp_path / "model")
    probe = tmp_path / "probe.json"
    probe.write_text("{}")
    inputs = TrialInputs(
        model=tmp_path / "model", root=tmp_path / "odinw", probe=Benchmark(name="p", annotations=probe, images=tmp_path)
    )
    spec = TrialSpec(dataset="LoneHearts", mode="full", shots=1, seed=3, tuning=protocol_for("full", 1))
    folder = tmp_path / "odinw" / "LoneHearts"
    keys = [trial_key(spec, TrialConfig(), inputs)]
    for path, change in (
        (folder / "valid" / ANNOTATION_FILE, " "),
        (folder / "train" / "fewshot_train_shot1_seed3.json", "{}"),
        (folder / "valid" / "fewshot_val_shot1_seed3.json", "{}"),
        (probe, " "),
    ):
        with path.open("a") as file:
            file.write(change)
        keys.append(trial_key(spec, TrialConfig(), inputs))
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / "model" / "model.safetensors")
    keys.append(trial_key(spec, TrialConfig(), inputs))
    assert len(set(keys)) == 6
    assert trial_key(replace(spec, shots=ALL), TrialConfig(), inputs) not in keys


def test_a_trial_that_died_before_it_told_anything_counts_as_failed(inputs: SweepInputs) -> None:
    spec = TrialSpec(dataset="LoneHearts")
    told = Result(
        metrics={"config": {"trial": ("k", spec)}}, checkpoint=None, error=RuntimeError("first\nlast"), path=""
    )
    silent = Result(metrics=None, checkpoint=None, error=RuntimeError("its process died"), path="")
    fine = Result(metrics={}, checkpoint=None, error=None, path="")
    assert name_failures([told, silent, fine]) == [f"{spec.name}: last", "a trial: its process died"]


def test_what_follows_a_sweep_can_be_pickled_as_tune_does(inputs: SweepInputs) -> None:
    follow = Follow(Run("sqlite:///x.db", "r"), ResultStore(inputs.store), {}, inputs.trial)
    assert cloudpickle.loads(cloudpickle.dumps(follow)).run == follow.run


def test_a_sweep_that_tune_left_early_was_interrupted(inputs: SweepInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sweep._carry_out", lambda *_: [])
    nothing: Any = None
    with pytest.raises(KeyboardInterrupt):
        sweep(plan(), inputs, nothing)


@pytest.mark.ray
def test_every_mode_leaves_its_numbers_and_the_next_sweep_takes_them_over(
    ray_session: None, inputs: SweepInputs, world: World, tmp_path: Path
) -> None:
    from pipeline.evaluate import Benchmark

    place = world.novel_test
    probe = Benchmark(name="probe", annotations=place.annotations, images=place.images)
    given = replace(inputs, trial=replace(inputs.trial, probe=probe))
    cfg = plan(modes=("prompt", "linear", "full"), seeds=(3,), trial=TrialConfig(averages=(0.0, 1.0)))
    with open_run(tmp_path, "sweep", "one", {}) as run:
        first = sweep(cfg, given, run)
    assert [r["mode"] for r in first] == [ZERO_SHOT, ZERO_SHOT, "prompt", "linear", "full"]
    _, untuned, prompt, linear, full = first
    assert (Path(str(given.store)) / trial_file(given, prompt)).exists()
    assert {row["mode"] for row in best_rates(first)} == {"prompt", "linear", "full"}
    for tuned in (linear, full):
        original, whole = tuned["averages"]
        assert original["ap"] == pytest.approx(untuned["ap"], abs=1e-6)
        assert (whole["ap"], whole["probe_ap"]) == (tuned["ap"], tuned["probe_ap"])
    before = stamps(given.store)
    more = replace(cfg, seeds=(3, 30), modes=("prompt",))
    with open_run(tmp_path, "sweep", "two", {}) as run:
        second = sweep(more, given, run)
        children = mlflow.MlflowClient(tracking_uri=run.uri).search_runs(
            ["1"], filter_string=f"tags.`mlflow.parentRunId` = '{run.run_id}'"
        )
    assert second[:3] == first[:3]
    assert {name: stamp for name, stamp in stamps(given.store).items() if name in before} == before
    assert len(stamps(given.store)) == len(before) + 1
    assert len(children) == 4


@pytest.mark.ray
def test_rates_are_searched_where_those_that_fall_behind_may_be_stopped(
    ray_session: None, inputs: SweepInputs, tmp_path: Path
) -> None:
    search = SearchConfig(lr_times=(1.0, 0.1, 0.01), stop_early=True)
    with open_run(tmp_path, "sweep", "search", {}) as run:
        found = sweep(plan(seeds=(3,), max_epochs=2, search=search, max_concurrent=1), inputs, run)
    tuned = [trial for trial in found if trial["mode"] == "prompt"]
    assert sorted(trial["tuning"]["lr"] for trial in tuned) == pytest.approx([0.0005, 0.005, 0.05])
    [best] = choose(tuned)
    assert STOPPED not in best
    assert best["val_ap"] == max(trial["val_ap"] for trial in tuned)


def trial_file(inputs: SweepInputs, found: dict[str, Any]) -> str:
    [file] = [
        name
        for name, _ in inputs.store.listing()
        if name.endswith(".json") and json.loads((inputs.store / name).read_text())["group"] == found["group"]
    ]
    return f"{file.removesuffix('.json')}/prompt.safetensors"


def stamps(store: Place) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in store.local.glob("*.json")}


def numbers(store: Place) -> dict[str, tuple[float, float]]:
    found = {path.name: json.loads(path.read_text()) for path in store.local.glob("*.json")}
    return {name: (saved["ap"], saved["ap50"]) for name, saved in found.items()}


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_sweep_whose_driver_was_killed_runs_only_what_was_left_and_ends_alike(
    inputs: SweepInputs, tmp_path: Path
) -> None:
    def command(out: Path) -> list[str]:
        given = ["--checkpoint", str(inputs.trial.model), "--data", str(inputs.trial.root), "--out", str(out)]
        short = ["--datasets", "LoneHearts", "--sweep.max-epochs", "1", "--sweep.shots", "1", "2"]
        return [sys.executable, "-m", "jobs.sweep", "few-shot", *given, *short, "--store", str(inputs.store)]

    out = tmp_path / "killed"
    process = subprocess.Popen(command(out), cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(stamps(inputs.store)) < 2:
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = stamps(inputs.store)
    ended = subprocess.run(command(out), cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert {name: stamp for name, stamp in stamps(inputs.store).items() if name in done} == done
    cfg = parse(SWEEPS, command(out)[3:]).sweep
    datasets = [OdinwDataset(name="LoneHearts", root=inputs.trial.root)]
    undisturbed = {}
    for spec in list_trials(cfg, datasets, probed=False):
        outcome = run_trial(spec, cfg.trial, inputs.trial, Place.of(tmp_path / "alone"), lambda _: None)
        undisturbed[f"{trial_key(spec, cfg.trial, inputs.trial)}.json"] = (outcome.ap, outcome.ap50)
    assert numbers(inputs.store) == undisturbed
    assert len(undisturbed) == 5
