"""Training on a cluster of its own, one of whose nodes goes: ``python -m tests.pipeline.elastic_driver HOW FOLDER``.

``lost``: the node is killed and another comes. ``drained``: it is told that it will be taken away, and then it is.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray

from glipv2.losses.criterion import LossConfig
from glipv2.optim import OptimConfig
from pipeline.ingest import IngestConfig
from pipeline.pretrain import PretrainConfig, pretrain
from pipeline.tracking import open_run
from tests.pipeline.trainings import make_inputs, model

NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}


def plan(num_steps: int) -> PretrainConfig:
    return PretrainConfig(
        model=model(),
        ingest=IngestConfig(batch_size=4),
        optim=OptimConfig(warmup_steps=0),
        losses=LossConfig(inter=1.0),
        num_steps=num_steps,
        num_workers=2,
        min_workers=1,
        checkpoint_every=10,
        log_every=1,
        max_failures=10,
    )


def main(how: str, folder: Path) -> None:
    from ray.cluster_utils import Cluster

    checks = {"initial_delay_ms": 0, "period_ms": 1000, "failure_threshold": 3}
    head = {
        **NODE,
        "num_cpus": 1,
        "temp_dir": tempfile.mkdtemp(prefix="ray-", dir="/tmp"),
        "include_dashboard": False,
        "_system_config": {f"health_check_{name}": value for name, value in checks.items()},
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(**{**NODE, "num_cpus": 1})
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(_train, how, folder)
        _disturb(how, cluster, node, folder)  # in the main thread: only there may a node be added
        steps = training.result()
    (folder / "steps.json").write_text(json.dumps(steps))
    ray.shutdown()
    cluster.shutdown()


def _train(how: str, folder: Path) -> list[int]:
    with open_run(folder, "pretrain", how, {}) as run:
        pretrain(plan(400), make_inputs(folder), folder / "out", run)
        return [int(row["step"]) for row in run.history(("loss",))]


def _disturb(how: str, cluster: Any, node: Any, folder: Path) -> None:
    while not list((folder / "out" / "train").glob("checkpoint_*/model.safetensors")):
        time.sleep(0.1)
    if how == "drained":
        told = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "x",
            "--deadline-remaining-seconds",
            "8",
        ]
        where = ["--address", cluster.address, "--node-id", node.node_id]
        subprocess.run([str(Path(sys.executable).with_name("ray")), "drain-node", *where, *told], check=True)
        time.sleep(8)
    cluster.remove_node(node, allow_graceful=False)
    (folder / "gone").touch()
    cluster.add_node(**{**NODE, "num_cpus": 1})


if __name__ == "__main__":
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    main(sys.argv[1], Path(sys.argv[2]))
