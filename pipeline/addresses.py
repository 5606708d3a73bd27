"""Keep a downloader that follows anybody's list out of the network it runs in.

A host is looked up once, every address it has is checked, and the connection goes to exactly those addresses: there is
no second lookup that a name server could answer differently. Redirects come through here like first requests.
"""

import asyncio
import re
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.urls import Url, parse

PORTS = frozenset({80, 443, 8080, 8443})
"""Where images are served. Mail, databases and the like listen elsewhere."""

_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""Outside of it lies nothing public: loopback, mapped and translated IPv4 (NAT64), local and multicast ranges."""

_REFUSED_V6 = [IPv6Network(net) for net in ("2001::/23", "2002::/16", "2001:db8::/32", "3fff::/20")]
"""Protocol use (Teredo and others) and 6to4, which carry IPv4 addresses inside, and documentation."""

_REFUSED_V4 = [
    IPv4Network("168.63.129.16/32"),  # Azure's host, on a public number
    IPv4Network("192.0.0.0/24"),  # protocol use; one cloud's metadata service
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
]

_LOCAL_NAME = re.compile(r"(?:.*\.)?(?:localhost|localdomain|local|internal|home\.arpa)\.?")
"""Names that mean something else in each network; `metadata.google.internal` is one."""

Lookup = Callable[[str, int], list[str]]
"""Find a host's numeric addresses, or raise `OSError`. It may block."""


class ForbiddenAddressError(OSError):
    """A host has an address that is not public."""


def is_public(address: str) -> bool:
    """Say whether a numeric address belongs to the public internet, whatever other address it carries inside."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv4Address):
        return ip.is_global and not (ip.is_multicast or ip.is_reserved or any(ip in net for net in _REFUSED_V4))
    return ip in _GLOBAL_UNICAST and ip.is_global and not any(ip in net for net in _REFUSED_V6)


def parse_allowed(allow_hosts: tuple[str, ...]) -> frozenset[tuple[str, int]]:
    """Read a list of ``host:port``.

    Raises:
        ValueError: an entry is not of that form.
    """
    places = set()
    for entry in allow_hosts:
        url = parse(f"http://{entry}/")
        if isinstance(url, str) or not re.fullmatch(r"[^*/?@\\#]+:\d+", entry):
            raise ValueError(f"allow_hosts has {entry!r} but must hold host:port; write 127.0.0.1:8000")
        places.add(url.place)
    return frozenset(places)


def system_lookup(host: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(info[4][0]) for info in found]


class Guard(AbstractResolver):
    """Decides where requests may go; aiohttp's way to find addresses."""

    def __init__(self, allowed: frozenset[tuple[str, int]], lookup: Lookup = system_lookup) -> None:
        """Let these hosts and ports through without a check."""
        self._allowed = allowed
        self._lookup = lookup

    def refuse(self, url: Url) -> str | None:
        """Say why an address may not be asked for, as far as it can be told without a lookup."""
        if url.credentials:
            return "credentials"
        if url.place in self._allowed:
            return None
        numeric = ":" in url.host or url.host.replace(".", "").isdigit()
        if not is_public(url.host) if numeric else _LOCAL_NAME.fullmatch(url.host):
            return "forbidden_address"
        return None if url.port in PORTS else "forbidden_port"

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Find the addresses of a host for aiohttp, which connects to one of them.

        Raises:
            ForbiddenAddressError: one of them is not public, so none is to be trusted.
            OSError: the host has no address.
        """
        addresses = await asyncio.get_running_loop().run_in_executor(None, self._find, host, port)
        if (host, port) not in self._allowed and not all(map(is_public, addresses)):
            raise ForbiddenAddressError("the host has an address that is not public")
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": numeric,
            }
            for address in addresses
        ]

    def _find(self, host: str, port: int) -> list[str]:
        try:
            found = self._lookup(host, port)
        except UnicodeError as error:  # the system's encoder of names is stricter than browsers
            raise socket.gaierror(socket.EAI_NONAME, "no name that can be looked up") from error
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        return found

    async def close(self) -> None:
        """Release nothing."""
