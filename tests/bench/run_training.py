"""One worker of a training whose steps are taken apart, as `processes.run_ours` starts it: no Ray, the same trainee."""

import os
import statistics
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from glipv2.config import glip_t, nano
from glipv2.optim import OptimConfig
from glipv2.sample import NOT_PREDICTED, Batch
from glipv2.train import update
from pipeline import schema
from pipeline.ingest import IngestConfig
from pipeline.paths import NOT_GIVEN
from pipeline.pretrain import PretrainConfig, TrainingInputs
from pipeline.row_index import SourceConfig
from pipeline.sources.store import store_source
from pipeline.trainer import Trainee
from tests.bench.loopback_server import make_pictures
from tests.bench.processes import answer

WIDTH, HEIGHT = 500, 400
NAMES = ("dog", "boat", "house", "person", "umbrella", "bag", "coat", "beach")
MOST_STEPS = 1000
WARM_STEPS = 3
LOADERS = 4
PARTS = ("data", "forward", "backward", "all_reduce", "update")


def write_shards(folder: Path, rows: int) -> None:
    """Write pictures of a usual size with three boxes each."""
    pictures = make_pictures(min(rows, 32), WIDTH, HEIGHT, 60_000)
    store_source(
        (
            {
                "sample_id": f"bench/train/{number}",
                "source": "bench",
                "split": "train",
                "kind": schema.DETECTION,
                "image": {"bytes": pictures[number % len(pictures)], "path": None},
                "boxes": [[20.0, 30.0, 200.0, 240.0], [150.0, 60.0, 320.0, 380.0], [300.0, 200.0, 480.0, 390.0]],
                "category_id": [1 + (number + i) % len(NAMES) for i in range(3)],
                "score": [1.0, 1.0, 1.0],
                "iscrowd": [False, False, False],
                "status": schema.LABELLED,
                "schema_version": schema.SCHEMA_VERSION,
            }
            for number in range(rows)
        ),
        folder,
        name="bench",
        inputs={},
        categories=dict(enumerate(NAMES, start=1)),
    )


def work(size: str, shards: str, vocabulary: str, batch: int, steps: int, place: list[int]) -> dict[str, Any]:
    """Train for some steps; give the median seconds of each part, and images per second of all workers.

    What workers tell each other while they compute is not seen by a clock. So every other step's gradients stay where
    they are: what the others take longer is the all-reduce that computing did not hide.
    """
    rank, world = place
    if world > 1:
        store = Path(shards).parent / f"store-{size}-{world}"
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    trainee = _trainee(size, (shards, vocabulary), batch * world, (rank, world))
    batches = iter(trainee.loader())
    rows = [_step(trainee, batches, alone=world > 1 and number % 2 == 0) for number in range(2 * steps)][2:]
    apart, together = rows[0::2], rows[1::2]
    found = {name: statistics.median(row[name] for row in together) for name in ("data", "forward", "update")}
    local, synced = (statistics.median(row["backward"] for row in given) for given in (apart, together))
    if world == 1:
        local = synced = statistics.median(row["backward"] for row in rows)
    found |= {"backward": local, "all_reduce": max(0.0, synced - local)}
    whole = statistics.median(sum(row.values()) for row in (rows if world == 1 else together))
    return {**found, "images_per_s": batch * world / whole}


def account(
    size: str, paths: tuple[str, str], batch: int, steps: int, device: str, recompute: bool
) -> dict[str, float]:
    """Train for some steps as a worker does; give the medians of its account of them, nothing if memory does not do."""
    try:
        trainee = _trainee(size, paths, batch, (0, 1), recompute=recompute, device=device)
        rows = list(islice(trainee.train(), WARM_STEPS + steps))[WARM_STEPS:]
    except torch.cuda.OutOfMemoryError:
        return {}
    told = ("images_per_s", "data_wait", "memory_gb", "tflops", "mfu")
    return {name: statistics.median(row[name] for row in rows) for name in told if name in rows[0]}


def _trainee(
    size: str,
    paths: tuple[str, str],
    batch: int,
    place: tuple[int, int],
    *,
    recompute: bool = False,
    device: str = "cpu",
) -> Trainee:
    shards, vocabulary = paths
    words = Path(vocabulary).read_text(encoding="utf-8").splitlines()
    on_gpu = device != "cpu"
    whole = glip_t() if on_gpu else replace(glip_t(), min_size_px=400, max_size_px=666)
    model = nano(len(words)) if size == "nano" else whole
    cfg = PretrainConfig(
        model=replace(model, vocab_size=len(words)),
        ingest=IngestConfig(batch_size=batch),
        optim=OptimConfig(lr=1e-4),
        num_steps=MOST_STEPS,
        num_workers=place[1],
        recompute=recompute,
        bf16=on_gpu,
        loader_processes=LOADERS if on_gpu else 0,
    )
    inputs = TrainingInputs(
        name=size, sources=(SourceConfig(path=Path(shards)),), vocabulary=Path(vocabulary), init=NOT_GIVEN
    )
    with (
        patch("pipeline.trainer.get_device", lambda: torch.device(device)),
        patch("ray.train.get_checkpoint", lambda: None),
    ):
        return Trainee(cfg, inputs, place)


def _step(trainee: Trainee, batches: Any, *, alone: bool) -> dict[str, float]:
    marks = [time.perf_counter()]
    batch: Batch = next(batches)
    marks.append(time.perf_counter())
    parallel = trainee.parallel
    quiet = parallel.no_sync() if alone and isinstance(parallel, DistributedDataParallel) else nullcontext()
    with quiet:
        outputs = parallel(batch.pixels, batch.ids, batch.mask, batch.masked_words != NOT_PREDICTED)
        loss = torch.stack(list(trainee.criterion(outputs, batch).values())).sum()
        marks.append(time.perf_counter())
        loss.backward()
    marks.append(time.perf_counter())
    update(trainee.model.parameters(), trainee.optimizer, trainee.cfg.optim.clip_norm)
    marks.append(time.perf_counter())
    spent = [after - before for before, after in pairwise(marks)]
    return dict(zip(("data", "forward", "backward", "update"), spent, strict=True))


def remember(shards: str, vocabulary: str, batch: int, recompute: bool) -> dict[str, float]:
    """Train GLIP-T for two steps and give the most memory this process ever held, in GiB."""
    trainee = _trainee("t", (shards, vocabulary), batch, (0, 1), recompute=recompute)
    batches = iter(trainee.loader())
    for _ in range(2):
        _step(trainee, batches, alone=False)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return {"peak_gib": int(status.split("VmHWM:")[1].split()[0]) / 2**20}


if __name__ == "__main__":
    answer(work, account, remember)
    os._exit(0)  # threads of gloo may keep an interpreter from ending
