import gzip
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from pipeline.fetch import FetchConfig, Fetcher

Serve = Callable[[dict[str, Any]], str]
QUICK = FetchConfig(timeout_s=2, connect_timeout_s=1, idle_timeout_s=1, max_bytes=1000, max_redirects=2)


def fetch(urls: list[str], config: FetchConfig = QUICK) -> list[bytes | str]:
    with Fetcher(config) as fetcher:
        results = dict(fetcher.fetch_all(urls))
    assert sorted(results) == list(range(len(urls)))
    return [results[position] for position in range(len(urls))]


def write_raw(data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return answer


def trickle(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    for _ in range(100):
        handler.wfile.write(b".")
        time.sleep(0.05)


def silence(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(1)


def test_a_body_arrives_whole(serve: Serve) -> None:
    base = serve({"/a": b"first", "/b": b"second", "/empty": b""})
    assert fetch([f"{base}/a", f"{base}/b", f"{base}/empty"]) == [b"first", b"second", b""]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, {}, b"gone"), "http_404"),
        ((503, {"Retry-After": "1"}, b""), "http_503"),
        (b"x" * 1001, "too_large"),
        (write_raw(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001), "too_large"),
        ((200, {"Content-Encoding": "gzip"}, gzip.compress(b"x" * 100_000)), "too_large"),
        ((200, {"Content-Encoding": "gzip"}, b"no gzip at all"), "bad_encoding"),
        (write_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"), "truncated"),
        (write_raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n"), "truncated"),
        (write_raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "bad_response"),
        (write_raw(b""), "disconnected"),
        ((302, {"Location": "ftp://127.0.0.1/a"}, b""), "bad_scheme"),
        ((302, {"Location": "http://[::1/a"}, b""), "bad_url"),
        ((302, {"Location": "/"}, b""), "too_many_redirects"),
        ((200, {"X-Robots-Tag": "all, NoAI"}, b"image"), "opt_out"),
        ((200, {"X-Robots-Tag": "glipv2-on-ray: noindex"}, b"image"), "opt_out"),
    ],
)
def test_a_failure_has_its_reason(serve: Serve, answer: object, reason: str) -> None:
    assert fetch([serve({"/": answer})]) == [reason]


@pytest.mark.parametrize(
    ("answer", "config"),
    [
        (trickle, replace(QUICK, timeout_s=0.4)),
        (silence, replace(QUICK, timeout_s=0.4)),
        (silence, replace(QUICK, idle_timeout_s=0.4)),
    ],
)
def test_a_server_that_takes_too_long_is_left(serve: Serve, answer: object, config: FetchConfig) -> None:
    assert fetch([serve({"/": answer})], config) == ["timeout"]


@pytest.mark.parametrize("tag", ["all", "otherbot: noindex", "max-image-preview: large"])
def test_a_robots_tag_that_does_not_concern_us_is_no_opt_out(serve: Serve, tag: str) -> None:
    assert fetch([serve({"/": (200, {"X-Robots-Tag": tag}, b"image")})]) == [b"image"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "bad_scheme"),
        ("data:image/png;base64,AA==", "bad_scheme"),
        ("", "bad_url"),
        ("example.com/a.jpg", "bad_url"),
        ("http:///a.jpg", "bad_url"),
        ("http://[::1/a.jpg", "bad_url"),
        ("http://127.0.0.1:99999/", "bad_url"),
        ("http://exa mple.invalid/", "bad_url"),
        ("http://a\0b.invalid/", "bad_url"),
        ("http://a..invalid/", "bad_url"),
        (f"http://{'a' * 64}.invalid/", "bad_url"),
        ("http://user:secret@127.0.0.1/", "bad_url"),
    ],
)
def test_an_address_nobody_should_ask_for_is_not_asked_for(url: str, reason: str) -> None:
    assert fetch([url]) == [reason]


def test_a_closed_port_is_a_failed_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert fetch([f"http://127.0.0.1:{port}/"]) == ["connect_failed"]


def test_a_server_that_does_not_accept_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        held = [socket.socket() for _ in range(3)]  # they fill the queue; Linux drops what comes after
        for client in held:
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert fetch([url], replace(QUICK, connect_timeout_s=0.3)) == ["connect_timeout"]
        for client in held:
            client.close()


def test_a_name_that_does_not_resolve_is_a_dns_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert fetch(["http://nobody.invalid/"]) == ["dns_failed"]


def test_plain_http_behind_https_is_a_tls_failure(serve: Serve) -> None:
    assert fetch([serve({"/": b"image"}).replace("http:", "https:")]) == ["tls_failed"]


def test_blanks_and_letters_outside_ascii_in_a_path_are_quoted(serve: Serve) -> None:
    base = serve({"/a%20b/%C3%BC.jpg?q=%C3%A9": b"image"})
    assert fetch([f" {base}/a b/ü.jpg?q=é\n"]) == [b"image"]


def test_a_redirect_within_the_limit_is_followed(serve: Serve) -> None:
    base = serve({"/": (301, {"Location": "/b"}, b""), "/b": (302, {"Location": "c"}, b""), "/c": b"image"})
    assert fetch([base]) == [b"image"]


def test_we_say_who_we_are_and_keep_no_cookies(serve: Serve) -> None:
    seen = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append((handler.headers["User-Agent"], handler.headers["Cookie"]))
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 1\r\n\r\nx")

    base = serve({"/": answer})
    with Fetcher(QUICK) as fetcher:
        for _ in range(2):
            assert list(fetcher.fetch_all([base])) == [(0, b"x")]
    assert seen == [(QUICK.user_agent, None)] * 2


def test_a_slow_address_holds_up_no_other(serve: Serve) -> None:
    released = threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> None:
        released.wait(5)
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")

    base = serve({"/slow": wait, "/fast": b"fast"})
    order = []
    with Fetcher(replace(QUICK, window=2, timeout_s=10, idle_timeout_s=10)) as fetcher:
        for position, _ in fetcher.fetch_all([f"{base}/slow"] + [f"{base}/fast"] * 20):
            order.append(position)
            if len(order) == 20:  # every other one is there before the slow one may answer
                released.set()
    assert order[-1] == 0


def test_one_host_is_not_asked_for_more_than_its_share_at_once(serve: Serve) -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")

    base = serve({"/": answer})
    # The deadline is for a request, not for the wait before it: 12 in threes take longer than one may.
    assert fetch([base] * 12, replace(QUICK, max_per_host=3)) == [b"x"] * 12
    assert most[0] == 3


def test_unread_bodies_never_exceed_the_window(serve: Serve) -> None:
    served = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        served.append(1)
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")

    base = serve({"/": answer})
    with Fetcher(replace(QUICK, window=4)) as fetcher:
        results = fetcher.fetch_all([base] * 40)
        next(results)
        time.sleep(0.3)
        assert len(served) == 4
        assert len(list(results)) == 39


def test_threads_may_share_a_fetcher(serve: Serve) -> None:
    base = serve({"/a": b"a", "/b": b"b"})
    results: dict[str, list[bytes | str]] = {}
    with Fetcher(QUICK) as fetcher:

        def take(path: str) -> None:
            results[path] = [body for _, body in fetcher.fetch_all([f"{base}/{path}"] * 20)]

        threads = [threading.Thread(target=take, args=(path,)) for path in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {"a": [b"a"] * 20, "b": [b"b"] * 20}


@pytest.mark.parametrize("option", [{"timeout_s": 0}, {"window": 0}, {"max_redirects": -1}, {"user_agent": " "}])
def test_limits_that_let_nothing_through_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        FetchConfig(**option)
