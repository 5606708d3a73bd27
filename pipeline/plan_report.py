"""What a plan says, laid out for a person; `pipeline.plan` reckons it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.lint_report import Expectation, in_hours
from pipeline.rates import Rate

STREAMED = ("download", "label")
"""Stages that run side by side."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the work."""

    name: str
    """What is done."""
    machine: str
    """Node type that does it."""
    machines: int
    """How many of them; 0 where the work is done by machines that are there for another stage."""
    alone_h: float
    """Hours if nothing held it up."""
    because: str
    """What they are reckoned from."""
    kind: str = ""
    """What the clouds call the machine."""
    spot: bool = False
    """Whether the machine may be taken away."""
    most: int = 0
    """Machines the node type allows."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan; `str` gives it for a person."""

    title: str
    """What is planned."""
    stages: tuple[Stage, ...]
    """In their order."""
    head: str
    """Node type that is there all the time; empty if there is none."""
    traffic: tuple[Expectation, ...]
    """Bytes that come and go."""
    memory: tuple[Expectation, ...]
    """Bytes that are held."""
    prices: Mapping[str, float] | None
    """Per hour and node type; None if none were given."""
    used: tuple[Rate, ...]
    """The rates it is reckoned from."""
    doubts: tuple[str, ...]
    """What makes it less sure than it looks."""

    @property
    def streaming_h(self) -> float:
        """Hours of download and labelling, side by side: those of the slower one."""
        return max((stage.alone_h for stage in self.stages if stage.name in STREAMED), default=0.0)

    def hours(self, stage: Stage) -> float:
        """Give the hours a stage lasts, which its machines are paid for."""
        return self.streaming_h if stage.name in STREAMED else stage.alone_h

    @property
    def in_all_h(self) -> float:
        """Hours from the first to the last."""
        return self.streaming_h + sum(stage.alone_h for stage in self.stages if stage.name not in STREAMED)

    @property
    def bottleneck(self) -> Stage:
        """The stage that decides the hours: more machines elsewhere would be idle."""
        return max(self.stages, key=lambda stage: stage.alone_h)

    @property
    def machine_hours(self) -> dict[str, float]:
        """Hours to be paid for, by node type."""
        found: dict[str, float] = defaultdict(float)
        if self.head:
            found[self.head] += self.in_all_h
        for stage in self.stages:
            if stage.machines:
                found[stage.machine] += stage.machines * self.hours(stage)
        return dict(found)

    @property
    def cost(self) -> float | None:
        """The price of all machine hours, in the money of the prices; None where a price is missing."""
        if self.prices is None or self.machine_hours.keys() - self.prices.keys():
            return None
        return sum(hours * self.prices[name] for name, hours in self.machine_hours.items())

    def __str__(self) -> str:
        """Lay the plan out."""
        parts = [
            [f"Plan: {self.title}. Nothing was started."],
            self._stages(),
            self._bytes("Bytes that come and go", self.traffic),
            self._bytes("Bytes held", self.memory),
            self._cost(),
            ["Where the rates come from", *(f"  {_name(rate):<22}{rate}; {rate.origin}" for rate in self.used)],
            [
                "Mind",
                *(f"  {doubt}" for doubt in self.doubts),
                "  Bytes of an image are assumptions unless you gave them (--image-bytes, --source-bytes).",
                "  Rates per CPU and GPU are taken to be the same on every machine, and to add up; start of machines, "
                "work repeated",
                "  after a spot machine is taken away, slow hosts, and limits of network and store are not in here.",
            ],
        ]
        return "\n\n".join("\n".join(part) for part in parts if part)

    def _stages(self) -> list[str]:
        lines = []
        for stage in self.stages:
            spot = ", spot" if stage.spot else ""
            kind = f" ({stage.kind}{spot})" if stage.kind else ""
            machines = f"{stage.machines} x {stage.machine}{kind}" if stage.machines else "the same"
            mark = "   <- bottleneck" if stage is self.bottleneck else ""
            lines.append(f"  {stage.name:<10}{machines:<52}{in_hours(stage.alone_h):>12}   {stage.because}{mark}")
            if stage.machines > stage.most:
                lines.append(f"{'':12}more than the {stage.most} that the node type allows; raise its max_workers")
        both = {stage.name for stage in self.stages} >= set(STREAMED)
        side = ", download and labelling side by side" if both else ""
        return [
            "Stages",
            *lines,
            f"  {'in all':<62}{in_hours(self.in_all_h):>12}   {self.in_all_h / 24:,.1f} days{side}",
        ]

    def _bytes(self, title: str, found: tuple[Expectation, ...]) -> list[str]:
        return [title, *(f"  {e.name:<26}{e.amount / 1e9:>14,.2f} GB   {e.because}" for e in found)] if found else []

    def _cost(self) -> list[str]:
        lines = ["Machine hours"]
        prices = self.prices or {}
        for name, hours in self.machine_hours.items():
            price = f"   x {prices[name]:g} = {hours * prices[name]:,.0f}" if name in prices else ""
            lines.append(f"  {name:<26}{hours:>14,.1f} h{price}")
        if self.cost is not None:
            return [*lines, f"  {'cost':<26}{self.cost:>14,.0f}   by the prices given"]
        missing = sorted(self.machine_hours.keys() - prices.keys())
        return [*lines, f"  cost: give --prices, a file with the price per hour of {', '.join(missing)}"]


def _name(rate: Rate) -> str:
    return f"{rate.what} {rate.model}".strip()
