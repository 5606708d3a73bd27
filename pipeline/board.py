"""Follow work that runs in other processes: workers post how far they are, and what failed; the driver shows it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.progress import Report

POLL_S = 1.0


class Board:
    """The last thing any worker posted; lives in an actor of its own."""

    def __init__(self) -> None:
        """Start with nothing done."""
        self.latest = (0, "")
        self.failed: list[str] = []

    def post(self, done: int, note: str) -> None:
        """Say how far the work is."""
        self.latest = (done, note)

    def read(self) -> tuple[int, str]:
        """Tell the last post."""
        return self.latest

    def fail(self, what: str) -> None:
        """Say that something failed that the work goes on without."""
        self.failed.append(what)

    def failures(self) -> list[str]:
        """Tell all that failed."""
        return self.failed


@contextmanager
def follow(report: Report, total: int) -> Iterator[Any]:
    """Yield a board's actor handle to give to workers (``board.post.remote(done, note)``) and show what they post."""
    # On the driver's own machine: a machine that is lost must not take away what all the others post to.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    stop = threading.Event()

    def tell() -> None:
        done, note = ray.get(board.read.remote())
        report(done, total, note)

    def poll() -> None:
        while not stop.wait(POLL_S):
            tell()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield board
        stop.set()
        thread.join()
        tell()
    finally:
        stop.set()
        ray.kill(board)
