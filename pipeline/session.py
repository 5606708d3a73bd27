"""Ray as a job needs it: joined where there is a cluster, started quietly where there is none."""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Reading parquet otherwise starts 32 actors for the footers of a handful of files.
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # img2dataset imports both; neither may look on the network for news of itself.
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "disabled",
}
QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
MIN_LOGICAL_CPUS = 6
"""A local Ray is given at least this many: actor pools must never hold the core their own reader waits for."""
OBJECT_STORE_BYTES = 1 << 30


@contextmanager
def ray_session(*, verbose: bool = False) -> Iterator[None]:
    """Run a block with Ray: the cluster of ``RAY_ADDRESS`` (set inside submitted jobs), else one of its own."""
    for name, value in {**ENVIRONMENT, **({} if verbose else QUIET)}.items():
        os.environ.setdefault(name, value)
    on_cluster = "RAY_ADDRESS" in os.environ
    if not on_cluster:
        # Ray would otherwise switch tokens on and write one into the home directory.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    level = logging.INFO if verbose else logging.ERROR
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
    if not on_cluster:
        options |= {
            "address": "local",
            "num_cpus": max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    with contextlib.nullcontext() if verbose else _without_native_stderr():
        ray.init(**options)
    if not verbose:
        for name in ("ray", "ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _without_native_stderr() -> Iterator[None]:
    """Keep Ray's C++ part from announcing that it was told to be quiet; errors still come as exceptions."""
    saved = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
