"""Weak scaling: as many times the nodes, as many times the work; 1 means that each node does as much as one alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.sources.pairs_file import Pair, write_pairs
from tests.bench.labelling import CAPTIONS, store
from tests.bench.loopback_server import make_pictures
from tests.bench.processes import run_ours, scratch
from tests.bench.timing import Results
from tests.bench.training import prepare

WARM_STEPS = 3
"""Steps of a training that do not count: the first ones make what later ones use."""


@dataclass(frozen=True, kw_only=True)
class ScalingBench:
    """How many nodes, and how much each does."""

    out: Path
    nodes: Sequence[int] = (1, 2, 4)
    """Single-CPU nodes, rising."""
    rows: int = 400
    """Rows of each node."""
    seconds_per_image: float = 0.1
    """What a teacher sleeps; four of them label 40 rows/s, of which two cores feel little."""
    block: int = 8
    """Rows of a block: small, as a node waits at the end for the last block of another."""
    steps: int = 16
    """Steps of training, an image for each node in each."""
    seconds_per_step: float = 4.0
    """What a step sleeps: so long that what it computes, 0.2 CPU seconds a node, is not what two cores run out of."""
    timeout_s: float = 600.0
    """Of one run."""


def compare_scaling(results: Results, bench: ScalingBench) -> None:
    """Label and train with sleeping work on more and more nodes."""
    print(f"weak scaling over {', '.join(map(str, bench.nodes))} single-CPU nodes of this machine; the work sleeps")
    with scratch(bench.out) as folder:
        _compare(results, "labelling", bench, lambda count: _label(bench, folder, count))
    with scratch(bench.out) as folder:
        given = prepare(folder, 128)
        _compare(results, "training", bench, lambda count: _train(bench, folder, given, count))


def _compare(results: Results, what: str, bench: ScalingBench, measure: Callable[[int], tuple[float, float]]) -> None:
    """Tell rates and efficiencies; a measure gives units per second without and with the start of processes."""
    alone: dict[str, float] = {}
    for count in bench.nodes:
        steady, whole = measure(count)
        for name, rate, text in (
            ("steady", steady, "start-up left out"),
            ("whole", whole, "start-up and end included"),
        ):
            alone.setdefault(name, rate / count)
            own = f"weak_scaling.{what}.{count}"
            results.say(f"{own}.{name}_per_s", rate, f"{what}, {count} nodes, {text}", " /s")
            results.say(f"{own}.{name}_efficiency", rate / count / alone[name], "  efficiency")


def _label(bench: ScalingBench, folder: Path, count: int) -> tuple[float, float]:
    rows = bench.rows * count
    locators = store(folder / "pictures.parquet", make_pictures(50, 64, 48, 1500), rows)
    captions = (CAPTIONS[i % len(CAPTIONS)] for i in range(rows))
    pairs = (Pair(None, caption, locator) for caption, locator in zip(captions, locators, strict=True))
    write_pairs(pairs, folder / "pairs.parquet")
    given: dict[str, Any] = {
        "pairs": str(folder / "pairs.parquet"),
        "out": str(folder / f"out-{count}"),
        "count": count,
    }
    given |= {"seconds_per_image": bench.seconds_per_image, "block": bench.block}
    found = run_ours("run_scaling.label", given, bench.timeout_s).answer
    if found["labelled"] != rows:
        raise AssertionError(f"{found['labelled']} of {rows} rows have labels")
    ends = sorted(moment for moment, done in found["log"] if done)
    began = ends[0] - bench.block * bench.seconds_per_image
    return rows / (ends[-1] - began), rows / found["whole_s"]


def _train(bench: ScalingBench, folder: Path, given: dict[str, Any], count: int) -> tuple[float, float]:
    work = {**given, "out": str(folder / f"out-{count}"), "count": count}
    work |= {"seconds": bench.seconds_per_step, "steps": bench.steps}
    found = run_ours("run_scaling.train", work, bench.timeout_s).answer
    began = [moment for moment, _ in found["log"]]
    if len(began) != bench.steps:
        raise AssertionError(f"{len(began)} steps were begun, not {bench.steps}")
    steady = (bench.steps - 1 - WARM_STEPS) / (began[-1] - began[WARM_STEPS])
    return count * steady, count * bench.steps / found["whole_s"]
