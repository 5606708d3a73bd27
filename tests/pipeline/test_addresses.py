import asyncio
import socket

import pytest

from pipeline.addresses import ForbiddenAddressError, Guard, is_public, parse_allowed
from pipeline.urls import Url, parse

PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "2a00:1450:4001::1"]
PRIVATE = [
    *("127.0.0.1", "127.255.0.3", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.9.9", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.100.100.200", "198.18.0.1", "192.0.0.192", "192.0.0.9", "192.88.99.1"),
    *("224.0.0.251", "239.1.1.1", "240.0.0.1", "255.255.255.255", "168.63.129.16", "192.0.2.1", "203.0.113.9"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:10.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:4136:e378::1", "2001:db8::1", "3fff::1"),
    *("fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "100::1", "5f00::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_the_public_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_what_leads_inside_is_not_public(address: str) -> None:
    assert not is_public(address)


def refuse(text: str, *allow_hosts: str) -> str | None:
    url = parse(text)
    assert isinstance(url, Url)
    return Guard(parse_allowed(allow_hosts)).refuse(url)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://example.com/", None),
        ("https://example.com:8443/", None),
        ("http://8.8.8.8/", None),
        ("http://example.com:22/", "forbidden_port"),
        ("http://example.com:0/", "forbidden_port"),
        ("http://u:p@example.com/", "credentials"),
        ("http://0x7f000001/", "forbidden_address"),
        ("http://[::ffff:a00:1]/", "forbidden_address"),
        ("http://localhost:8000/", "forbidden_address"),
        ("http://LocalHost./", "forbidden_address"),
        ("http://a.localhost/", "forbidden_address"),
        ("http://metadata.google.internal/", "forbidden_address"),
        ("http://mylocalhost/", None),
    ],
)
def test_an_address_is_judged_before_any_lookup(text: str, reason: str | None) -> None:
    assert refuse(text) == reason


def test_only_the_very_host_and_port_on_the_list_are_let_through() -> None:
    assert refuse("http://127.0.0.1:9000/", "127.0.0.1:9000") is None
    assert refuse("http://127.1:9000/", "127.0.0.1:9000") is None
    assert refuse("http://127.0.0.1:9001/", "127.0.0.1:9000") == "forbidden_address"
    assert refuse("http://127.0.0.2:9000/", "127.0.0.1:9000") == "forbidden_address"
    assert refuse("http://[::1]:9000/", "[::1]:9000") is None


@pytest.mark.parametrize("entry", ["127.0.0.1", "http://a:80", "a:80/b", "*:80", "a:b@c:80", ":80", ""])
def test_a_list_of_anything_else_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="allow_hosts"):
        parse_allowed((entry,))


def resolve(addresses: list[str], *allow_hosts: str) -> list[str]:
    guard = Guard(parse_allowed(allow_hosts), lambda host, port: addresses)
    return [found["host"] for found in asyncio.run(guard.resolve("images.example", 80))]


def test_a_host_is_reached_at_the_addresses_that_were_checked() -> None:
    assert resolve(PUBLIC) == PUBLIC


@pytest.mark.parametrize("address", ["127.0.0.1", "fe80::1%eth0", "64:ff9b::7f00:1"])
def test_a_host_with_one_address_inside_is_not_reached_at_all(address: str) -> None:
    with pytest.raises(ForbiddenAddressError):
        resolve([*PUBLIC, address])
    assert resolve([address], "images.example:80") == [address]


def test_a_name_no_resolver_takes_is_an_unknown_name() -> None:
    def fail(host: str, port: int) -> list[str]:
        return host.encode("idna") and []

    with pytest.raises(socket.gaierror):
        asyncio.run(Guard(frozenset(), fail).resolve("a..b", 80))
