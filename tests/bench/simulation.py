"""What a run of many rows costs beside its images and its teacher: memory of the driver, checkpoint, resume, audit.

Rows with tiny pictures go to a teacher that does nothing, through the real engine. Then the parts that only the number
of rows decides are tried alone, at a number that no run here reaches. What is beyond the sizes run is an extrapolation
along a line through the last two, and called so.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.shards import MANIFEST_NAME
from pipeline.sources.pairs_file import Pair, write_pairs
from tests.bench.labelling import CAPTIONS
from tests.bench.processes import Spent, run_ours, scratch
from tests.bench.timing import Results

MILLION = 1_000_000
MIB = 1 << 20
NUM_HOSTS = 997


@dataclass(frozen=True, kw_only=True)
class SimulationBench:
    """How much is simulated."""

    out: Path
    sizes: Sequence[int] = (100_000, MILLION)
    """Rows of the runs, rising."""
    block: int = 1000
    """Rows of a block and a shard, as the recipe for a cluster has them."""
    aim: int = 10 * MILLION
    """Rows that the parts are tried at alone, and that runs are extrapolated to."""
    timeout_s: float = 1200.0
    """Of one run."""


def simulate(results: Results, bench: SimulationBench) -> None:
    """Run the engine at rising sizes, go on with each run as if it had been killed, and draw the line."""
    found: list[dict[str, float]] = []
    for rows in bench.sizes:
        print(f"simulation: {rows} rows, tiny pictures, a teacher that does nothing, {bench.block} rows a block")
        with scratch(bench.out) as folder:
            found.append(_one_size(results, bench, folder, rows))
    if len(found) > 1:
        _extrapolate(results, bench, found[-2:])


def _one_size(results: Results, bench: SimulationBench, folder: Path, rows: int) -> dict[str, float]:
    pairs = (Pair(f"http://h{i % NUM_HOSTS}.example.org/{i}.jpg", CAPTIONS[i % len(CAPTIONS)]) for i in range(rows))
    write_pairs(pairs, folder / "pairs.parquet")
    given = {"pairs": str(folder / "pairs.parquet"), "out": str(folder / "out"), "block": bench.block}
    first = run_ours("run_simulation.simulate", {**given, "number": 0}, bench.timeout_s, memory=True)
    size = _bytes_of(folder)
    _undo_one_commit(folder / "out")
    again = run_ours("run_simulation.simulate", {**given, "number": 1}, bench.timeout_s, memory=True)
    if not first.answer["rows"] == again.answer["rows"] == rows:
        raise AssertionError(f"{rows} rows went in, {first.answer['rows']} and {again.answer['rows']} came out")
    told = {**_first(first, rows), **_resumed(again), **size}
    for name, (value, text, unit) in told.items():
        results.say(f"simulation.{rows}.{name}", value, text, unit)
    _say_growth(results, first, rows)
    return {"rows": float(rows), **{name: value for name, (value, _, _) in told.items()}}


Told = dict[str, tuple[float, str, str]]


def _first(spent: Spent, rows: int) -> Told:
    log = spent.answer["log"]
    whole = log[-1][0] - log[0][0]
    return {
        "rows_per_s": (rows / max(whole, 1e-9), "rows per second, first to last block", " /s"),
        "cpu_ms": (1000 * spent.cpu / rows, "CPU per row, start-up included", " ms"),
        "peak_mib": (spent.peak_bytes / MIB, "peak memory of all processes", " MiB"),
        "driver_mib": (spent.peak_root_bytes / MIB, "  of it the driver", " MiB"),
        "audit_s": (_seconds(spent, "take_account"), "audit", " s"),
        "manifest_s": (_seconds(spent, "write_manifest"), "manifest", " s"),
    }


def _resumed(spent: Spent) -> Told:
    log, phases = spent.answer["log"], spent.answer["phases"]
    began = phases["_write_round"][0][0]
    return {
        "resume_reconcile_s": (
            _seconds(spent, "reconcile"),
            "resume: read the ids of committed rows, make them one",
            " s",
        ),
        "resume_first_s": (
            log[0][0] - began,
            "resume: until the first row that is left, start of processes included",
            " s",
        ),
        "resume_round_s": (
            _seconds(spent, "_write_round"),
            "resume: until the last row, all of the list passed by",
            " s",
        ),
        "resume_audit_s": (_seconds(spent, "take_account"), "resume: audit", " s"),
        "resume_driver_mib": (spent.peak_root_bytes / MIB, "resume: the driver", " MiB"),
    }


def _seconds(spent: Spent, phase: str) -> float:
    return sum(end - began for began, end in spent.answer["phases"].get(phase, ()))


def _bytes_of(folder: Path) -> Told:
    def size(path: Path) -> int:
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    files = sum(1 for _ in (folder / "out").rglob("*.parquet"))
    return {
        "shards": (float(files), "shards", ""),
        "labels_mb": (size(folder / "out") / 1e6, "labels on disk, pictures of 75 bytes included", " MB"),
        "checkpoint_mb": (size(folder / "out.ledger" / "done") / 1e6, "row checkpoint on disk", " MB"),
        "manifest_mb": ((folder / "out" / MANIFEST_NAME).stat().st_size / 1e6, "manifest", " MB"),
    }


def _undo_one_commit(out: Path) -> None:
    """Leave what a run leaves that was killed before its last block: no manifest, one shard and its ids fewer."""
    (out / MANIFEST_NAME).unlink()
    last = max((out.parent / f"{out.name}.ledger" / "done").glob("*.parquet"))
    [shard] = out.rglob(f"{last.stem}*.parquet")
    if pq.read_metadata(last).num_rows != pq.read_metadata(shard).num_rows:
        raise AssertionError(f"{last} and {shard} are not of the same rows")
    last.unlink()
    shard.unlink()


def _say_growth(results: Results, spent: Spent, rows: int) -> None:
    """Tell which processes grow while rows flow: from the second quarter, as pools are filled in the first."""
    log = spent.answer["log"]
    begin, end = log[0][0], log[-1][0]
    quarters: list[list[dict[str, int]]] = [
        [_grouped(kinds) for moment, kinds in spent.kinds if low <= (moment - begin) / max(end - begin, 1e-9) < high]
        for low, high in ((0.25, 0.5), (0.75, 1.0))
    ]
    if not all(quarters):
        return  # over in no time
    for group in ("driver", "gcs_server", "raylet", "ray::_StatsActor", "workers", "other"):
        early, late = (statistics.median(groups.get(group, 0) for groups in quarter) for quarter in quarters)
        name = group.removeprefix("ray::")
        results.say(
            f"simulation.{rows}.{name}_mib", late / MIB, f"{group}, in the last quarter of the labelling", " MiB"
        )
        growth = (late - early) / (rows / 2)
        results.say(f"simulation.{rows}.{name}_bytes_per_row", growth, "  more than in the second, per row", " B")


def _grouped(kinds: dict[str, int]) -> dict[str, int]:
    """Add up workers, whatever they do, and what else there is beside Ray's own."""
    found: dict[str, int] = {}
    for kind, size in kinds.items():
        plain = kind.partition(".")[0]  # an actor's name goes on with what it does at the moment
        known = plain in ("driver", "gcs_server", "raylet", "ray::_StatsActor")
        group = plain if known else "workers" if kind.startswith("ray::") else "other"
        found[group] = found.get(group, 0) + size
    return found


def _extrapolate(results: Results, bench: SimulationBench, runs: Sequence[dict[str, float]]) -> None:
    few, many = runs
    print(f"  extrapolated to {bench.aim} rows, along the line from {few['rows']:.0f} to {many['rows']:.0f}:")
    for name, unit in (
        ("driver_mib", " MiB"),
        ("peak_mib", " MiB"),
        ("audit_s", " s"),
        ("resume_reconcile_s", " s"),
        ("resume_round_s", " s"),
        ("resume_driver_mib", " MiB"),
        ("checkpoint_mb", " MB"),
        ("manifest_mb", " MB"),
    ):
        slope = (many[name] - few[name]) / (many["rows"] - few["rows"])
        results.say(f"simulation.slope.{name}", slope * MILLION, f"{name}, per million rows", unit)
        at_aim = many[name] + slope * (bench.aim - many["rows"])
        results.say(f"simulation.extrapolated.{name}", at_aim, f"  at {bench.aim} rows, extrapolated", unit)


def simulate_parts(results: Results, bench: SimulationBench) -> None:
    """Try alone, at the number of rows aimed at, what grows with it on one machine."""
    print(f"parts alone at {bench.aim} rows, {bench.block} a shard")
    with scratch(bench.out) as folder:
        given: dict[str, Any] = {"folder": str(folder), "rows": bench.aim, "block": bench.block}
        found = run_ours("run_simulation_parts.try_parts", given, bench.timeout_s).answer
    per_row = found["id_bytes"] / bench.aim
    results.say(
        "simulation.parts.id_bytes_per_row", per_row, "ids of committed rows in the object store, per row", " B"
    )
    results.say(
        "simulation.parts.audited_per_cpu_s", found["audited_per_cpu_s"], "rows of 70 kB audited by one CPU", " /s"
    )
    for name, (seconds, held) in found["parts"].items():
        results.say(f"simulation.parts.{name}_s", seconds, name.replace("_", " "), " s")
        results.say(f"simulation.parts.{name}_mib", held / MIB, "  memory on top", " MiB")
