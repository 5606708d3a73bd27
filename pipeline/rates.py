"""How fast things go and how much they take, each figure with where it comes from: what plans are reckoned from.

A file of rates is a YAML list; ``make bench`` writes one of the machine it ran on, and `pipeline/rates.yaml` holds what
was measured or published when this was written. Nothing here is guessed: what nobody measured is not there, and a plan
that needs it asks for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

COMMITTED = Path(__file__).with_suffix(".yaml")

Basis = Literal["given", "measured", "published", "assumed"]
Per = Literal["cpu", "gpu", "row", "run", ""]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One figure."""

    what: str
    """What it is of: ``download``, ``label``, ``train``, ``trial``, ``audit``, …"""
    value: float
    """The figure; of work, things done per second."""
    unit: str
    """What the figure counts: ``images/s``, ``s``, ``bytes``."""
    basis: Basis
    """How it is known."""
    where: str
    """Which measurement or publication, in a line."""
    per: Per = ""
    """Whose figure it is: of one CPU, of one GPU, of one row, of a run."""
    model: str = ""
    """Model it is of, where that matters."""
    hardware: str = ""
    """What it ran on."""
    date: str = ""
    """Day it was measured, ``2026-11-21``."""

    def __post_init__(self) -> None:
        """Refuse what is no figure, or says nothing of its origin."""
        if not self.value >= 0:
            raise ValueError(f"the rate of {self.what} is {self.value}; give 0 or more")
        for name, kind in (("basis", Basis), ("per", Per)):
            if (value := getattr(self, name)) not in get_args(kind):
                raise ValueError(f"{name} of the rate of {self.what} is {value!r}; give one of {get_args(kind)}")
        if self.basis == "measured" and not (self.hardware and self.date):
            raise ValueError(f"the rate of {self.what} was measured, but on what and when? give hardware and date")

    @property
    def origin(self) -> str:
        """Tell where the figure comes from."""
        where = ", ".join(filter(None, (self.hardware, self.date, self.where)))
        return f"{self.basis}: {where}" if where else self.basis

    @property
    def number(self) -> str:
        """Write the figure in three digits, or whole."""
        return f"{self.value:,.3g}" if self.value < 1000 else f"{self.value:,.0f}"

    def __str__(self) -> str:
        """Give the figure with its unit."""
        return f"{self.number} {self.unit}" + (f" per {self.per}" if self.per else "")


def read_rates(path: Path) -> list[Rate]:
    """Read a file of rates.

    Raises:
        ValueError: it is no such file; the message names what is wrong.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); give a file of rates") from error
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{path} is no list of rates; see {COMMITTED} for the form")
    return [_read_rate(path, entry) for entry in found]


def _read_rate(path: Path, entry: dict[str, Any]) -> Rate:
    known = {field.name for field in fields(Rate)}
    if unknown := sorted(map(str, entry.keys() - known)):
        raise ValueError(f"{path}: a rate has {unknown}; allowed: {sorted(known)}")
    try:
        return Rate(**{**entry, "date": str(entry.get("date", ""))})
    except TypeError as error:
        raise ValueError(f"{path}: the rate {entry} lacks something ({error}); see {COMMITTED}") from error


def find_rate(rates: Sequence[Rate], what: str, *, per: Per = "", model: str = "", hardware: str = "") -> Rate | None:
    """Choose a rate: the first there is, one of the hardware named before all others."""
    found = [rate for rate in rates if (rate.what, rate.per, rate.model) == (what, per, model)]
    found.sort(key=lambda rate: not (hardware and hardware.lower() in rate.hardware.lower()))
    return found[0] if found else None
