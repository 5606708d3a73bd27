import json
from pathlib import Path

import pytest

from pipeline.urls import Url, parse

BASE = parse("http://host.example/a/b?q=1")
assert isinstance(BASE, Url)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("HTTP://EXAMPLE.com/A.JPG", "http://example.com/A.JPG"),
        ("https:example.com", "https://example.com/"),
        ("http:\\\\example.com\\a\\b", "http://example.com/a/b"),
        (" http://example.com/a\n", "http://example.com/a"),
        ("http://ex\nample.com/a\tb", "http://example.com/ab"),
        ("http://example.com/ü b.jpg?é='\"#x", "http://example.com/%C3%BC%20b.jpg?%C3%A9=%27%22"),
        ("http://example.com/%zz%2F", "http://example.com/%zz%2F"),
        ("http://example.com/a/./%2E/../b/..", "http://example.com/"),
        ("http://example.com:0080/", "http://example.com/"),
        ("https://example.com:8443", "https://example.com:8443/"),
        ("http://faß.example/", "http://xn--fa-hia.example/"),
        ("http://EXAMPLE。com/", "http://example.com/"),
        ("http://☃.net/", "http://xn--n3h.net/"),
        ("http://a_b.example/", "http://a_b.example/"),
        ("http://ex%41mple.com/", "http://example.com/"),
        ("http://2130706433/", "http://127.0.0.1/"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://0177.0.0.1./", "http://127.0.0.1/"),
        ("http://\uff11\uff12\uff17.0.0.1/", "http://127.0.0.1/"),
        ("http://[0:0::1]:80/", "http://[::1]/"),
        ("http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/"),
    ],
)
def test_an_address_is_read_as_browsers_read_it(text: str, read: str) -> None:
    assert str(parse(text)) == read


@pytest.mark.parametrize(
    "text",
    [
        *("", "nan", "example.com/a.jpg", "//example.com/", "http://", "http://?", "http://@/x", "http://a:b@/x"),
        *("http://exa mple.com/", "http://a\0b/", "http://a%00b/", "http://a%2fb/", "http://a..b/", "http://[::1/"),
        *("http://[fe80::1%25eth0]/", "http://[::1]x/", "http://h:99999/", "http://h:-1/", f"http://h:{'1' * 9999}/"),
        *("http://1.2.3.256/", "http://1.2.3.08/", "http://1.2.3.4.5/", "http://foo.0x4/", "http://4294967296/"),
        *("http://\ufffd/", "http://\xad/", "http://xn--a/", "http://a.xn--pokxncvks/", f"http://{'a' * 64}.example/"),
        *("http://h/a\r\nHost: evil.example\r\n/b", "http://h/a\nHost: evil.example"),
    ],
)
def test_what_no_browser_would_ask_for_is_no_address(text: str) -> None:
    assert parse(text) == "bad_url"


@pytest.mark.parametrize("text", ["ftp://h/a", "data:image/png;base64,AA==", "file:///etc/passwd", "javascript:x"])
def test_only_the_web_is_read(text: str) -> None:
    assert parse(text) == "bad_scheme"


@pytest.mark.parametrize(
    ("text", "named"), [("http://u:p@h/", True), ("http://u@h/", True), ("http://:p@h", True), ("http://:@h/", False)]
)
def test_credentials_are_seen_and_forgotten(text: str, named: bool) -> None:
    url = parse(text)
    assert isinstance(url, Url)
    assert (url.credentials, url.host) == (named, "h")
    assert "@" not in f"{url}{url!r}"


@pytest.mark.parametrize(
    ("location", "read"),
    [
        ("c", "http://host.example/a/c"),
        ("/c?d#e", "http://host.example/c?d"),
        ("../../c", "http://host.example/c"),
        ("?z", "http://host.example/a/b?z"),
        ("", "http://host.example/a/b?q=1"),
        ("//other.example/x", "http://other.example/x"),
        ("\\\\other.example\\x", "http://other.example/x"),
        ("http:c", "http://host.example/a/c"),
        ("https://other.example", "https://other.example/"),
        ("\udcfc.jpg", "http://host.example/a/%EF%BF%BD.jpg"),  # a byte of a header that is no UTF-8
    ],
)
def test_a_redirect_is_read_relative_to_its_page(location: str, read: str) -> None:
    assert isinstance(BASE, Url)
    assert str(parse(location, BASE)) == read


def test_data_urls_are_refused_all(test_data: Path) -> None:
    cases = json.loads((test_data / "bad_urls" / "data_urls.json").read_text(encoding="utf-8"))
    assert {parse(case[0]) for case in cases} <= {"bad_scheme", "bad_url"}


def test_real_odd_addresses_are_read_or_refused_as_expected(test_data: Path) -> None:
    wrong = []
    for line in (test_data / "bad_urls" / "url_cases.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        url = parse(case["input"])
        wanted = {"valid": case.get("downloadable", True), "invalid": False}.get(case["expected"])
        if wanted is not None and isinstance(url, Url) != wanted:
            wrong.append((case, url))
        href = (case.get("href") or "").partition("#")[0].removesuffix("?")
        if isinstance(url, Url) and href and not url.credentials and str(url) != href:
            wrong.append((case, url))
    assert not wrong
