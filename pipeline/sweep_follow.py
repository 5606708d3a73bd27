"""The driver's side of a sweep: what came of each trial, its MLflow run, and the status line.

Names are chosen for MLflow's views. A trial's parameters are those people compare by; the others are its tag
``tuning``. The compare page begins with the metric that was recorded first, so that is the AP. Metrics have no ``/`` in
their names: it would put them into sections above all others.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from pipeline.progress import Progress
from pipeline.report.inputs import ZERO_SHOT
from pipeline.result_store import ResultStore
from pipeline.shards import config_hash
from pipeline.sources.odinw import OdinwDataset
from pipeline.tracking import Input, Run
from pipeline.trial import PROBE, TrialInputs, TrialSpec, dataset_hashes

DONE, STOPPED = "through", "stopped_at"  # "done" is Tune's own, and in every result
RESULTS = ("ap", "ap50", "probe_ap", "seconds")
COST = ("best_epoch", "steps", "cache_mib")
"""What is told of a tuned trial beside its results."""
CURVE = {"val_ap": "val_ap", "loss": "loss", "lr": "current_lr", "offset_norm": "offset_norm"}
"""What is told of each evaluation, by its name in MLflow; ``lr`` is a parameter already."""


class Follow(Callback):
    """Takes note of trials as they end."""

    def __init__(self, run: Run, store: ResultStore, plans: Mapping[str, TrialSpec], inputs: TrialInputs) -> None:
        """Begin with no trial done.

        Args:
            run: MLflow run of the sweep.
            store: where trials leave what they came to.
            plans: all trials, by key.
            inputs: what they work on.
        """
        self.run, self.store, self.plans = run, store, plans
        self.results: dict[str, dict[str, Any]] = {}
        self._progress = Progress("sweep", unit="trials")
        self._inputs = inputs
        self._datasets: dict[str, Input] = {}  # no cache of functools: Tune pickles its callbacks

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Take note of a trial that ended, or that the scheduler stopped."""
        key, spec = trial.config["trial"]
        if DONE not in trial.last_result:  # the scheduler stopped it
            told = {name: trial.last_result[name] for name in ("epoch", "val_ap")}
            told["seconds"] = float(trial.last_result.get("time_total_s", 0.0))
            self.store.write(key, {**describe(spec), **told, STOPPED: told["epoch"]})
        self.done(key)

    def done(self, key: str) -> None:
        """Take note of a finished trial, and record it once in each sweep it is part of."""
        result = self.results[key] = self.store.read([key])[key]
        spec = self.plans[key]
        self.run.later(partial(self._record, key, result, compare(result, self.results.values())))
        if not spec.tuning:  # those it is to be compared with may be through already
            for other, told in self.results.items():
                if found := compare(told, [result]):
                    self.run.later(partial(self._record, other, told, found))
        came_to = f"AP {result['ap']:.1f}" if "ap" in result else f"stopped at AP {result['val_ap']:.1f}"
        self._progress(len(self.results), len(self.plans), f"{spec.name} {came_to}")

    def _record(self, key: str, result: Mapping[str, Any], compared: Mapping[str, float]) -> None:
        """Record a trial in an MLflow run of its own, inside the sweep's; anew if it can be compared with more."""
        spec = self.plans[key]
        child = self.run.child(spec.name, key, spec.compared, kind="trial", seconds=result.get("seconds", 0.0))
        if spec.dataset != PROBE:
            if spec.dataset not in self._datasets:
                self._datasets[spec.dataset] = pin_dataset(self._inputs, spec.dataset)
            child.inputs([self._datasets[spec.dataset]])
        tags = {"trial_key": key, "images": json.dumps(result.get("images") or [])[:5000]}
        tags |= {"tuning": json.dumps(asdict(spec.tuning), default=str)} if spec.tuning else {}
        final = {name: result[name] for name in RESULTS if result.get(name) is not None}
        child.write([(0, {**final, **compared, **_further(result)}), *_curve(result)], tags)
        child.finish("KILLED" if STOPPED in result else "FINISHED")


def compare(result: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Set a tuned trial beside the untuned model, as far as that is measured: points won, and lost on the probe."""
    found: dict[str, float] = {}
    for other in others:
        if result["mode"] == ZERO_SHOT or other["mode"] != ZERO_SHOT or "ap" not in result:
            continue
        if other["dataset"] == result["dataset"]:
            found |= {"zero_shot_ap": other["ap"], "gain": result["ap"] - other["ap"]}
        elif other["dataset"] == PROBE and result.get("probe_ap") is not None:
            found["forgetting"] = other["ap"] - result["probe_ap"]
    return found


def describe(spec: TrialSpec) -> dict[str, Any]:
    """Say what a trial is, beside its outcome."""
    return {"group": spec.group, **asdict(spec)}


def pin_dataset(inputs: TrialInputs, name: str) -> Input:
    """Pin a data set by the annotations of its splits."""
    dataset = OdinwDataset(name=name, root=inputs.root)
    return Input(name=name, hash=config_hash(dataset_hashes(dataset)), place=str(inputs.root / name), role="transfer")


def _further(result: Mapping[str, Any]) -> dict[str, float]:
    if result["mode"] == ZERO_SHOT:
        return {}
    return {"best_val_ap": result["val_ap"], **{name: result[name] for name in COST if name in result}}


def _curve(result: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    for seen in result.get("history", ()):
        yield int(seen["epoch"]), {CURVE[name]: value for name, value in seen.items() if name in CURVE}
