"""Courtesy towards each host: few requests at once, its pauses kept, and no waiting for one that does not answer."""

import asyncio
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from weakref import WeakValueDictionary

_UNREACHABLE = frozenset({"connect_failed", "connect_timeout", "dns_try_again", "timeout"})
"""Failures that the next request to the host would meet as well."""

_PAUSE_S = 60.0
"""How long a host that does not answer is left alone, in seconds."""

_LONGEST_PAUSE_S = 600.0
"""The most of a host's own wish for a pause that is kept, in seconds."""

_MOST_REMEMBERED = 10_000
"""Hosts in trouble that are remembered; the oldest are forgotten first."""


@dataclass(eq=False)
class Host:
    """What is known of one host and port."""

    slots: asyncio.Semaphore
    """One for each request it may get at once."""
    failures: int = 0
    """Requests in a row that did not reach it."""
    closed_until: float = 0.0
    """When it may be asked again, by `time.monotonic`."""
    reason: str = field(default="host_down")
    """What its addresses fail with until then."""

    @property
    def pause_s(self) -> float:
        """Seconds until it may be asked again."""
        return max(0.0, self.closed_until - time.monotonic())

    def close(self, seconds: float, reason: str = "host_down") -> None:
        """Leave it alone for a while."""
        self.closed_until = max(self.closed_until, time.monotonic() + seconds)
        self.reason = reason


class Hosts:
    """The hosts in use and those in trouble."""

    def __init__(self, max_per_host: int, max_failures: int) -> None:
        """Set how many requests a host gets at once, and how many may fail in a row before it is left alone."""
        self._max_per_host = max_per_host
        self._max_failures = max_failures
        self._in_use: WeakValueDictionary[tuple[str, int], Host] = WeakValueDictionary()
        self._in_trouble: dict[tuple[str, int], Host] = {}

    def find(self, place: tuple[str, int]) -> Host:
        """Find what is known of a host and port."""
        host = self._in_use.get(place)
        if host is None:
            host = self._in_use[place] = Host(asyncio.Semaphore(self._max_per_host))
        return host

    def note(self, place: tuple[str, int], host: Host, reason: str | None) -> None:
        """Learn how a request ended, None being well."""
        if reason in _UNREACHABLE:
            host.failures += 1
            if host.failures >= self._max_failures:
                host.close(_PAUSE_S)
        elif reason == "dns_failed":
            host.close(_PAUSE_S, reason)
        else:
            host.failures = 0
        if host.failures or host.pause_s:
            self._in_trouble[place] = host
            if len(self._in_trouble) > _MOST_REMEMBERED:
                del self._in_trouble[next(iter(self._in_trouble))]
        else:
            self._in_trouble.pop(place, None)


def retry_after_s(header: str) -> float:
    """Read a ``Retry-After`` header: seconds or a date. What cannot be read asks for nothing."""
    if header.isascii() and header.isdigit():
        return min(float(header[:9]), _LONGEST_PAUSE_S)
    try:
        wanted = parsedate_to_datetime(header).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(wanted, 0.0), _LONGEST_PAUSE_S)
