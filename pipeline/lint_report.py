"""What a dry run found, laid out for a person; `pipeline.lint` finds it."""

import textwrap
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A sampled row."""

    key: int
    """Its position in the list."""
    url: str
    """Address, or where the image lies; empty if there is neither."""
    caption: str
    """Caption after cleaning."""
    phrases: tuple[str, ...]
    """Its noun phrases, in order."""
    reason: str = ""
    """Why the row cannot be used; empty if it can."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Rows that can be used but are worth a look."""

    name: str
    """What was found."""
    rows: int
    """How many rows."""
    meaning: str
    """What will happen to them."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Hours of one part of the work, or bytes."""

    name: str
    """What takes them."""
    amount: float
    """Hours, or bytes."""
    because: str
    """What it is reckoned from."""


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """What was found; `str` gives it for a person, `as_dict` for a program. ``rows == usable + sum(rejects)``."""

    pairs: str
    """File that was read."""
    rows: int
    """Rows in it."""
    usable: int
    """Rows with an address or stored image, and a caption."""
    stored: int
    """Usable rows whose image lies there already."""
    rejects: dict[str, int]
    """Rows that will be rejected, by the reason that the run will give; most first."""
    findings: tuple[Finding, ...]
    """What is odd about the others; most first."""
    num_hosts: int
    """Different hosts among the usable addresses to be fetched."""
    top_hosts: tuple[tuple[str, int], ...]
    """Hosts with most rows."""
    sampled: int
    """Usable rows whose phrases were looked at."""
    without_phrase: int
    """Sampled rows without any."""
    phrases_per_caption: float
    """Mean over the sampled rows."""
    top_phrases: tuple[tuple[str, int], ...]
    """Most frequent phrases of the sample, in lower case."""
    hours: tuple[Expectation, ...]
    """Hours of each part of the work, longest first; they overlap if labels are streamed."""
    disk: Expectation
    """Bytes of the images as stored."""
    previews: tuple[Preview, ...]
    """Sampled rows."""

    def as_dict(self) -> dict[str, Any]:
        """Give what JSON can hold."""
        return asdict(self)

    def __str__(self) -> str:
        """Lay the report out for a person."""
        parts = [
            [f"Dry run of {printable(self.pairs)}: nothing was fetched."],
            self._rows(),
            self._findings(),
            self._hosts(),
            self._phrases(),
            self._expected(),
            self._previews(),
        ]
        return "\n\n".join("\n".join(part) for part in parts if part)

    def _rows(self) -> list[str]:
        counts = {"usable": self.usable, **({"of these stored already": self.stored} if self.stored else {})}
        lines = [_line(name, count, self.rows) for name, count in {**counts, **self.rejects}.items()]
        return [f"{'Rows':<34}{self.rows:>14,}", *lines]

    def _findings(self) -> list[str]:
        found = [_line(f.name, f.rows, self.rows, f.meaning) for f in self.findings if f.rows]
        clean = [f.name for f in self.findings if not f.rows]
        return ["Worth a look", *found, *([f"  none: {', '.join(clean)}"] if clean else [])]

    def _hosts(self) -> list[str]:
        to_fetch = self.usable - self.stored
        lines = [_line(printable(host), count, to_fetch) for host, count in self.top_hosts]
        return [f"{'Hosts':<34}{self.num_hosts:>14,}", *lines] if lines else []

    def _phrases(self) -> list[str]:
        if not self.sampled:
            return []
        # What belongs together is held by blanks that do not break.
        counted = (f"{phrase} {count:,}".replace(" ", "\u00a0") for phrase, count in self.top_phrases)
        top = [line.replace("\u00a0", " ") for line in textwrap.wrap(", ".join(counted), 90)]
        return [
            f"{'Phrases of sampled rows':<34}{self.sampled:>14,}",
            f"  {'per caption':<32}{self.phrases_per_caption:>14.2f}",
            _line("without any", self.without_phrase, self.sampled, "rejected as no_phrase"),
            *(f"  {name:<16}{line}" for name, line in zip(["most frequent", *[""] * len(top)], top, strict=False)),
        ]

    def _expected(self) -> list[str]:
        lines = [f"  {part.name:<32}{in_hours(part.amount):>14}   {part.because}" for part in self.hours]
        longest, total = (in_hours(f(part.amount for part in self.hours)) for f in (max, sum))
        return [
            "Expected",
            *lines,
            f"  {'in all':<32}{longest:>14}   if labels are streamed, {total} one after the other",
            f"  {'on disk':<32}{self.disk.amount / 1e9:>11,.2f} GB   {self.disk.because}",
            "  Rates, live addresses and bytes of images to fetch are assumptions unless you gave them.",
        ]

    def _previews(self) -> list[str]:
        lines = []
        for row in self.previews:
            found = f"rejected: {row.reason}" if row.reason else " | ".join(row.phrases) or "(no phrase)"
            lines += [
                f"  {row.key:>10,}  {textwrap.shorten(row.caption, 100) or '(no caption)'}",
                f"{'':>14}{textwrap.shorten(found, 100)}",
                f"{'':>14}{printable(row.url)[:100] or '(no address)'}",
            ]
        return ["Sampled rows: caption, its phrases, address", *lines] if lines else []


def _line(name: str, count: int, total: int, meaning: str = "") -> str:
    return f"  {name:<32}{count:>14,}{count / max(total, 1):>9.1%}   {meaning}".rstrip()


def in_hours(hours: float) -> str:
    """Write hours for a person."""
    return f"{hours * 60:,.1f} min" if hours < 2 else f"{hours:,.1f} h"


def printable(text: str) -> str:
    """Replace what a terminal would obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
