"""A loopback proxy before an S3 server, that now and then fails as a busy store or network does: seeded and bounded."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Fault(Enum):
    """What may happen to a request."""

    INTERNAL_ERROR = "500"
    """Refused with 500; not carried out."""
    SLOW_DOWN = "503"
    """Refused with 503 SlowDown; not carried out."""
    CUT = "cut"
    """Carried out, but the connection ends within the answer's body."""
    LOST = "lost"
    """Carried out, but the connection ends before an answer."""
    DELAY = "delay"
    """Carried out late."""


_REFUSALS = {Fault.INTERNAL_ERROR: (500, "InternalError"), Fault.SLOW_DOWN: (503, "SlowDown")}
_HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive", "server", "date")


@dataclass
class Plan:
    """Which requests go wrong."""

    rate: float
    """Share of requests."""
    kinds: Sequence[Fault]
    limit: int
    """Faults in all."""
    seed: int = 0
    methods: Sequence[str] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    path: str = ""
    """Only requests whose path contains it."""
    delay_s: float = 0.5
    injected: Counter[Fault] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def draw(self, method: str, path: str) -> Fault | None:
        with self._lock:
            if method not in self.methods or self.path not in path or self.injected.total() >= self.limit:
                return None
            if self._random.random() >= self.rate:
                return None
            fault = self._random.choice(self.kinds)
            self.injected[fault] += 1
            return fault


class FaultProxy:
    """The proxy; transparent outside `faulty`."""

    def __init__(self, port: int, upstream: tuple[str, int]) -> None:
        self.plan: Plan | None = None
        proxy = self

        class Handler(_Relay):
            def draw(self) -> Fault | None:
                return proxy.plan.draw(self.command, self.path) if proxy.plan else None

            def delay_s(self) -> float:
                return proxy.plan.delay_s if proxy.plan else 0.0

        Handler.upstream = upstream
        self._server = _Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @contextmanager
    def faulty(self, plan: Plan) -> Iterator[Plan]:
        self.plan = plan
        try:
            yield plan
        finally:
            self.plan = None

    def close(self) -> None:
        self._server.shutdown()
        self._server.socket.close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # a client that hangs up, or was killed, is no news


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for status line and headers
    upstream: tuple[str, int]

    def draw(self) -> Fault | None:
        raise NotImplementedError

    def delay_s(self) -> float:
        raise NotImplementedError

    def relay(self) -> None:
        asked, fault = self._body(), self.draw()
        if fault in _REFUSALS:
            return self._refuse(*_REFUSALS[fault])
        if fault is Fault.DELAY:
            time.sleep(self.delay_s())
        connection = HTTPConnection(*self.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        headers.pop("Expect", None)
        headers["Content-Length"] = str(len(asked))
        connection.request(self.command, self.path, asked, headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        self._answer(answer, body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay  # noqa: N815 - the names the standard library asks for

    def _answer(self, answer: HTTPResponse, body: bytes, fault: Fault | None) -> None:
        if fault is Fault.LOST or (fault is Fault.CUT and len(body) < 2):
            self.close_connection = True
            return
        self.send_response_only(answer.status, answer.reason)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        for name, value in answer.getheaders():
            if name.lower() not in (*_HOP_BY_HOP, "content-length"):
                self.send_header(name, value)
        if answer.status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if fault is Fault.CUT:
            body, self.close_connection = body[: len(body) // 2], True
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self.send_response_only(status, code)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailing checksums
        return b"".join(parts)

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()  # the client waits for it before it sends the body
        return going_on

    def log_message(self, *_: Any) -> None:
        pass
