"""Speed as ratios, measured in one run: ``make bench``. Ten minutes on two quiet cores; a GPU, if any, too.

``--prompts`` says on how many prompts the long vocabulary is measured (31 is all of it), ``--out`` where the numbers
go: ``bench.json`` and an MLflow run.
"""

import argparse
from pathlib import Path

import torch

from pipeline.shards import config_hash
from pipeline.tracking import open_run
from tests.bench.deform import compare_deform_conv
from tests.bench.gpu import measure_gpu
from tests.bench.timing import Results
from tests.bench.whole_model import (
    compare_memory,
    compare_training,
    compare_with_grounding_dino,
    compare_with_reference_way,
    make_model,
)


def main() -> None:
    """Run every comparison."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of bench.json and the MLflow store, absolute")
    parser.add_argument("--prompts", type=int, default=3, help="prompts the long vocabulary is measured on")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the whole models' forward pass")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = {"prompts": given.prompts, "repeats": given.repeats, "threads": given.threads, "torch": torch.__version__}
    results = Results()
    with open_run(given.out, "bench", config_hash(config), config) as run:
        compare_deform_conv(results)
        model = make_model()
        compare_with_grounding_dino(model, results, given.repeats)
        compare_with_reference_way(model, results, given.prompts)
        compare_training(model, results)
        compare_memory(results)
        if torch.cuda.is_available():
            measure_gpu(model, results, torch.device("cuda"))
        run.metrics(results.numbers)
    results.write(given.out / "bench.json")


if __name__ == "__main__":
    main()
