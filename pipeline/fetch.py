"""Fetch the bytes behind many addresses at once, politely and within limits.

img2dataset's own fetch is not used: it builds a TLS context per request (38.7 CPU-ms per https image against about 1
with a pooled client), and it has neither a deadline, since its timeout is per socket operation, nor a size limit, nor
a check of where an address leads. Its rule for opt-out headers is kept.
"""

import asyncio
import random
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from socket import EAI_AGAIN
from types import TracebackType
from typing import Generic, Self, TypeVar
from urllib.request import getproxies_environment

import aiohttp
from yarl import URL

from pipeline.addresses import ForbiddenAddressError, Guard, Lookup, parse_allowed, system_lookup
from pipeline.hosts import Host, Hosts, retry_after_s
from pipeline.urls import Url, parse

T = TypeVar("T")

_OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex"}
"""Directives of ``X-Robots-Tag`` that refuse the use of an image; img2dataset's default."""

_REDIRECTS = {301, 302, 303, 307, 308}

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.InvalidURL, "bad_url"),
    (aiohttp.ClientConnectorDNSError, "dns_failed"),
    (aiohttp.ClientSSLError, "tls_failed"),
    (aiohttp.ClientConnectorError, "connect_failed"),
    (aiohttp.ConnectionTimeoutError, "connect_timeout"),
    (TimeoutError, "timeout"),
    (aiohttp.ClientConnectionError, "disconnected"),
    (aiohttp.ClientError, "bad_response"),
    (ValueError, "bad_url"),  # a host that the client's own reader does not take
)
"""What a failed request is called; the first type that fits."""

_RETRYABLE = frozenset(
    {"connect_failed", "connect_timeout", "disconnected", "dns_try_again", "host_down", "timeout", "truncated"}
)


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Limits of every request."""

    timeout_s: float = 20.0
    """Deadline of an address with all redirects and repeats, in seconds; waiting for a free place does not count."""
    connect_timeout_s: float = 5.0
    """Longest wait for one connection, in seconds."""
    idle_timeout_s: float = 10.0
    """Longest silence of a server, in seconds."""
    max_bytes: int = 20 << 20
    """Largest body, in bytes, before and after decompression."""
    max_redirects: int = 5
    """Redirects followed before giving up."""
    max_attempts: int = 2
    """Requests for one address when it fails for a reason that may pass; 1 repeats none."""
    max_pause_s: float = 5.0
    """Longest pause before a repeat, in seconds; a server that asks for a longer one is left alone that long."""
    window: int = 128
    """Requests in flight per actor, over all its blocks; bodies waiting to be decoded count."""
    max_per_host: int = 8
    """Requests in flight to one host, per actor."""
    max_host_failures: int = 4
    """Failures in a row to reach a host after which its other addresses fail at once, for a minute."""
    allow_hosts: tuple[str, ...] = ()
    """Each a ``host:port`` that may be asked although it is not public or its port is unusual."""
    user_agent: str = "glipv2-on-ray/0.1 (collects captioned images; honours X-Robots-Tag)"
    """How we introduce ourselves. Add a way to reach you."""

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        positive = ("timeout_s", "connect_timeout_s", "idle_timeout_s", "max_bytes", "max_attempts", "window")
        for name in (*positive, "max_per_host", "max_host_failures"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)} but must be above 0; leave it out for the default")
        for name in ("max_redirects", "max_pause_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} but must be 0 or more; leave it out for the default")
        if not self.user_agent.strip() or not self.user_agent.isprintable():
            raise ValueError("user_agent is empty or no plain line; name the project and a contact")
        parse_allowed(self.allow_hosts)

    @property
    def robots_token(self) -> str:
        """Our name in an ``X-Robots-Tag`` meant for one crawler only."""
        return self.user_agent.split("/", 1)[0].strip().lower()


def retryable(reason: str) -> bool:
    """Say whether an address that failed may succeed later; a status before the reason (``status:reason``) is fine."""
    reason = reason.rpartition(":")[2]
    if reason.startswith("http_"):
        return reason in ("http_408", "http_425", "http_429") or (reason.startswith("http_5") and len(reason) == 8)
    return reason in _RETRYABLE


def opted_out(robots_tags: list[str], robots_token: str) -> bool:
    """Say whether the ``X-Robots-Tag`` headers of a response refuse its use by a crawler of that name."""
    for tag in robots_tags:
        crawler, colon, rest = tag.partition(":")
        directives = {directive.strip().lower() for directive in (rest if colon else tag).split(",")}
        if directives & _OPT_OUT and (not colon or crawler.lower() == robots_token):
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Used(Generic[T]):
    """What became of a body."""

    value: T


class _Clock:
    """The time left for one address; it runs while something is done for it."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.left):
                yield
        finally:
            self.left -= time.monotonic() - started


class Fetcher:
    """One pooled HTTP client on a thread of its own; usable from several threads at once, as a context manager."""

    def __init__(self, config: FetchConfig, *, num_workers: int = 4, lookup: Lookup = system_lookup) -> None:
        """Start the thread and open the client.

        Args:
            config: Limits of every request.
            num_workers: Threads that work on bodies.
            lookup: Finds the addresses of a host.

        Raises:
            ValueError: the environment names a proxy.
        """
        if proxies := sorted(getproxies_environment().keys() - {"no"}):
            raise ValueError(
                f"a proxy is set for {', '.join(proxies)}, behind which nobody could tell where a request ends; "
                f"unset {proxies[0].upper()}_PROXY for this job"
            )
        self._config = config
        self._guard = Guard(parse_allowed(config.allow_hosts), lookup)
        self._hosts = Hosts(config.max_per_host, config.max_host_failures)
        self._window = asyncio.Semaphore(config.window)
        self._workers = ThreadPoolExecutor(num_workers, thread_name_prefix="use")
        self._loop = asyncio.new_event_loop()
        # Names are looked up in threads; with the default handful, a few dead name servers would stop everything.
        self._resolvers = ThreadPoolExecutor(config.window, thread_name_prefix="resolve")
        self._loop.set_default_executor(self._resolvers)
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._thread.start()
        self._session = asyncio.run_coroutine_threadsafe(self._open_session(), self._loop).result()

    def __enter__(self) -> Self:
        """Use the fetcher for the length of a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the fetcher."""
        self.close()

    def close(self) -> None:
        """Close the client and end its thread."""
        asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._workers.shutdown()
        self._resolvers.shutdown(wait=False)  # a lookup may take as long as it likes

    def fetch_all(self, urls: list[str], use: Callable[[bytes], T]) -> list[T | str]:
        """Fetch addresses in a rolling window, so that a slow one holds up no other.

        Several threads may call at once and share the window. Bodies never exceed it: the next request starts when
        ``use`` is done with one.

        Args:
            urls: What to fetch.
            use: Called with each body on one of `num_workers` threads.

        Returns:
            For each address what ``use`` made of it, or why there was nothing to use (`http_404`, `timeout`, …).
        """
        return asyncio.run_coroutine_threadsafe(self._fetch_all(urls, use), self._loop).result()

    async def _open_session(self) -> aiohttp.ClientSession:
        config = self._config
        context = ssl.create_default_context()  # the system's authorities; built once, at 30 ms
        context.set_alpn_protocols(("http/1.1",))
        return aiohttp.ClientSession(
            # limit=0: the window limits, outside of the deadline. Lists name many hosts, and each idle connection is
            # a file descriptor: 300 requests/s kept for aiohttp's 15 s would be 4,500 of them.
            connector=aiohttp.TCPConnector(
                limit=0, resolver=self._guard, ttl_dns_cache=300, keepalive_timeout=2, ssl=context
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": config.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            read_bufsize=1 << 18,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=config.connect_timeout_s, sock_read=config.idle_timeout_s
            ),
        )

    async def _fetch_all(self, urls: list[str], use: Callable[[bytes], T]) -> list[T | str]:
        return list(await asyncio.gather(*(self._fetch(url, use) for url in urls)))

    async def _fetch(self, address: str, use: Callable[[bytes], T]) -> T | str:
        """Fetch one address with its redirects and repeats."""
        url, clock = parse(address), _Clock(self._config.timeout_s)
        redirects, attempts = 0, 1
        while isinstance(url, Url):
            answer = await self._ask(url, clock, use)
            if isinstance(answer, _Used):
                return answer.value
            if isinstance(answer, Url):
                redirects += 1
                url = answer if redirects <= self._config.max_redirects else "too_many_redirects"
            elif attempts < self._config.max_attempts and retryable(answer) and answer != "host_down":
                pause = max(random.uniform(0.5, 1.5) * attempts, self._hosts.find(url.place).pause_s)
                url = url if await self._rest(pause, clock) else answer
                attempts += 1
            else:
                return answer
        return url

    async def _ask(self, url: Url, clock: _Clock, use: Callable[[bytes], T]) -> _Used[T] | Url | str:
        """Make one request when its host and the window have a place for it."""
        if refusal := self._guard.refuse(url):
            return refusal
        host = self._hosts.find(url.place)
        async with AsyncExitStack() as window:
            async with host.slots:
                if not await self._rest(host.pause_s, clock):
                    return host.reason
                await window.enter_async_context(self._window)
                answer = await self._request(url, host, clock)
                self._hosts.note(url.place, host, answer if isinstance(answer, str) else None)
            if isinstance(answer, bytes):
                return _Used(await self._loop.run_in_executor(self._workers, use, answer))
            return answer

    async def _rest(self, pause_s: float, clock: _Clock) -> bool:
        """Wait, unless that is too long."""
        if pause_s > min(self._config.max_pause_s, clock.left):
            return False
        if pause_s:
            await asyncio.sleep(pause_s)
            clock.left -= pause_s
        return True

    async def _request(self, url: Url, host: Host, clock: _Clock) -> bytes | Url | str:
        try:
            async with (
                clock.running(),
                self._session.get(URL(str(url), encoded=True), allow_redirects=False) as response,
            ):
                if response.status in (429, 503):
                    host.close(retry_after_s(response.headers.get("Retry-After", "")))
                if response.status in _REDIRECTS and "Location" in response.headers:
                    return parse(response.headers["Location"], url)
                return await self._receive(response)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return _name(error)

    async def _receive(self, response: aiohttp.ClientResponse) -> bytes | str:
        limit = self._config.max_bytes
        if not 200 <= response.status < 300:
            return f"http_{response.status}"
        if opted_out(response.headers.getall("X-Robots-Tag", []), self._config.robots_token):
            return "opt_out"
        if (response.content_length or 0) > limit:
            return "too_large"
        chunks, size = [], 0
        try:
            async for chunk in response.content.iter_any():  # decompressed in steps of bounded size
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    return "too_large"
        except aiohttp.ClientPayloadError:
            return "bad_encoding" if "Content-Encoding" in response.headers else "truncated"
        return b"".join(chunks)


def _name(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        if isinstance(error.os_error, ForbiddenAddressError):
            return "forbidden_address"
        if error.os_error.errno == EAI_AGAIN:
            return "dns_try_again"
    return next(reason for kind, reason in _REASONS if isinstance(error, kind))
