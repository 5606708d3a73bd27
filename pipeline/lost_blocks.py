"""Why Ray Data gave up a block: its process died, or something in it was raised.

Both cost a block its rows (`DataContext.max_errored_blocks`), and Ray Data tells them apart in its log alone. They are
not the same: rows that kill their process are bad rows, rows that could not be read or written have done nothing wrong.
"""

import logging
from types import TracebackType

from ray.exceptions import RayError, RayTaskError

_LOGGER = "ray.data._internal.execution.streaming_executor_state"


class LostBlocks(logging.Handler):
    """Listens, as a context manager, for what was raised in the tasks of a data set."""

    def __init__(self) -> None:
        """Begin with nothing heard."""
        super().__init__(logging.ERROR)
        self.raised: list[str] = []
        """A line for every block that an exception cost."""

    def __enter__(self) -> "LostBlocks":
        """Listen."""
        logging.getLogger(_LOGGER).addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listen no longer."""
        logging.getLogger(_LOGGER).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of an exception; the death of a process, which Ray tells in the same way, is none."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
            self.raised.append(str(error).strip().splitlines()[-1].strip())
