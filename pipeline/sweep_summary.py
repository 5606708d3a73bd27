"""What a sweep came to: means over draws beside the paper's, the rates that won, and what was forgotten."""

import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import yaml

from pipeline.protocol import FOLDER, Protocol, Score, mean
from pipeline.report.inputs import ALL_DATA, ZERO_SHOT, Table, Trial
from pipeline.report.tables import difference, duration, percent, unique
from pipeline.sweep import SweepConfig, choose, lost_groups
from pipeline.sweep_follow import compare
from pipeline.trial import ALL, PROBE

SHOWN = ("dataset", "mode", "shots", "seed", "ap", "ap50", "seconds")
Results = Sequence[Mapping[str, Any]]
"""What trials came to, as `pipeline.sweep.choose` gives them."""


def summarize(results: Results, cfg: SweepConfig, protocol: Protocol | None) -> dict[str, Any]:
    """Put together all that a sweep came to, ready for JSON; with the means of a benchmark if it was one."""
    chosen, lost = choose(results), lost_groups(results)
    broken = {(row["mode"], row["shots"]) for row in lost}  # no mean over what is left of a benchmark
    whole = [result for result in chosen if (result["mode"], result["shots"]) not in broken]
    return {
        "means": benchmark_means(whole, protocol, cfg.trial.prompts) if protocol else [],
        "lost": lost,
        "trials": [{name: result[name] for name in SHOWN} for result in chosen if result["dataset"] != PROBE],
        "rates": best_rates(chosen),
        "forgetting": forgetting(chosen),
        "cost": cost(results, cfg.trial.num_gpus),
    }


def overall(chosen: Results) -> dict[str, float]:
    """Give the means over data sets and draws of AP, points won and points lost on the probe: numbers of the sweep."""
    found: dict[str, list[float]] = {}
    for result in chosen:
        if result["dataset"] != PROBE:
            group = result["mode"] if result["mode"] == ZERO_SHOT else f"{result['mode']} {result['shots']}"
            for name, value in {"ap": result["ap"], **compare(result, chosen)}.items():
                if name != "zero_shot_ap":
                    found.setdefault(f"mean_{name} {group}", []).append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}


def trials(results: Results) -> list[Trial]:
    """Turn what trials came to into rows of the report."""
    rows = (
        {
            **{name: result[name] for name in SHOWN},
            "history": result.get("history", []),
            "averages": averages_of(result, results),
        }
        for result in results
        if result["dataset"] != PROBE
    )
    return [Trial(**{**row, "shots": ALL_DATA if row["shots"] == ALL else row["shots"]}) for row in rows]


def averages_of(result: Mapping[str, Any], results: Results) -> list[dict[str, float]]:
    """Put the untuned and the tuned model at the ends of a trial's averaged weights; empty if there are none."""
    if not result.get("averages"):
        return []
    untuned = {r["dataset"]: r["ap"] for r in results if r["mode"] == ZERO_SHOT}
    ends = [(0.0, untuned.get(result["dataset"]), untuned.get(PROBE)), (1.0, result["ap"], result["probe_ap"])]
    first, last = (
        {name: ap for name, ap in (("tuned_part", part), ("ap", ap), ("probe_ap", probe)) if ap is not None}
        for part, ap, probe in ends
    )
    return [first, *result["averages"], last]


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Lay out what `summarize` found, beside the list of trials that a report has anyway; empty ones are left out."""
    lost = found["forgetting"]
    means = found["means"]
    made = [
        _means_table(means),
        *_cells_tables(means),
        _lost_table(found["lost"]),
        _lost_on_average(lost),
        _forgetting_table(lost),
        _rates_table(found["rates"]),
    ]
    spent = found["cost"]
    cost_table = Table(
        caption="What all trials cost, stopped ones too",
        columns=["Trials' time", "GPU time"],
        rows=[[duration(spent["trial_seconds"]), duration(spent["gpu_seconds"])]],
        num_names=0,
    )
    return [table for table in [*made, cost_table] if table.rows]


def _means_table(means: Sequence[Mapping[str, Any]]) -> Table:
    models = unique(model for row in means for model in row["paper"])
    return Table(
        caption="Mean over the benchmark's data sets ± standard deviation over draws, and what papers report",
        columns=["Tuned", "Shots", "Ours", *models],
        rows=[
            [row["mode"], str(row["shots"]), f"{row['mean']:.1f} ± {row['std']:.1f}"]
            + [percent(row["paper"].get(model)) for model in models]
            for row in means
        ],
        num_names=2,
    )


def _cells_tables(means: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Set every data set beside what papers report of it, a table for each mode and number of shots."""
    return [
        Table(
            caption=f"Data set by data set, {row['mode']}, {row['shots']} shots: mean ± standard deviation over draws",
            columns=["Data set", "Ours", *row["paper_cells"]],
            rows=[
                [name, f"{mean:.1f} ± {std:.1f}"] + [percent(cells[name]) for cells in row["paper_cells"].values()]
                for name, (mean, std) in row["cells"].items()
            ],
            folded=True,
        )
        for row in means
    ]


def _lost_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        caption="No pair of rates was through; the benchmark's mean of that mode and shots is left out",
        columns=["Data set", "Tuned", "Shots", "Seed", "Why"],
        rows=[[*(str(row[name]) for name in ("dataset", "mode", "shots", "seed", "reason"))] for row in rows],
        num_names=5,
    )


def _lost_on_average(rows: Sequence[Mapping[str, Any]]) -> Table:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mode"], str(row["shots"])), []).append(row)
    found = []
    for names, own in groups.items():
        means = [statistics.fmean(row[name] for row in own) for name in ("ap", "probe_before", "probe_after")]
        found.append([*names, *map(percent, means), difference(means[2], means[1])])
    return Table(
        caption="Forgetting, mean over data sets and draws: AP on what was tuned to, and on the probe before and after",
        columns=["Tuned", "Shots", "AP", "Probe", "after", "difference"],
        rows=found,
        num_names=2,
    )


def _forgetting_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    parts = sorted({mixed["tuned_part"] for row in rows for mixed in row["averages"]})
    found = []
    for row in rows:
        mixed = {average["tuned_part"]: average for average in row["averages"]}
        cells = [f"{percent(mixed[p]['ap'])} / {percent(mixed[p]['probe_ap'])}" if p in mixed else "–" for p in parts]
        names = [row["dataset"], row["mode"], str(row["shots"]), str(row["seed"])]
        numbers = [percent(row[name]) for name in ("ap", "probe_before", "probe_after")]
        found.append([*names, *numbers, *cells])
    return Table(
        caption="Forgetting, trial by trial: AP on the data set, on the probe before and after; averaged weights, both",
        columns=["Data set", "Tuned", "Shots", "Seed", "AP", "Probe", "after", *(f"{p:g} tuned" for p in parts)],
        rows=found,
        num_names=4,
        folded=True,
    )


def _rates_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        caption="Rates that did best on the validation split",
        columns=["Data set", "Tuned", "Shots", "Seed", "Rate", "Decay", "Epoch", "Validation AP"],
        rows=[
            [
                *(row["dataset"], row["mode"], str(row["shots"]), str(row["seed"])),
                *(f"{row['lr']:.3g}", f"{row['weight_decay']:.3g}", str(row["best_epoch"]), percent(row["val_ap"])),
            ]
            for row in rows
        ],
        num_names=4,
        folded=True,
    )


def benchmark_means(results: Results, protocol: Protocol, prompts: str) -> list[dict[str, Any]]:
    """Average over the data sets of a benchmark, draw by draw, and set the paper's mean beside ours.

    Args:
        results: of its data sets' test splits.
        protocol: the benchmark.
        prompts: variant they were asked with.

    Returns:
        Per mode and number of shots the ``mean`` over draws of the benchmark's mean, their ``std`` (of the population,
        as the paper's) and ``paper``: what is printed for each model. ``cells`` has mean and deviation of each data
        set, ``paper_cells`` those printed for each model.

    Raises:
        ValueError: they are not the benchmark's: a data set is missing, or prompts or split are others.
    """
    groups: dict[tuple[str, Any], dict[int, list[Score]]] = {}
    for result in results:
        if result["dataset"] != PROBE:
            score = Score(
                dataset=result["dataset"],
                split="test",
                prompts=prompts,
                protocol=protocol.hash,
                value=result["ap"],
            )
            draws = groups.setdefault((result["mode"], result["shots"]), {})
            draws.setdefault(result["seed"], []).append(score)
    rows = []
    for (mode, shots), draws in groups.items():
        means = [mean(scores, protocol) for scores in draws.values()]
        row = {"mode": mode, "shots": shots, "mean": statistics.fmean(means), "std": statistics.pstdev(means)}
        cells = {
            d.name: [s.value for own in draws.values() for s in own if s.dataset == d.name] for d in protocol.datasets
        }
        rows.append(
            {
                **row,
                "paper": paper_means(protocol, mode, shots),
                "cells": {name: (statistics.fmean(aps), statistics.pstdev(aps)) for name, aps in cells.items()},
                "paper_cells": paper_cells(protocol, mode, shots),
            }
        )
    return rows


def paper_means(protocol: Protocol, mode: str, shots: int | str) -> dict[str, float]:
    """Look up what is printed for each model, tuned in the same way."""
    if mode == ZERO_SHOT:
        return {row.model: row.mean for row in protocol.paper if row.mean is not None}
    return {row["model"]: row["mean"] for row in _tuned(protocol.name) if (row["mode"], row["shots"]) == (mode, shots)}


def paper_cells(protocol: Protocol, mode: str, shots: int | str) -> dict[str, dict[str, float]]:
    """Look up what is printed for each model and data set, tuned in the same way."""
    if mode == ZERO_SHOT:
        rows = [(row.model, row.scores) for row in protocol.paper]
    else:
        own = [row for row in _tuned(protocol.name) if (row["mode"], row["shots"]) == (mode, shots)]
        rows = [(row["model"], tuple(row.get("cells", ()))) for row in own]
    names = [dataset.name for dataset in protocol.datasets]
    return {model: dict(zip(names, cells, strict=True)) for model, cells in rows if cells}


def best_rates(results: Results) -> list[dict[str, Any]]:
    """List per data set, mode, shots and draw the rates that did best on the validation split."""
    names = ("dataset", "mode", "shots", "seed", "val_ap", "best_epoch")
    return [
        {**{n: result[n] for n in names}, **{n: result["tuning"][n] for n in ("lr", "weight_decay")}}
        for result in results
        if result["tuning"] is not None
    ]


def forgetting(results: Results) -> list[dict[str, Any]]:
    """Set the probe after tuning beside the untuned model's; empty without a probe."""
    before = next((result["ap"] for result in results if result["dataset"] == PROBE), None)
    if before is None:
        return []
    names = ("dataset", "mode", "shots", "seed", "ap", "averages")
    return [
        {**{n: result[n] for n in names}, "probe_before": before, "probe_after": result["probe_ap"]}
        for result in results
        if result["tuning"] is not None
    ]


def cost(results: Results, num_gpus: float) -> dict[str, float]:
    """Add up the time of all trials, stopped ones too."""
    seconds = sum(float(result.get("seconds", 0.0)) for result in results)
    return {"trial_seconds": seconds, "gpu_seconds": seconds * num_gpus}


@cache
def _tuned(protocol: str) -> list[dict[str, Any]]:
    path = FOLDER / "tuned" / f"{protocol}.yaml"
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["rows"]
    return rows
