"""Speed as ratios, measured in one run: ``make bench``. An hour and a half on two quiet cores; a GPU, if any, too.

``--only`` names the sections to run (all by default). The model's take ten minutes together, ``download`` most of the
rest. ``--out`` is where the numbers go: ``bench.json``, an MLflow run, and ``rates.yaml`` for ``jobs.plan``.
"""

import argparse
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from pipeline.shards import config_hash
from pipeline.tracking import open_run
from tests.bench.deform import compare_deform_conv
from tests.bench.download import SETTINGS, DownloadBench, compare_downloads
from tests.bench.engine_memory import MemoryBench, compare_backpressure, compare_engine_memory
from tests.bench.gpu import measure_gpu
from tests.bench.labelling import LabelBench, compare_labelling
from tests.bench.lvis import compare_lvis
from tests.bench.rates import write_rates
from tests.bench.scaling import ScalingBench, compare_scaling
from tests.bench.simulation import SimulationBench, simulate, simulate_parts
from tests.bench.sweep import SweepBench, compare_sweeps
from tests.bench.timing import Results
from tests.bench.training import (
    TrainingBench,
    ablate_quickly,
    compare_training_memory,
    compare_workers,
    measure_gpu_training,
)
from tests.bench.tuning import compare_tuning
from tests.bench.whole_model import (
    compare_memory,
    compare_training,
    compare_with_grounding_dino,
    compare_with_reference_way,
    make_model,
)

Sections = dict[str, Callable[[], None]]


def main() -> None:
    """Run every comparison asked for."""
    given = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended too
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    results = Results()
    sections = {**_model_sections(given, results), **_engine_sections(given, results)}
    if unknown := set(given.only) - set(sections):
        raise SystemExit(f"--only names {sorted(unknown)}; give some of {list(sections)}")
    config = {name: value for name, value in vars(given).items() if name != "out"} | {"torch": torch.__version__}
    with open_run(given.out, "bench", config_hash(config), config) as run:
        for name, section in sections.items():
            if not given.only or name in given.only:
                section()
                results.write(given.out / "bench.json")  # the next one may fail, or be ended
                write_rates(results.numbers, given.out / "rates.yaml")
        run.metrics(results.numbers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of bench.json, the MLflow store and scratch files, absolute")
    add("--only", nargs="+", default=[], metavar="NAME", help="sections to run")
    add("--prompts", type=int, default=3, help="prompts the long vocabulary is measured on; 31 is all of it")
    add(
        "--lvis-px",
        type=int,
        default=400,
        help="short side of the picture asked for LVIS's names; 800 takes four times as long",
    )
    add("--repeats", type=int, default=3, help="repeats of the whole models' forward pass")
    add("--threads", type=int, default=2, help="CPU threads of the models measured alone")
    add("--rounds", type=int, default=2, help="runs of each side, in turns, of download and labelling")
    add("--rows", type=int, default=20_000, help="addresses of download")
    add("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS, help="servers of download")
    add("--num-actors", type=int, default=1, help="our actors that download")
    add("--decoders", type=int, default=2, help="decoding processes of each")
    add("--blocks", type=int, nargs=2, default=(500, 4), help="rows of a block, and blocks at once of each")
    add("--label-rows", type=int, default=1000, help="pictures of labelling; ten times as many on a GPU")
    add("--teacher-px", type=int, default=LabelBench.teacher_px, help="short side in the nano teacher: its compute")
    add("--teacher-threads", type=int, default=1, help="CPU threads of the teacher")
    add("--sizes", type=int, nargs="+", default=MemoryBench.sizes, help="rows of engine_memory, rising")
    add("--pressed", type=int, nargs="+", default=MemoryBench.pressed, help="rows of backpressure, rising")
    add("--simulated", type=int, nargs="+", default=SimulationBench.sizes, help="rows of simulation, rising")
    add("--nodes", type=int, nargs="+", default=ScalingBench.nodes, help="nodes of weak_scaling, rising")
    add("--timeout-s", type=float, default=1200.0, help="longest that one process of the engine's sections may take")
    return parser


def _model_sections(given: argparse.Namespace, results: Results) -> Sections:
    model = cache(make_model)
    return {
        "deform": lambda: compare_deform_conv(results),
        "grounding_dino": lambda: compare_with_grounding_dino(model(), results, given.repeats),
        "reference_way": lambda: compare_with_reference_way(model(), results, given.prompts),
        "lvis": lambda: compare_lvis(results, given.lvis_px),
        "training": lambda: compare_training(model(), results),
        "tuning": lambda: compare_tuning(model(), results, given.repeats),
        "memory": lambda: compare_memory(results),
        "gpu": lambda: measure_gpu(model(), results, torch.device("cuda")) if torch.cuda.is_available() else None,
    }


def _engine_sections(given: argparse.Namespace, results: Results) -> Sections:
    common = {"out": given.out, "timeout_s": given.timeout_s}
    download = DownloadBench(
        **common,
        rows=given.rows,
        rounds=given.rounds,
        settings=given.settings,
        num_actors=given.num_actors,
        decoders=given.decoders,
        blocks=tuple(given.blocks),
    )
    labelling = LabelBench(
        **common,
        rows=given.label_rows,
        rounds=given.rounds,
        teacher_px=given.teacher_px,
        threads=given.teacher_threads,
    )
    memory = MemoryBench(**common, sizes=given.sizes, pressed=given.pressed)
    training = TrainingBench(**common)
    simulation = SimulationBench(**common, sizes=given.simulated)
    return {
        "download": lambda: compare_downloads(results, download),
        "labelling": lambda: compare_labelling(results, labelling),
        "engine_memory": lambda: compare_engine_memory(results, memory),
        "backpressure": lambda: compare_backpressure(results, memory),
        "simulation": lambda: simulate(results, simulation),
        "simulation_parts": lambda: simulate_parts(results, simulation),
        "weak_scaling": lambda: compare_scaling(results, ScalingBench(**common, nodes=given.nodes)),
        "training_workers": lambda: compare_workers(results, training),
        "training_memory": lambda: compare_training_memory(results, training),
        "training_gpu": lambda: measure_gpu_training(results, training) if torch.cuda.is_available() else None,
        "sweep": lambda: compare_sweeps(results, SweepBench(**common)),
        "ablation": lambda: ablate_quickly(results, training),
    }


if __name__ == "__main__":
    main()
