"""A driver in a process of its own, for tests that kill it: ``python -m tests.pipeline.engine_driver WHERE CALL``.

``CALL`` is a pickled function without arguments. ``WHERE`` is the address of a running Ray; or ``nodes``: then the
driver brings a cluster of its own, a head and two nodes, and kills a node once shards are committed.
"""

import json
import logging
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from pipeline.ledger import Ledger
from pipeline.storage import Place


def write_call(path: Path, call: Callable[[], object]) -> Path:
    path.write_bytes(pickle.dumps(call))
    return path


def main(where: str, call: Path) -> None:
    if where != "nodes":
        ray.init(address=where, logging_level=logging.ERROR, log_to_driver=False)
        pickle.loads(call.read_bytes())()
        return
    settings = json.loads(call.with_suffix(".json").read_text())
    with _cluster(settings["temp_dir"]) as kill_node:
        out, chance = Place.of(settings["out"]), random.Random(settings["seed"])
        killer = threading.Thread(target=_kill_later, args=(kill_node, out, chance), daemon=True)
        killer.start()
        pickle.loads(call.read_bytes())()
        killer.join()


@contextmanager
def _cluster(temp_dir: str) -> Iterator[Callable[[], None]]:
    from ray.cluster_utils import Cluster

    checks = {"initial_delay_ms": 0, "period_ms": 1000, "failure_threshold": 3}
    head = {
        "temp_dir": temp_dir,
        "num_cpus": 2,
        "include_dashboard": False,
        "object_store_memory": 100 << 20,
        "_system_config": {f"health_check_{name}": value for name, value in checks.items()},
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=100 << 20) for _ in range(2)]
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)

    def kill() -> None:
        cluster.remove_node(nodes[0], allow_graceful=False)
        (Path(temp_dir) / "killed").touch()

    try:
        yield kill
    finally:
        ray.shutdown()
        cluster.shutdown()


def _kill_later(kill: Callable[[], None], out: Place, chance: random.Random) -> None:
    done = Ledger(out).done
    while len(done.files(".parquet")) < 2:
        time.sleep(0.05)
    time.sleep(chance.uniform(0, 1))
    kill()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
