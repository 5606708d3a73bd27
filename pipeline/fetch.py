"""Fetch the bytes behind many addresses at once, politely and within limits.

img2dataset's own fetch is not used: it builds a TLS context per request (38.7 CPU-ms per https image against about 1
with a pooled client), and it has neither a deadline, since its timeout is per socket operation, nor a size limit. Its
rule for opt-out headers is used as it is.
"""

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from pipeline.img2dataset_parts import opted_out

_HOST = re.compile(r"[\w.:-]+", re.ASCII)
"""Host names (IDNA-encoded) and addresses; what else a URL parser lets through, no resolver takes."""

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.TooManyRedirects, "too_many_redirects"),
    (aiohttp.NonHttpUrlClientError, "bad_scheme"),
    (aiohttp.InvalidURL, "bad_url"),
    (UnicodeError, "bad_url"),  # a host name that the resolver cannot encode
    (aiohttp.ClientConnectorDNSError, "dns_failed"),
    (aiohttp.ClientSSLError, "tls_failed"),
    (aiohttp.ClientConnectorError, "connect_failed"),
    (aiohttp.ConnectionTimeoutError, "connect_timeout"),
    (TimeoutError, "timeout"),
    (aiohttp.ClientConnectionError, "disconnected"),
    (aiohttp.ClientError, "bad_response"),
)
"""What a failed request is called; the first type that fits."""


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Limits of every request."""

    timeout_s: float = 20.0
    """Deadline of a request with all its redirects, in seconds; waiting for a free place does not count."""
    connect_timeout_s: float = 5.0
    """Longest wait for one connection, in seconds."""
    idle_timeout_s: float = 10.0
    """Longest silence of a server, in seconds."""
    max_bytes: int = 20 << 20
    """Largest body, in bytes after decompression."""
    max_redirects: int = 5
    """Redirects followed before giving up."""
    window: int = 64
    """Requests in flight per block of rows; bodies waiting to be decoded count."""
    max_per_host: int = 8
    """Requests in flight to one host, per actor."""
    user_agent: str = "glipv2-on-ray/0.1 (collects captioned images; honours X-Robots-Tag)"
    """How we introduce ourselves. Add a way to reach you."""

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        for name in ("timeout_s", "connect_timeout_s", "idle_timeout_s", "max_bytes", "window", "max_per_host"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)} but must be above 0; leave it out for the default")
        if self.max_redirects < 0:
            raise ValueError(f"max_redirects is {self.max_redirects} but must be 0 or more; 0 follows none")
        if not self.user_agent.strip():
            raise ValueError("user_agent is empty; name the project and a contact, servers refuse clients without one")

    @property
    def robots_token(self) -> str:
        """Our name in an ``X-Robots-Tag`` meant for one crawler only."""
        return self.user_agent.split("/", 1)[0].strip().lower()


class Fetcher:
    """One pooled HTTP client on a thread of its own; usable from several threads at once, as a context manager."""

    def __init__(self, config: FetchConfig) -> None:
        """Start the thread and open the client."""
        self._config = config
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._loop = asyncio.new_event_loop()
        # Names are resolved in threads; with the default handful, a few dead name servers would stop everything.
        self._loop.set_default_executor(ThreadPoolExecutor(config.window, thread_name_prefix="resolve"))
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._thread.start()
        self._session = asyncio.run_coroutine_threadsafe(self._open_session(), self._loop).result()

    def __enter__(self) -> Self:
        """Use the fetcher for the length of a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client and end its thread."""
        asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def fetch_all(self, urls: list[str]) -> Iterator[tuple[int, bytes | str]]:
        """Fetch addresses in a rolling window, so that a slow one holds up no other.

        Yields:
            In order of completion, an address's position and its body, or the reason why there is none (`http_404`,
            `timeout`, …). The next requests start as results are taken, so unread bodies never exceed the window.
        """
        slots = asyncio.Semaphore(self._config.window)
        waiting: dict[Future[bytes | str], int] = {
            asyncio.run_coroutine_threadsafe(self._fetch(url, slots), self._loop): position
            for position, url in enumerate(urls)
        }
        try:
            for future in as_completed(list(waiting)):
                position = waiting.pop(future)
                yield position, future.result()
                self._loop.call_soon_threadsafe(slots.release)
        finally:
            for future in waiting:
                future.cancel()

    async def _open_session(self) -> aiohttp.ClientSession:
        config = self._config
        return aiohttp.ClientSession(
            # limit=0: _fetch limits, outside of the deadline. Lists name many hosts, and each idle connection is a
            # file descriptor: 300 requests/s kept for aiohttp's 15 s would be 4,500 of them.
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=2),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": config.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(
                total=config.timeout_s, sock_connect=config.connect_timeout_s, sock_read=config.idle_timeout_s
            ),
        )

    async def _fetch(self, address: str, slots: asyncio.Semaphore) -> bytes | str:
        """Fetch one address; the slot taken stays so until the result has been read."""
        url = _parse(address)
        if isinstance(url, str):
            await slots.acquire()
            return url
        host = self._hosts.setdefault(str(url.raw_host), asyncio.Semaphore(self._config.max_per_host))
        async with host:
            await slots.acquire()
            return await self._request(url)

    async def _request(self, url: URL) -> bytes | str:
        most = self._config.max_redirects + 1  # aiohttp counts the one it no longer follows
        try:
            async with self._session.get(url, max_redirects=most) as response:
                return await self._receive(response)
        except (aiohttp.ClientError, TimeoutError, UnicodeError) as error:
            return next(reason for kind, reason in _REASONS if isinstance(error, kind))

    async def _receive(self, response: aiohttp.ClientResponse) -> bytes | str:
        limit = self._config.max_bytes
        if not 200 <= response.status < 300:
            return f"http_{response.status}"
        if opted_out(response.headers.getall("X-Robots-Tag", []), self._config.robots_token):
            return "opt_out"
        if (response.content_length or 0) > limit:
            return "too_large"
        body = bytearray()
        try:
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > limit:
                    return "too_large"
        except aiohttp.ClientPayloadError:
            return "bad_encoding" if "Content-Encoding" in response.headers else "truncated"
        return bytes(body)


def _parse(address: str) -> URL | str:
    """Turn an address into a URL we may ask for, or say why not."""
    try:
        url = URL(address.strip())
    except ValueError:
        return "bad_url"
    if url.scheme not in ("http", "https"):
        return "bad_scheme" if url.scheme else "bad_url"
    named = _HOST.fullmatch(url.raw_host or "") and url.user is None and url.password is None
    return url if named else "bad_url"
