"""Few-shot transfer to many data sets as one Ray Tune sweep (ODinW protocol; GLIP appendix E, GLIPv2 section 4.3).

Every trial is one data set, mode, number of shots, draw of images and pair of rates; `pipeline.trial` carries it out.
What it came to is kept under the hash of all that decides it: a sweep that was killed, or that meets a trial of another
sweep, runs nothing twice.
"""

import itertools
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import Any

from ray import tune
from ray.tune import RunConfig, TuneConfig, Tuner

from glipv2.checkpoint import weights_sha256
from glipv2.transfer.protocol import Decay, Mode, TuningConfig, protocol_for
from glipv2.transfer.tune import DivergedError
from pipeline import placement
from pipeline.failure import RunError
from pipeline.halving import HalvingWithinGroups
from pipeline.mlflow_client import AwayError
from pipeline.result_store import ResultStore
from pipeline.shards import file_sha256
from pipeline.sources.odinw import OdinwDataset, list_datasets
from pipeline.storage import Place
from pipeline.sweep_follow import DONE, STOPPED, Follow, describe, pin_dataset
from pipeline.tracking import Input, Run
from pipeline.trial import ALL, PROBE, Shots, TrialConfig, TrialInputs, TrialSpec, run_trial, trial_key
from pipeline.trial_checks import check_trials


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Rates to choose from, by the best validation AP; the protocol's own by default."""

    lr_times: tuple[float, ...] = (1.0,)
    """Multiples of the protocol's learning rate."""
    decay_times: tuple[float, ...] = (1.0,)
    """Multiples of the protocol's weight decay."""
    draws: int = 0
    """0 tries all pairs; else so many pairs are drawn, on a logarithmic scale, between the smallest and the largest."""
    stop_early: bool = False
    """Stop what falls behind (ASHA). Which ones are stopped then depends on the order they happen to run in."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.lr_times or not self.decay_times or min(*self.lr_times, *self.decay_times, 1.0) <= 0:
            raise ValueError(
                f"lr_times is {self.lr_times}, decay_times {self.decay_times}; give factors above 0, one or more"
            )
        if self.draws < 0:
            raise ValueError(f"draws is {self.draws}; give 0 for all pairs, or a count")

    def pairs(self) -> Iterator[tuple[float, float]]:
        """List the pairs of factors; the same for every group."""
        if not self.draws:
            yield from itertools.product(self.lr_times, self.decay_times)
            return
        drawn = random.Random(0)
        for _ in range(self.draws):
            low = [math.log(min(factors)) for factors in (self.lr_times, self.decay_times)]
            high = [math.log(max(factors)) for factors in (self.lr_times, self.decay_times)]
            lr, decay = (math.exp(drawn.uniform(*ends)) for ends in zip(low, high, strict=True))
            yield lr, decay


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Which trials there are, and how each of them runs."""

    modes: tuple[Mode, ...] = ("prompt",)
    """Ways of tuning; zero-shot is always measured."""
    shots: tuple[Shots, ...] = (1, 3, 5, 10, ALL)
    """Training images per category, or ``all`` there are."""
    seeds: tuple[int, ...] = (3, 30, 300)
    """One draw of images each; all the images are trained on once, with the first."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Rates to choose from."""
    max_epochs: int = 0
    """Longest training, epochs; 0 is the protocol's."""
    lr: float = 0.0
    """Learning rate of every mode; 0 is the protocol's."""
    text_lr: float = 0.0
    """Learning rate of the text encoder, in ``full`` only; 0 is the protocol's."""
    decay: Decay = "plateau"
    """When the rate falls: ``plateau``, as published, or ``cosine`` over ``max_epochs``."""
    evaluate_every: int = 1
    """Epochs between evaluations on the validation split; patience counts evaluations."""
    trial: TrialConfig = field(default_factory=TrialConfig)
    """What all trials share."""
    max_concurrent: int = 2
    """Trials side by side."""
    reuse_actors: bool = True
    """Keep a process for the next trial instead of starting one for each."""

    def __post_init__(self) -> None:
        """Check the counts."""
        if any(isinstance(shots, int) and shots < 1 for shots in self.shots):
            raise ValueError(f"shots is {self.shots}; give counts from 1 up, or all; zero-shot is always measured")
        least = min(self.max_epochs, self.lr, self.text_lr)
        if not self.seeds or self.max_concurrent < 1 or self.evaluate_every < 1 or least < 0:
            raise ValueError(
                f"seeds {self.seeds}, max_concurrent {self.max_concurrent}, evaluate_every {self.evaluate_every}, "
                f"max_epochs {self.max_epochs}, lr {self.lr}, text_lr {self.text_lr}; give one seed or more, counts "
                "from 1 up, and no negative number"
            )

    def tunings(self, mode: Mode, shots: Shots) -> Iterator[TuningConfig]:
        """Give the protocol of a mode and number of shots, as far as it is not overruled, with every pair of rates."""
        paper = protocol_for(mode, shots if isinstance(shots, int) else None)
        for lr, decay in self.search.pairs():
            yield replace(
                paper,
                lr=lr * (self.lr or paper.lr),
                text_lr=self.text_lr or paper.text_lr,
                decay=self.decay,
                weight_decay=decay * paper.weight_decay,
                max_epochs=self.max_epochs or paper.max_epochs,
                evaluate_every=self.evaluate_every,
            )


@dataclass(frozen=True, kw_only=True)
class SweepInputs:
    """What is tuned, and on what."""

    trial: TrialInputs
    """Model, data sets and probe."""
    datasets: tuple[str, ...] = ()
    """Names of the data sets; empty takes all that are found."""
    store: Place
    """Folder of finished trials, which sweeps may share."""

    def record(self, run: Run) -> None:
        """Record with a run what it tunes, and on what."""
        given = self.trial
        probe = [] if given.probe is None else [given.probe.annotations]
        run.inputs(
            [
                Input.of(given.model, weights_sha256(given.model), "model"),
                *(pin_dataset(given, dataset.name) for dataset in find_datasets(self)),
                *(Input.of(path, file_sha256(path), PROBE) for path in probe),
            ]
        )


def sweep(cfg: SweepConfig, inputs: SweepInputs, run: Run) -> list[dict[str, Any]]:
    """Run what is not done yet of all trials, and return what each came to.

    Raises:
        ValueError: a data set is missing.
        RunError: a trial failed; the message names it, and the others are kept.
        KeyboardInterrupt: it was interrupted; what is finished is kept.
    """
    store = ResultStore(inputs.store)
    specs = list_trials(cfg, find_datasets(inputs), probed=inputs.trial.probe is not None)
    plans = {trial_key(spec, cfg.trial, inputs.trial): spec for spec in specs}
    follow = Follow(run, store, plans, inputs.trial)
    for key in store.read(plans):
        follow.done(key)
    check_trials(specs, cfg.trial, inputs.trial)
    left = {key: spec for key, spec in plans.items() if key not in follow.results}
    if left and (failed := _carry_out(cfg, inputs.trial, left, follow)):
        raise RunError(
            f"{len(failed)} of {len(plans)} trials failed: {'; '.join(failed[:3])}; the others are kept: mend this and "
            "give the same command again"
        )
    if len(follow.results) < len(plans):
        raise KeyboardInterrupt  # Tune takes Ctrl-C for itself, and returns without the trials that are left
    if waiting := run.settle():
        raise AwayError(run.uri, f"{waiting} records of trials are left")
    return [follow.results[key] for key in plans]


def list_trials(cfg: SweepConfig, datasets: Sequence[OdinwDataset], *, probed: bool) -> list[TrialSpec]:
    """List all trials of a sweep; those of one group differ in their rates alone."""
    specs = [TrialSpec(dataset=PROBE)] if probed else []
    for dataset in datasets:
        specs.append(TrialSpec(dataset=dataset.name))
        for mode, shots in itertools.product(cfg.modes, cfg.shots):
            for seed in cfg.seeds[:1] if shots == ALL else cfg.seeds:
                for tuning in cfg.tunings(mode, shots):
                    specs.append(TrialSpec(dataset=dataset.name, mode=mode, shots=shots, seed=seed, tuning=tuning))
    return specs


def find_datasets(inputs: SweepInputs) -> list[OdinwDataset]:
    """Find the data sets asked for.

    Raises:
        ValueError: a name is not there.
    """
    root = inputs.trial.root
    found = {d.name: d for d in list_datasets(root)}
    if missing := [name for name in inputs.datasets if name not in found]:
        raise ValueError(f"no data set {missing} in {root}; found: {sorted(found)}")
    if not found:
        raise ValueError(
            f"no data set in {root}; expected <name>/<train|valid|test>/annotations_without_background.json"
        )
    return [found[name] for name in inputs.datasets] if inputs.datasets else list(found.values())


def choose(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of trials that differ in their rates alone take the one with the best validation AP, the first of equals."""
    best: dict[str, dict[str, Any]] = {}
    for result in results:
        kept = best.get(result["group"])
        if STOPPED not in result and (kept is None or result["val_ap"] > kept["val_ap"]):
            best[result["group"]] = dict(result)
    return list(best.values())


def lost_groups(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List the groups of trials none of which was through, with why the first one was not."""
    known = {result["group"] for result in choose(results)}
    lost = {result["group"]: result for result in reversed(results) if result["group"] not in known}
    names = ("dataset", "mode", "shots", "seed")
    return [{**{n: r[n] for n in names}, "reason": r.get("reason", "stopped early")} for r in reversed(lost.values())]


def _carry_out(cfg: SweepConfig, inputs: TrialInputs, plans: Mapping[str, TrialSpec], follow: Follow) -> list[str]:
    """Run trials on the cluster; name those that failed."""
    placement.require(cfg.trial.node_resource, cfg.trial.num_gpus)
    resources = {
        **placement.ask(cfg.trial.node_resource),
        "cpu": 0 if cfg.trial.num_gpus else 1,
        "gpu": cfg.trial.num_gpus,
    }
    given = {"cfg": cfg.trial, "inputs": inputs, "store": follow.store}
    longest = max((spec.tuning.max_epochs for spec in plans.values() if spec.tuning), default=1)
    scheduler = HalvingWithinGroups(_group, time_attr="epoch", metric="val_ap", max_t=longest)
    # What is done is in the store. Tune's own record of the run is of no use after it, and is not kept.
    with TemporaryDirectory() as folder:
        grid = Tuner(
            tune.with_resources(tune.with_parameters(_trainable, **given), resources),
            param_space={"trial": tune.grid_search([(key, spec) for key, spec in plans.items()])},
            tune_config=TuneConfig(
                max_concurrent_trials=cfg.max_concurrent,
                reuse_actors=cfg.reuse_actors,
                scheduler=scheduler if cfg.search.stop_early else None,
            ),
            run_config=RunConfig(name="tune", storage_path=folder, verbose=0, callbacks=[follow]),
        ).fit()
    return name_failures([grid[i] for i in range(len(grid))])


def name_failures(results: Sequence[tune.Result]) -> list[str]:
    """Say what went wrong with which trial; of one whose process died before it told anything Tune has no name."""
    failed = [result for result in results if result.error]
    names = [result.config["trial"][1].name if result.config else "a trial" for result in failed]
    return [f"{n}: {str(r.error).strip().splitlines()[-1]}" for n, r in zip(names, failed, strict=True)]


def _group(config: Mapping[str, Any]) -> str:
    spec: TrialSpec = config["trial"][1]
    return spec.group


def _trainable(config: dict[str, Any], cfg: TrialConfig, inputs: TrialInputs, store: ResultStore) -> None:
    started = time.perf_counter()
    key, spec = config["trial"]
    try:
        came_to = asdict(run_trial(spec, cfg, inputs, store.folder(key), tune.report))
    except DivergedError as error:  # these rates lead nowhere, which is an answer
        came_to = {"val_ap": 0.0, STOPPED: 0.0, "reason": str(error), "seconds": time.perf_counter() - started}
    # Kept before anybody is told: whoever is killed after this line has lost nothing.
    store.write(key, {**describe(spec), **came_to})
    tune.report({DONE: 1.0})
