"""One status line per stage: how far it is, how fast, and when it will be done."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

logger = logging.getLogger(__name__)

Report = Callable[[int, int, str], None]
"""Called with rows done, rows in all and a note, on the driver, a few times per second at most."""

_SECONDS_BETWEEN_REPORTS = 0.5


class Progress:
    """A `Report` that shows one line: rewritten in place on a terminal, logged now and then elsewhere."""

    def __init__(self, stage: str, *, unit: str = "rows", every_s: float = 5.0) -> None:
        """Start the clock of a stage; ``every_s`` seconds lie between two logged lines."""
        self._stage, self._unit = stage, unit
        self._every_s = every_s
        self._started = time.monotonic()
        self._logged = self._started
        self._ended = False

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show how far the stage is; the last line (``done == total``) is always shown."""
        if self._ended:
            return
        line = self.line(done, total, note)
        self._ended = done >= total
        now, finished = time.monotonic(), done >= total
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{line}\x1b[K" + "\n" * finished)
            sys.stderr.flush()
        elif finished or now - self._logged >= self._every_s:
            self._logged = now
            logger.info("%s", line)

    def line(self, done: int, total: int, note: str = "") -> str:
        """Write the line: ``download      1200/2000  60%  143.0 rows/s  eta 6s``."""
        if not done:
            self._started = time.monotonic()  # starting processes is no part of the rate that tells the end
        rate = done / max(time.monotonic() - self._started, 1e-9)
        share = done / total if total else 1.0
        eta = _duration((total - done) / rate) if rate else "?"
        return f"{self._stage:<14}{done}/{total}  {share:.0%}  {rate:.1f} {self._unit}/s  eta {eta}  {note}".rstrip()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


@contextmanager
def track_dataset(dataset: ray.data.Dataset, report: Report, total: int) -> Iterator[None]:
    """Report the rows that reach the end of a data set while this block writes or consumes it, and end its actors.

    Reports come from Ray Data's own thread on the driver, the last one (all rows) from here. One data set at a time.

    Ray Data lets go of its actors and trusts that nobody else holds them. The traceback of a block that went down with
    its process does, and where a logger keeps that, the actor keeps its CPUs: the next data set would wait for ever.
    """
    classes = dataset.context.custom_execution_callback_classes
    classes.append(_Watch)
    _Watch.report = report
    _Watch.total = total
    _Watch.actors = set()
    try:
        yield
        report(total, total, "")
    finally:
        _Watch.report = None
        classes.remove(_Watch)
        for actor in _Watch.actors:
            ray.kill(actor)
        _Watch.actors = set()


def quiet_ray_data() -> None:
    """Silence Ray Data's own bars and plans, unless this module logs at DEBUG; call it before making a data set."""
    if logger.isEnabledFor(logging.DEBUG):
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns of the missing bars


class _Watch(ExecutionCallback):
    """Ray Data's hook. Ray makes it from the class alone and ships the class to its workers: so the state is here."""

    report: ClassVar[Report | None] = None
    total: ClassVar[int] = 0
    actors: ClassVar[set[Any]] = set()

    def __init__(self) -> None:
        self._reported = time.monotonic()

    def on_execution_step(self, executor: "StreamingExecutor") -> None:
        """Remember the actors and report, now and then, the rows that have come to the last operator."""
        for operator in executor._topology or ():
            _Watch.actors.update(getattr(getattr(operator, "_actor_pool", None), "_running_actors", ()))
        now = time.monotonic()
        if _Watch.report is None or now - self._reported < _SECONDS_BETWEEN_REPORTS:
            return
        self._reported = now
        try:
            last = list(executor._topology or ())[-1]
            done = last.metrics.num_row_inputs_received
        except (AttributeError, IndexError):  # another Ray: no progress is no reason to stop
            return
        if done < _Watch.total:  # the last report is track_dataset's
            _Watch.report(done, _Watch.total, "")
