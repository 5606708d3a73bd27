"""What to plan: amounts, machines, and the rates and prices that somebody gives (`pipeline.plan` reckons)."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.lint import LintConfig
from pipeline.paths import NOT_GIVEN, require

_COUNT = re.compile(r"(?i)(\d+(?:\.\d+)?)\s*([kmb]?)")
_TIMES = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def count(text: str, flag: str) -> int:
    """Read a number as people write it: ``16M``, ``300k``, ``1.5m``, ``20_000``.

    Raises:
        ValueError: it is none.
    """
    found = _COUNT.fullmatch(text.replace("_", "").replace(",", "").strip())
    if found is None:
        raise ValueError(f"--{flag} is {text!r}; give a number such as 16M, 300k or 20000")
    return round(float(found[1]) * _TIMES[found[2].lower()])


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A kind of machine."""

    name: str
    """Its node type in the cluster's files."""
    kind: str = ""
    """What the clouds call it."""
    cpus: int = 1
    """CPUs that work there."""
    gpus: int = 0
    """GPUs that work there."""
    gpu: str = ""
    """Model of the GPU."""
    memory_gib: float = 4.0
    """Memory."""
    most: int = 1
    """Machines at most."""
    spot: bool = False
    """Whether it may be taken away."""

    def __post_init__(self) -> None:
        """Refuse machines that are none."""
        for name in ("cpus", "gpus", "most"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} of the {self.name} machine is {getattr(self, name)}; give 0 or more")


@dataclass(frozen=True, kw_only=True)
class GivenRates:
    """Rates that you know better than the files of rates; 0 where you do not."""

    download: float = 0.0
    """Images that one CPU fetches and decodes per second."""
    label: float = 0.0
    """Captions per second of the teacher, on one GPU, or on one CPU where the machine has no GPU."""
    train: float = 0.0
    """Images per second of pre-training, on one GPU or CPU."""
    trial: float = 0.0
    """Few-shot trials per second on one GPU or CPU; a trial of 200 s is 0.005."""

    def __post_init__(self) -> None:
        """Refuse negative ones."""
        for name in ("download", "label", "train", "trial"):
            if getattr(self, name) < 0:
                raise ValueError(f"--given.{name} is {getattr(self, name)}; give a rate above 0")


@dataclass(frozen=True, kw_only=True)
class PlanJob:
    """What to plan, and on which machines."""

    pairs: str = ""
    """Captioned images: ``16M``, ``300k``, or a plain number."""
    teacher: str = ""
    """Teacher that labels, as in the files of rates: ``glip-l``, ``glip-t``, ``nano``."""
    stored: bool = False
    """The images lie there already; nothing is downloaded."""
    within_hours: float = 0.0
    """Hours that download and labelling may take; 0 takes as many machines as there may be."""
    steps: str = ""
    """Steps of pre-training afterwards, ``330k``; none by default."""
    batch_size: int = 64
    """Images per step."""
    model: str = "t"
    """Model that is pre-trained, as in the files of rates: ``t``, ``l``, ``nano``."""
    trials: str = ""
    """Trials of a sweep afterwards; none by default."""
    rates: tuple[Path, ...] = ()
    """Files of rates; they come before the committed ones. ``make bench`` writes ``runs/bench/rates.yaml``."""
    prices: Path = NOT_GIVEN
    """YAML file of prices per hour, by node type: ``{label: 1.2, download: 0.7, head: 0.4}``; your own money, your own
    contract. Without it the cost is told in machine hours."""
    given: GivenRates = field(default_factory=GivenRates)
    """Rates that you know better."""
    alive: float = -1.0
    """Share of the addresses that still give an image; the published one by default."""
    source_bytes: int = LintConfig.image_bytes
    """Bytes of an image as it comes. An assumption; ``--dry-run`` measures stored ones."""
    image_bytes: int = LintConfig.image_bytes
    """Bytes of an image as stored. An assumption, as in ``--dry-run``."""
    rows_per_block: int = 1000
    """Rows that travel together, as in labelling."""
    head: Machine
    """Where the driver runs."""
    downloads: Machine
    """Machines that download."""
    labels: Machine
    """Machines that label, and try out few-shot transfer."""
    trains: Machine
    """Machines that pre-train."""

    def check(self) -> None:
        """Refuse a plan of nothing, and numbers that are none."""
        if not self.pairs and not self.steps and not self.trials:
            raise ValueError("--pairs is missing; give how many captioned images, such as 16M, or --steps, or --trials")
        if self.pairs and not self.teacher:
            raise ValueError("--teacher is missing; give one that the rates know, such as glip-l, glip-t or nano")
        for flag in ("pairs", "steps", "trials"):
            if (text := getattr(self, flag)) and count(text, flag) < 1:
                raise ValueError(f"--{flag} is {text}; give at least 1, or leave it out")
        self._check_numbers()
        if self.alive > 1:
            raise ValueError(f"--alive is {self.alive}; give a share between 0 and 1")
        require(**{f"rates_{n}": path for n, path in enumerate(self.rates)})
        if self.prices != NOT_GIVEN:
            require(prices=self.prices)

    def _check_numbers(self) -> None:
        if self.within_hours < 0:
            raise ValueError(f"--within-hours is {self.within_hours}; give hours, or 0 for as fast as it goes")
        for flag in ("batch_size", "source_bytes", "image_bytes", "rows_per_block"):
            if (number := getattr(self, flag)) < 1:
                raise ValueError(f"--{flag.replace('_', '-')} is {number}; give 1 or more")
        for kind in ("downloads", "labels", "trains"):  # a head may have nothing to spare for work
            for name in ("cpus", "most"):
                if (number := getattr(getattr(self, kind), name)) < 1:
                    raise ValueError(f"--{kind}.{name} is {number}; give 1 or more")
