"""CPU seconds, ratios of them, and peak memory: what the machine's other jobs disturb least."""

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")


@dataclass
class Results:
    """Every number of one run, printed as it is measured and logged at the end."""

    numbers: dict[str, float] = field(default_factory=dict)

    def say(self, name: str, value: float, text: str, unit: str = "") -> None:
        self.numbers[name] = round(value, 4)
        print(f"  {text:74} {value:8.2f}{unit}", flush=True)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.numbers, indent=1) + "\n", encoding="utf-8")


def timed(function: Callable[[], Value], repeats: int = 1, warm: int = 1) -> tuple[float, Value]:
    """Return the median CPU seconds, all threads together, and what the function returned."""
    for _ in range(warm):
        function()
    times = []
    for _ in range(repeats):
        before = time.process_time()
        value = function()
        times.append(time.process_time() - before)
    return statistics.median(times), value


def cpu_seconds(function: Callable[[], object], repeats: int = 1, warm: int = 1) -> float:
    """Return the median CPU seconds, all threads together."""
    return timed(function, repeats, warm)[0]


def ratio(slow: Callable[[], object], fast: Callable[[], object], repeats: int = 7) -> float:
    """Divide the median CPU times of two functions, run in turn so that both see the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, spent in zip((slow, fast), times, strict=True):
            spent.append(cpu_seconds(function, warm=0 if spent else 1))
    return statistics.median(times[0]) / statistics.median(times[1])


def peak_gb(function: Callable[..., object], *arguments: object) -> float:
    """Run a function in a process of its own and return the most memory that process ever held."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_watched, args=(queue, function, arguments))
    process.start()
    peak: float = queue.get(timeout=600)
    process.join()
    return peak


def _watched(queue: "multiprocessing.Queue[float]", function: Callable[..., object], arguments: tuple[object]) -> None:
    function(*arguments)
    # Not getrusage: its peak counts what the parent held at the moment of the fork.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    queue.put(int(status.split("VmHWM:")[1].split()[0]) / 2**20)
