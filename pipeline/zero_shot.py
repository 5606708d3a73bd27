"""Zero-shot scores on the miniature world: one number per column of the paper's tables, base and novel nouns apart.

What is measured, and how, say the protocols ``miniature`` and ``miniature-odinw``; ``jobs.evaluate`` gives the same
numbers, on a cluster. Here all of it happens in this process.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from glipv2.checkpoint import weights_sha256
from pipeline import schema
from pipeline.benchmark_scores import Result, judge, mean_of
from pipeline.benchmark_truth import Truth, asked_rows, read_truth
from pipeline.benchmark_worker import ASKED, Asker, Plan, RunConfig
from pipeline.miniature.world import World
from pipeline.protocol import Protocol, read_protocol

COLUMNS = {
    "coco": "COCO-like AP",
    "odinw": "ODinW-like AP",
    "lvis": "LVIS-like fixed AP",
    "flickr30k": "Flickr30k-like R@1",
    "base": "base nouns AP50",
    "novel": "novel nouns AP50",
}
"""What is measured, in percent: the paper's four columns, then the test set that holds base and novel nouns apart."""


def zero_shot(model: Path, world: World, *, threads: int = 1) -> dict[str, float]:
    """Measure a model on the world's benchmarks, in percent, by the names of `COLUMNS`."""
    columns, sets = read_protocol("miniature"), read_protocol("miniature-odinw")
    cfg = RunConfig(threads=threads)
    found = {result.dataset: result for result in _measure(model, columns, world, cfg)}
    novel = found["novel"].metrics["coco-bbox"]
    return {
        "coco": found["coco"].value,
        "odinw": mean_of(_measure(model, sets, world, cfg), sets) or 0.0,
        "lvis": found["lvis"].value,
        "flickr30k": found["flickr30k"].value,
        "base": 100 * max(0.0, novel["AP50_base"]),
        "novel": 100 * max(0.0, novel["AP50_novel"]),
    }


def _measure(model: Path, protocol: Protocol, world: World, cfg: RunConfig) -> list[Result]:
    truths = [read_truth(dataset, world.root) for dataset in protocol.datasets]
    plans = {t.dataset.name: Plan(dataset=t.dataset, names=t.names, prompts=protocol.prompts) for t in truths}
    asker = Asker(cfg, str(model), weights_sha256(model), plans)
    with TemporaryDirectory() as folder:
        return [judge(truth, _ask(asker, truth, cfg.rows_per_block), Path(folder), protocol) for truth in truths]


def _ask(asker: Asker, truth: Truth, rows_per_block: int) -> pa.Table:
    rows = [{"key": key, **row} for key, row in enumerate(asked_rows(truth))]
    blocks = [rows[first : first + rows_per_block] for first in range(0, len(rows), rows_per_block)]
    return pa.concat_tables([asker(schema.to_table(block, ASKED)) for block in blocks])
