"""Writes that work must not wait for: while MLflow's server is away they are kept in memory, in order, and made later.

Labels, checkpoints and trials are safe without MLflow. So a server that is away for an hour costs a training or a sweep
no step: what they have to say goes through here. What only a process that is killed meanwhile knew is lost.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import cache
from queue import SimpleQueue

from pipeline.mlflow_client import AwayError

logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""Longest wait for a write before it counts as late; nobody waits again before the late ones are through."""
PAUSE_S = 2.0
"""Between attempts, beside MLflow's own pauses (``MLFLOW_HTTP_REQUEST_MAX_RETRIES``, about four minutes in all)."""
PATIENCE_S = 600.0
"""Longest wait for late writes where nothing else is left to do."""


class Outbox:
    """Writes to one MLflow store, made one after the other by a thread."""

    def __init__(self) -> None:
        """Make an empty one; the thread comes with the first write."""
        self._queue: SimpleQueue[tuple[Future[None], Callable[[], None]]] = SimpleQueue()
        self._open: deque[Future[None]] = deque()
        self._late = False
        self._thread = threading.Thread(target=self._work, name="mlflow outbox", daemon=True)

    def put(self, write: Callable[[], None]) -> None:
        """Have something written: at once as a rule, after all that waits while the server is away.

        Raises:
            Exception: whatever an earlier or this write was refused with; being late is no refusal.
        """
        future: Future[None] = Future()
        self._open.append(future)
        self._queue.put((future, write))
        if not self._thread.is_alive():
            self._thread.start()
        self.settle(0.0 if self._late else GRACE_S)

    def settle(self, seconds: float) -> int:
        """Wait for what is to be written, so long at most; give the number of writes that are left."""
        wait(list(self._open), seconds)
        while self._open and self._open[0].done():
            self._open.popleft().result()
        if self._open and not self._late:
            logger.warning("MLflow does not answer: work goes on, and what it has to say is written when it is back")
        self._late = bool(self._open)
        return len(self._open)

    def _work(self) -> None:
        while True:
            future, write = self._queue.get()
            try:
                _insist(write)
                future.set_result(None)
            except Exception as error:  # noqa: BLE001 -- handed to whoever waits
                future.set_exception(error)


@cache
def outbox(uri: str) -> Outbox:
    """Give this process's outbox for a store."""
    return Outbox()


def _insist(write: Callable[[], None]) -> None:
    while True:
        try:
            return write()
        except AwayError:
            time.sleep(PAUSE_S)
