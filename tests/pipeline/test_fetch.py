import asyncio
import gzip
import json
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pipeline.addresses import Lookup, is_public
from pipeline.fetch import FetchConfig, Fetcher, opted_out, retryable

Serve = Callable[[dict[str, Any]], str]
QUICK = FetchConfig(timeout_s=2, connect_timeout_s=1, idle_timeout_s=1, max_bytes=1000, max_redirects=2, max_attempts=1)


def no_lookup(host: str, port: int) -> list[str]:
    raise AssertionError(f"{host}:{port} was looked up")


def allowing(config: FetchConfig, *bases: str) -> FetchConfig:
    return replace(config, allow_hosts=tuple(base.partition("://")[2].partition("/")[0] for base in bases))


def fetch(urls: list[str], config: FetchConfig = QUICK, lookup: Lookup = no_lookup) -> list[bytes | str]:
    """Fetch with every server of the tests on the list of hosts to be let through."""
    servers = [url for url in urls if re.match(r"\s*https?://127\.0\.0\.1:\d+\b", url)]
    with Fetcher(allowing(config, *[server.strip() for server in servers]), lookup=lookup) as fetcher:
        return fetcher.fetch_all(urls, bytes)


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
        ("http://[::1/a.jpg", "bad_url"),
        ("http://example.com:99999/", "bad_url"),
        ("http://exa mple.invalid/", "bad_url"),
        ("http://a\0b.invalid/", "bad_url"),
        ("http://a..invalid/", "bad_url"),
        (f"http://{'a' * 64}.invalid/", "bad_url"),
        ("http://user:secret@127.0.0.1/", "credentials"),
        ("http://127.1/", "forbidden_address"),
        ("http://[::1]:8080/", "forbidden_address"),
        ("http://example.com:25/", "forbidden_port"),
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


@pytest.mark.parametrize(("code", "reason"), [(socket.EAI_NONAME, "dns_failed"), (socket.EAI_AGAIN, "dns_try_again")])
def test_a_name_that_does_not_resolve_is_a_dns_failure(code: int, reason: str) -> None:
    def fail(host: str, port: int) -> list[str]:
        raise socket.gaierror(code, "unknown")

    assert fetch(["http://nobody.invalid/"], lookup=fail) == [reason]


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
        seen.append([handler.headers[name] for name in ("User-Agent", "Accept-Encoding", "Cookie")])
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 1\r\n\r\nx")

    assert fetch([serve({"/": answer})] * 2) == [b"x", b"x"]
    assert seen == [[QUICK.user_agent, "identity", None]] * 2


def test_one_connection_serves_one_request_after_the_other(serve: Serve) -> None:
    ports = set()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        ports.add(handler.client_address[1])
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")

    assert fetch([serve({"/": answer})] * 6, replace(QUICK, max_per_host=1)) == [b"x"] * 6
    assert len(ports) == 1


def test_a_slow_address_holds_up_no_other(serve: Serve) -> None:
    released = threading.Event()
    fast = []

    def wait(handler: BaseHTTPRequestHandler) -> None:
        released.wait(5)
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")

    def use(body: bytes) -> bytes:
        fast.append(body)
        if len(fast) == 20:  # every other one is there before the slow one may answer
            released.set()
        return body

    base = serve({"/slow": wait, "/fast": b"fast"})
    with Fetcher(allowing(replace(QUICK, window=2, timeout_s=10, idle_timeout_s=10), base)) as fetcher:
        bodies = fetcher.fetch_all([f"{base}/slow"] + [f"{base}/fast"] * 20, use)
    assert bodies == [b"slow"] + [b"fast"] * 20
    assert fast[-1] == b"slow"


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

    base = serve({"/": answer, "/away": (302, {"Location": "/"}, b"")})
    # The deadline is for a request, not for the wait before it: 18 in threes take longer than one may.
    config = replace(QUICK, max_per_host=3, timeout_s=0.1)
    assert fetch([base] * 12 + [f"{base}/away"] * 6, config) == [b"x"] * 18
    assert most[0] == 3


def test_bodies_in_use_never_exceed_the_window(serve: Serve) -> None:
    served, released = [], threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        served.append(1)
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")

    def use(body: bytes) -> bytes:
        released.wait(5)
        return body

    base = serve({"/": answer})
    with Fetcher(allowing(replace(QUICK, window=4), base), num_workers=1) as fetcher:
        bodies: list[bytes | str] = []
        blocks = [threading.Thread(target=lambda: bodies.extend(fetcher.fetch_all([base] * 20, use))) for _ in range(2)]
        for block in blocks:
            block.start()
        time.sleep(0.3)
        assert len(served) == 4
        released.set()
        for block in blocks:
            block.join()
        assert bodies == [b"x"] * 40


def test_threads_may_share_a_fetcher(serve: Serve) -> None:
    base = serve({"/a": b"a", "/b": b"b"})
    results: dict[str, list[bytes | str]] = {}
    with Fetcher(allowing(QUICK, base)) as fetcher:

        def take(path: str) -> None:
            results[path] = fetcher.fetch_all([f"{base}/{path}"] * 20, bytes)

        threads = [threading.Thread(target=take, args=(path,)) for path in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {"a": [b"a"] * 20, "b": [b"b"] * 20}


def test_a_mistake_in_what_uses_a_body_is_not_swallowed(serve: Serve) -> None:
    def use(body: bytes) -> bytes:
        raise KeyError(body)

    base = serve({"/": b"x"})
    with Fetcher(allowing(QUICK, base)) as fetcher, pytest.raises(KeyError):
        fetcher.fetch_all([base], use)


def failing(times: int, failure: bytes) -> tuple[Callable[[BaseHTTPRequestHandler], None], list[float]]:
    """Answer with a failure so many times, then with a body; the list tells when."""
    asked: list[float] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(time.monotonic())
        handler.wfile.write(failure if len(asked) <= times else b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        handler.close_connection = True

    return answer, asked


BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"
GONE = b"HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n"
RESTING = b"HTTP/1.1 429 Slow\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n"
PATIENT = replace(QUICK, timeout_s=10, max_attempts=2)


@pytest.mark.parametrize("failure", [BUSY, CUT])
def test_what_may_pass_is_tried_again_a_moment_later(serve: Serve, failure: bytes) -> None:
    answer, asked = failing(1, failure)
    assert fetch([serve({"/": answer})], PATIENT) == [b"x"]
    assert 0.5 <= asked[1] - asked[0] < 2.5


@pytest.mark.parametrize(("failure", "reason", "times"), [(BUSY, "http_503", 2), (GONE, "http_404", 1)])
def test_attempts_are_bounded_and_what_will_not_pass_has_one(
    serve: Serve, failure: bytes, reason: str, times: int
) -> None:
    answer, asked = failing(9, failure)
    assert fetch([serve({"/": answer})], PATIENT) == [reason]
    assert len(asked) == times


def test_a_host_gets_the_pause_it_asks_for(serve: Serve) -> None:
    answer, asked = failing(1, RESTING % b"2")
    # The second address is asked for after the first has been answered, and the pause is the host's.
    assert fetch([serve({"/": answer})] * 2, replace(PATIENT, max_per_host=1)) == [b"x", b"x"]
    assert asked[1] - asked[0] >= 1.9


def test_a_host_that_asks_for_a_long_pause_is_left_alone(serve: Serve) -> None:
    answer, asked = failing(1, RESTING % b"3600")
    assert fetch([serve({"/": answer})] * 3, replace(PATIENT, max_per_host=1)) == ["http_429", "host_down", "host_down"]
    assert len(asked) == 1


def test_a_pause_beyond_the_deadline_is_not_begun(serve: Serve) -> None:
    started = time.monotonic()
    answer, _ = failing(9, RESTING % b"4")
    assert fetch([serve({"/": answer})], replace(PATIENT, timeout_s=2)) == ["http_429"]
    assert time.monotonic() - started < 1


def test_a_dead_host_costs_its_timeout_a_few_times_only(serve: Serve) -> None:
    base = serve({"/": silence, "/ok": b"x"})
    started = time.monotonic()
    config = replace(QUICK, idle_timeout_s=0.2, max_per_host=2, max_host_failures=4)
    reasons = Counter(fetch([base] * 50, config))
    assert reasons["timeout"] <= 5  # one may be under way when the fourth fails
    assert reasons["host_down"] == 50 - reasons["timeout"]
    assert time.monotonic() - started < 2


def test_a_name_that_does_not_exist_is_looked_up_once() -> None:
    asked = []

    def fail(host: str, port: int) -> list[str]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    urls = [f"http://nobody.invalid/{number}" for number in range(30)]
    assert fetch(urls, replace(QUICK, max_per_host=1), lookup=fail) == ["dns_failed"] * 30
    assert len(asked) == 1


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let nobody connect, and tell whereto it was tried."""
    addresses: list[str] = []

    async def refuse(loop: object, sock: socket.socket, address: tuple[str, int]) -> None:
        addresses.append(address[0])
        raise ConnectionRefusedError(111, "no network here")

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", refuse)
    return addresses


def test_a_name_is_looked_up_once_and_connected_to_there(connected: list[str]) -> None:
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])  # a second lookup would lead inside
    assert fetch(["http://rebinding.example/"], lookup=lambda host, port: next(answers)) == ["connect_failed"]
    assert connected == ["93.184.216.34"]


def test_a_name_with_an_address_inside_is_never_connected_to(connected: list[str]) -> None:
    addresses = ["93.184.216.34", "169.254.169.254"]
    assert fetch(["http://two.example/"], lookup=lambda host, port: addresses) == ["forbidden_address"]
    assert connected == []


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data/", "forbidden_address"),
        ("//2130706433/", "forbidden_address"),
        ("http://[::ffff:7f00:1]/", "forbidden_address"),
        ("http://inside.example/", "forbidden_address"),
        ("http://localhost/", "forbidden_address"),
        ("http://outside.example:6379/", "forbidden_port"),
        ("http://user:secret@outside.example/", "credentials"),
        ("file:///etc/passwd", "bad_scheme"),
        ("data:image/png;base64,AA==", "bad_scheme"),
    ],
)
def test_a_redirect_leads_nowhere_that_a_request_may_not_go(serve: Serve, location: str, reason: str) -> None:
    base = serve({"/": (302, {"Location": "/b"}, b""), "/b": (302, {"Location": location}, b"")})
    assert fetch([base], lookup=lambda host, port: ["10.0.0.1"]) == [reason]


def test_another_port_of_an_allowed_host_stays_forbidden(serve: Serve) -> None:
    inside = serve({"/": b"secret"})
    base = serve({"/": (302, {"Location": inside}, b"")})
    with Fetcher(allowing(QUICK, base)) as fetcher:
        assert fetcher.fetch_all([base], bytes) == ["forbidden_address"]


def test_real_odd_addresses_end_as_expected_and_none_inside_is_connected_to(
    test_data: Path, connected: list[str]
) -> None:
    lines = (test_data / "bad_urls" / "url_cases.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    config = replace(QUICK, max_host_failures=1000)
    with Fetcher(config, lookup=lambda host, port: ["93.184.216.34"]) as fetcher:
        reasons = fetcher.fetch_all([case["input"] for case in cases], bytes)
    wrong = []
    for case, reason in zip(cases, reasons, strict=True):
        unreadable = reason in ("bad_url", "bad_scheme")
        fine = {
            "valid": unreadable != case.get("downloadable", True),
            "invalid": unreadable,
            "refuse": unreadable or reason in ("forbidden_address", "forbidden_port", "credentials"),
            "either": isinstance(reason, str),
        }
        if not fine[case["expected"]]:
            wrong.append((case, reason))
    assert not wrong
    assert connected
    assert all(map(is_public, connected))


def test_the_content_type_is_only_a_hint(serve: Serve, test_data: Path) -> None:
    cases = json.loads((test_data / "bad_urls" / "content_type_cases.json").read_text(encoding="utf-8"))
    types = [case["input"] for case in cases if isinstance(case, dict)]
    sent = [text for text in types if text.isascii() and text.isprintable()]
    base = serve({f"/{number}": (200, {"Content-Type": text}, b"image") for number, text in enumerate(sent)})
    assert fetch([f"{base}/{number}" for number in range(len(sent))]) == [b"image"] * len(sent)


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
def test_behind_a_proxy_nothing_is_fetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://proxy.example:3128")
    with pytest.raises(ValueError, match="unset"):
        Fetcher(QUICK)


@pytest.mark.parametrize(
    "tags",
    [
        *([], ["noai"], ["NoIndex, follow"], ["all", "noimageai"], ["us: noindex"], ["US: noindex"], ["them: noai"]),
        *(["us : noai"], [": noai"], ["unavailable_after: 25 Jun 2030 15:00:00, noai"], ["", ","], ["us: them: noai"]),
    ],
)
def test_the_rule_for_opting_out_is_that_of_img2dataset(tags: list[str]) -> None:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.downloader import is_disallowed

    headers = Message()
    for tag in tags:
        headers["X-Robots-Tag"] = tag
    wanted = is_disallowed(headers, "us", {"noai", "noimageai", "noindex", "noimageindex"})
    assert opted_out(tags, "us") == wanted


PASSING = ["timeout", "connect_timeout", "connect_failed", "disconnected", "truncated", "dns_try_again", "host_down"]
PASSING += ["http_408", "http_425", "http_429", "http_500", "http_503", "http_599"]
FINAL = ["http_404", "http_410", "http_401", "http_403", "http_304", "dns_failed", "tls_failed", "too_large", "opt_out"]
FINAL += ["forbidden_address", "bad_url", "bad_line", "not_an_image", "decoder_crash", "truncated_image", "http_50", ""]


@pytest.mark.parametrize(("reasons", "wanted"), [(PASSING, True), (FINAL, False)])
def test_what_may_pass_is_known_by_its_reason(reasons: list[str], wanted: bool) -> None:
    for reason in reasons:
        assert retryable(reason) == retryable(f"failed_to_download:{reason}") == wanted


@pytest.mark.parametrize(
    "option",
    [
        {"timeout_s": 0},
        {"window": 0},
        {"max_redirects": -1},
        {"max_attempts": 0},
        {"user_agent": " "},
        {"user_agent": "a\r\nHost: b"},
        {"allow_hosts": ("127.0.0.1",)},
    ],
)
def test_limits_that_let_nothing_through_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        FetchConfig(**option)
