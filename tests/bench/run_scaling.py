"""Labelling and training over several single-CPU nodes on this machine, as `processes.run_ours` starts them.

Teacher and training step sleep, so that nodes are what there is more of, not cores.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray.cluster_utils import Cluster

from glipv2.config import nano
from glipv2.optim import OptimConfig
from glipv2.train import backward
from pipeline.download import collecting
from pipeline.ingest import IngestConfig
from pipeline.pretrain import PretrainConfig, TrainingInputs, pretrain
from pipeline.pseudo_label import LabelPlan, PseudoLabelConfig, pseudo_label
from pipeline.row_index import SourceConfig
from pipeline.session import ENVIRONMENT, QUIET, ray_session
from pipeline.storage import Place
from pipeline.tracking import open_run
from pipeline.trainer import train_loop
from tests.bench.labellers import QuickLabeller, Sleeper, read_log
from tests.bench.processes import answer
from tests.bench.run_download import collecting_config, shout

HEAD_CPUS = 4
"""For what reads, collects, chooses and writes; the nodes that are added have one each, and only work that sleeps."""
STORE_BYTES = 256 << 20
HEAD, NODE = "head", "worker"
"""Resources: the collector is kept off the nodes, whose only CPU a teacher or a training waits for."""
SIDE_PX = 64
"""Short side of the pictures that are trained on: the less there is to compute, the more is sleep."""


@contextmanager
def nodes(count: int) -> Iterator[None]:
    """Start a cluster of a head and so many single-CPU nodes, and join it."""
    os.environ.update({**ENVIRONMENT, **QUIET, "RAY_AUTH_MODE": "disabled"})
    head = {
        "num_cpus": HEAD_CPUS,
        "resources": {HEAD: 1},
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
        "temp_dir": tempfile.mkdtemp(prefix="r-"),  # short: paths of sockets are
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=1, resources={NODE: 1}, object_store_memory=STORE_BYTES)
        cluster.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = cluster.address
        with ray_session():
            yield
    finally:
        cluster.shutdown()


def label(pairs: str, out: str, count: int, seconds_per_image: float, block: int) -> dict[str, Any]:
    """Label a list with a sleeping teacher on each node; give the log of all of them."""
    log = Path(f"{out}.log")
    with (
        nodes(count),
        patch("pipeline.pseudo_label.Labeller", QuickLabeller),
        patch("pipeline.pseudo_label.teacher_identity", return_value=(Sleeper.name, Sleeper.sha256)),
    ):
        began = time.time()
        manifest = pseudo_label(
            LabelPlan(
                cfg=PseudoLabelConfig(num_teachers=count, rows_per_block=block, node_resource=NODE),
                teacher=Sleeper.name,
            ),
            collecting(replace(collecting_config([], blocks=(block, 4)), node_resource=HEAD), Place.of(pairs)),
            Place.of(out),
            run_id=f"{log}@{seconds_per_image}",
            on_progress=shout("label"),
        )
        whole = time.time() - began
    return {"labelled": manifest.rows_out, "log": read_log(log), "whole_s": whole}


def train(shards: str, vocabulary: str, out: str, count: int, seconds: float, steps: int) -> dict[str, Any]:
    """Train with a sleeping step on each node; give when each step of the first worker began and all ended."""
    log = Path(f"{out}.log")
    words = Path(vocabulary).read_text(encoding="utf-8").splitlines()
    cfg = PretrainConfig(
        model=replace(nano(len(words)), min_size_px=SIDE_PX, max_size_px=2 * SIDE_PX),
        ingest=IngestConfig(batch_size=count),
        optim=OptimConfig(lr=1e-4),
        num_steps=steps,
        num_workers=count,
        checkpoint_every=steps,
        node_resource=NODE,
    )
    inputs = TrainingInputs(name="scaling", sources=(SourceConfig(path=Path(shards)),), vocabulary=Path(vocabulary))
    with (
        nodes(count),
        open_run(Path(f"{out}-runs"), "scaling", str(count), {}) as run,
        patch("pipeline.pretrain.train_loop", SleepyLoop(log, seconds)),
    ):
        began = time.time()
        record = pretrain(cfg, inputs, Path(out), run)
        whole = time.time() - began
    return {"steps": record.num_steps, "log": read_log(log), "whole_s": whole}


class SleepyLoop:
    """The training loop with a nap in each step, of which the first worker keeps a log."""

    def __init__(self, log: Path, seconds: float) -> None:
        self._log, self._seconds = log, seconds

    def __call__(self, loop: dict[str, Any]) -> None:
        import ray.train

        first = ray.train.get_context().get_world_rank() == 0

        def sleepy(*given: Any, **named: Any) -> dict[str, float]:
            if first:
                with self._log.open("a", encoding="ascii") as stream:
                    stream.write(f"{time.time()} 1\n")
            time.sleep(self._seconds)
            return backward(*given, **named)

        with patch("pipeline.trainer.backward", sleepy):
            train_loop(loop)


if __name__ == "__main__":
    answer(label, train)
