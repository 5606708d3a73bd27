"""What of a bench's numbers a plan can be reckoned from, as the file of rates that ``jobs.plan --rates`` reads."""

import datetime
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from pipeline.rates import Rate

Numbers = Mapping[str, float]


def hardware() -> str:
    """Name this machine's processors, and its GPU if there is one."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpus = f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"
    return f"{torch.cuda.get_device_name()}, {cpus}" if torch.cuda.is_available() else cpus


def write_rates(numbers: Numbers, path: Path) -> None:
    """Write the rates that these numbers tell; nothing if they tell none."""
    found = [{name: value for name, value in asdict(rate).items() if value != ""} for rate in rates_of(numbers)]
    if found:
        path.write_text(yaml.safe_dump(found, sort_keys=False, width=200), encoding="utf-8")


def rates_of(numbers: Numbers) -> Iterator[Rate]:
    """Give the rates that these numbers tell."""
    common = {
        "basis": "measured",
        "hardware": hardware(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    for name, (value, told) in TOLD.items():
        if name in numbers:
            yield Rate(**{**told, **common, "value": round(value(numbers[name]), 4), "where": f"make bench, {name}"})
    yield from _simulated(numbers, common)


def _simulated(numbers: Numbers, common: dict[str, str]) -> Iterator[Rate]:
    """Tell the line that the driver's memory follows through the largest two simulated runs."""
    parts = [name.split(".") for name in numbers]
    sizes = [
        int(part[1]) for part in parts if part[0] == "simulation" and part[1].isdigit() and part[-1] == "driver_mib"
    ]
    if not sizes or (slope := numbers.get("simulation.slope.driver_mib")) is None:
        return
    rows = max(sizes)
    where = f"make bench, simulation of {rows} rows"
    row = slope * (1 << 20) / 1e6
    base = numbers[f"simulation.{rows}.driver_mib"] * (1 << 20) - row * rows
    yield Rate(what="driver", per="row", value=round(row, 1), unit="bytes", where=where, **common)
    yield Rate(what="driver-base", per="run", value=round(base), unit="bytes", where=where, **common)


def _same(value: float) -> float:
    return value


def _per_s(milliseconds: float) -> float:
    return 1000 / milliseconds


TOLD: dict[str, tuple[Callable[[float], float], dict[str, str]]] = {
    "download.http.ours.cpu_ms": (_per_s, {"what": "download", "per": "cpu", "unit": "images/s"}),
    "labelling.cpu.stored.steady": (_same, {"what": "label", "model": "nano", "per": "cpu", "unit": "images/s"}),
    "labelling.cuda.streamed.steady": (_same, {"what": "label", "model": "glip-t", "per": "gpu", "unit": "images/s"}),
    "training.nano.1.images_per_s": (_same, {"what": "train", "model": "nano", "per": "cpu", "unit": "images/s"}),
    "sweep.kept.trial_s": (
        lambda seconds: 1 / seconds,
        {"what": "trial", "model": "nano", "per": "cpu", "unit": "trials/s"},
    ),
    "simulation.parts.audited_per_cpu_s": (_same, {"what": "audit", "per": "cpu", "unit": "rows/s"}),
    "simulation.parts.id_bytes_per_row": (_same, {"what": "checkpoint", "per": "row", "unit": "bytes"}),
}
"""Numbers that are rates, how they become one, and of what."""
