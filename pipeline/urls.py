"""Read addresses as browsers do (the URL Standard's rules for http and https).

Lists from the web hold what browsers accept: blanks and letters outside ASCII, backslashes, `127.1` and `0x7f000001`
for an IPv4 address. Who reads them otherwise than the one who connects can be led astray, so there is one reader, and
what it yields is plain: a lower-case ASCII host, numeric addresses in their usual spelling, a quoted path.
"""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import quote, unquote

import idna

DEFAULT_PORTS = {"http": 80, "https": 443}

_EDGES = "".join(map(chr, range(0x21)))
_SURROGATES = re.compile("[\ud800-\udfff]")
_HEADER = re.compile(r"\r\n|[\r\n][\w-]+:[ \t]")
"""A line break that would begin a header. Browsers drop line breaks, but none who means well puts these there."""
_BREAKS = str.maketrans("", "", "\t\n\r")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_END_OF_AUTHORITY = re.compile(r"[/\\?]")
_BRACKETED = re.compile(r"\[([^\]%]*)\](?::0*?([0-9]{0,5}))?")
_NAMED = re.compile(r"([^:]+)(?::0*?([0-9]{0,5}))?")
_NO_HOST_CHARACTER = re.compile(r"[\x00-\x20#/:<>?@\[\\\]^|%\x7f]")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH_CHARACTERS = "!$%&'()*+,/:;=@[]|"
_QUERY_CHARACTERS = "!$%&()*+,/:;=@[]|?{}`^\\"


@dataclass(frozen=True, slots=True)
class Url:
    """An http(s) address without its fragment."""

    scheme: str
    """``http`` or ``https``."""
    host: str
    """A lower-case ASCII name, a dotted IPv4 address, or an IPv6 address without brackets."""
    port: int
    """The port, the scheme's own when none was named."""
    path: str
    """The quoted path; it begins with a slash."""
    query: str
    """The quoted query with its question mark, or nothing."""
    credentials: bool = False
    """Whether a user name or password was named; they are not kept."""

    @property
    def place(self) -> tuple[str, int]:
        """Host and port: what is connected to."""
        return self.host, self.port

    def __str__(self) -> str:
        """Spell the address out, for the one who connects."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}{self.query}"


def parse(text: str, base: Url | None = None) -> Url | str:
    """Read an address, relative to the page that named it if there is one.

    Returns:
        The address, or why there is none: `bad_url`, `bad_scheme`.
    """
    text = _SURROGATES.sub("\ufffd", text).strip(_EDGES)
    if _HEADER.search(text):
        return "bad_url"
    text = text.translate(_BREAKS).partition("#")[0]
    named = _SCHEME.match(text)
    scheme = named[1].lower() if named else base.scheme if base else ""
    if scheme not in DEFAULT_PORTS:
        return "bad_scheme" if scheme else "bad_url"
    rest = text[named.end() :] if named else text
    to_authority = len(rest) - len(rest.lstrip("/\\")) >= 2
    if base and base.scheme == scheme and not to_authority:
        return _relative(rest, base)
    return _absolute(scheme, rest.lstrip("/\\"))


def _absolute(scheme: str, rest: str) -> Url | str:
    authority = _END_OF_AUTHORITY.split(rest, maxsplit=1)[0]
    user, _, place = authority.rpartition("@")
    found = (_BRACKETED if place.startswith("[") else _NAMED).fullmatch(place)
    if not found:
        return "bad_url"
    try:
        host = str(IPv6Address(found[1])) if place.startswith("[") else _host(found[1])
    except (AddressValueError, UnicodeError):
        return "bad_url"
    port = int(found[2] or DEFAULT_PORTS[scheme])
    if not host or port > 65535:
        return "bad_url"
    path, mark, query = rest[len(authority) :].partition("?")
    return Url(scheme, host, port, _path(path), _query(mark + query), user not in ("", ":"))


def _relative(rest: str, base: Url) -> Url:
    path, mark, query = rest.partition("?")
    path = path.replace("\\", "/")
    if not path:
        return Url(base.scheme, base.host, base.port, base.path, _query(mark + query) if mark else base.query)
    if not path.startswith("/"):
        path = base.path.rpartition("/")[0] + "/" + path
    return Url(base.scheme, base.host, base.port, _path(path), _query(mark + query))


def _path(path: str) -> str:
    """Walk the dots out of a path, and quote it."""
    segments: list[str] = []
    parts = path.replace("\\", "/").removeprefix("/").split("/")
    for number, part in enumerate(parts):
        dots = part.lower().replace("%2e", ".") if len(part) <= 6 else ""
        if dots == "..":
            del segments[-1:]
        if dots not in (".", ".."):
            segments.append(part)
        elif number == len(parts) - 1:
            segments.append("")
    return "/" + quote("/".join(segments), safe=_PATH_CHARACTERS)


def _query(query: str) -> str:
    return quote(query, safe=_QUERY_CHARACTERS) if len(query) > 1 else ""


def _host(text: str) -> str:
    """Read a name or an IPv4 address.

    Raises:
        UnicodeError: it is neither.
    """
    host = _to_ascii(unquote(text, errors="replace"))
    labels = host.removesuffix(".").split(".")
    if _NO_HOST_CHARACTER.search(host) or ".." in host.strip("."):
        raise UnicodeError("no host name")
    if _NUMBER.fullmatch(labels[-1]):
        return str(_ipv4(labels))
    if len(host) > 254 or max(map(len, labels)) > 63:
        raise UnicodeError("longer than a host name may be")
    return host


def _ipv4(parts: list[str]) -> IPv4Address:
    numbers = [_number(part) for part in parts]
    *leading, last = numbers
    if len(numbers) > 4 or max(leading, default=0) > 255 or last >= 256 ** (5 - len(numbers)):
        raise UnicodeError("no IPv4 address")
    return IPv4Address(last + sum(number << 8 * (3 - place) for place, number in enumerate(leading)))


def _number(text: str) -> int:
    """Read decimal, hexadecimal (0x) or octal (0) digits."""
    if not _NUMBER.fullmatch(text) or len(text) > 64:
        raise UnicodeError("no number")
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    try:
        return int(text, 8 if text.startswith("0") else 10)
    except ValueError as error:  # an 8 or 9 among octal digits
        raise UnicodeError("no number") from error


def _to_ascii(name: str) -> str:
    """Map a name as UTS #46 says, without the IDNA rules that refuse names in use (underscores, emoji)."""
    if name.isascii() and "xn--" not in name.lower():
        return name.lower()
    mapped = idna.uts46_remap(name, std3_rules=False).replace("\u3002", ".")
    return ".".join(label if label.isascii() and label[:4] != "xn--" else _label(label) for label in mapped.split("."))


def _label(label: str) -> str:
    if label.isascii():
        shown = label[4:].encode().decode("punycode")
        if shown.isascii() or idna.uts46_remap(shown, std3_rules=False) != shown:
            raise UnicodeError("no label in punycode")
    else:
        shown = label
    idna.check_initial_combiner(shown)
    idna.check_bidi(shown)
    for position, letter in enumerate(shown):
        if letter in "\u200c\u200d" and not idna.valid_contextj(shown, position):
            raise UnicodeError("a joiner that joins nothing")
    return "xn--" + shown.encode("punycode").decode()
