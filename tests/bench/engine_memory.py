"""What the engine holds: peak memory over the number of rows, and what waits between fast source and slow teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.sources.pairs_file import Pair, write_pairs
from tests.bench.labelling import CAPTIONS, store
from tests.bench.loopback_server import BODY_BYTES, make_pictures, serving
from tests.bench.processes import run_ours, scratch
from tests.bench.timing import Results

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class MemoryBench:
    """How many rows are carried."""

    out: Path
    sizes: Sequence[int] = (2_000, 20_000, 200_000)
    """Rows, from few to many, of tiny stored pictures."""
    pressed: Sequence[int] = (2_000, 6_000)
    """Rows, from few to many, of pictures of a usual size that come faster than they are labelled."""
    seconds_per_image: float = 0.02
    """What the slow teacher takes; it sleeps."""
    store_mib: int = 1024
    """Ray's object store while memory is measured, as a session has it."""
    pressed_store_mib: int = 128
    """Ray's object store under pressure: an eighth of a session's, and so are the blocks; a list would not go in."""
    pressed_block: int = 32
    """Rows of a block under pressure."""
    timeout_s: float = 900.0
    """Of one run."""


def compare_engine_memory(results: Results, bench: MemoryBench) -> None:
    """Carry stored pictures to a teacher that takes no time, and weigh all processes of the run together."""
    print(f"memory of a run, all processes, shared pages once: {', '.join(map(str, bench.sizes))} tiny pictures")
    peaks: list[int] = []
    for rows in bench.sizes:
        with scratch(bench.out) as folder:
            locators = store(folder / "pictures.parquet", make_pictures(100, 64, 48, 1500), rows)
            write_pairs((Pair(None, CAPTIONS[0], locator) for locator in locators), folder / "pairs.parquet")
            given = {**_given(folder, bench.store_mib), "places": [], "seconds_per_image": 0.0, "block": 256}
            spent = run_ours("run_labelling.carry", given, bench.timeout_s, memory=True)
        log = spent.answer["log"]
        rate = rows / (log[-1][0] - log[1][0])
        used = max((moment["used"] for moment in spent.answer["series"]), default=0.0)
        peaks.append(spent.peak_bytes)
        results.say(f"engine_memory.{rows}.peak_mib", spent.peak_bytes / MIB, f"{rows} rows: peak", " MiB")
        results.say(f"engine_memory.{rows}.driver_mib", spent.peak_root_bytes / MIB, "  of it the driver", " MiB")
        results.say(f"engine_memory.{rows}.store_mib", used / MIB, "  of it the object store", " MiB")
        results.say(f"engine_memory.{rows}.rows_per_s", rate, "  rows per second", " /s")
        growth = _growth(spent.memory, log[1][0], log[-1][0])
        results.say(f"engine_memory.{rows}.growth", growth, "  last quarter of the labelling / second quarter")
    results.say("engine_memory.largest_to_smallest", max(peaks) / min(peaks), "largest peak / smallest peak")


def _growth(memory: Sequence[tuple[float, int]], begin: float, end: float) -> float:
    """Tell how memory grows while rows flow: the first quarter, in which pools are filled, is left out."""
    quarters: dict[int, int] = {}
    for moment, held in memory:
        if begin <= moment <= end:
            quarter = int(4 * (moment - begin) / (end - begin))
            quarters[quarter] = max(quarters.get(quarter, 0), held)
    return quarters.get(3, 0) / quarters[1] if 1 in quarters else float("nan")


def _given(folder: Path, store_mib: int) -> dict[str, Any]:
    return {"pairs": str(folder / "pairs.parquet"), "out": str(folder / "out"), "store_mib": store_mib}


def compare_backpressure(results: Results, bench: MemoryBench) -> None:
    """Fetch as fast as it goes for a teacher that is slow, and count what waits between the two."""
    print(
        f"backpressure: {', '.join(map(str, bench.pressed))} pictures of {BODY_BYTES // 1000} kB, a teacher of "
        f"{1 / bench.seconds_per_image:.0f}/s, an object store of {bench.pressed_store_mib} MiB"
    )
    most: list[float] = []
    for rows in bench.pressed:
        with scratch(bench.out) as folder, serving(folder) as server:
            urls = server.urls(rows)
            write_pairs((Pair(url, CAPTIONS[0]) for url in urls), folder / "pairs.parquet")
            server.reset()
            given = {
                **_given(folder, bench.pressed_store_mib),
                "places": [server.place],
                "seconds_per_image": bench.seconds_per_image,
                "block": bench.pressed_block,
            }
            series = run_ours("run_labelling.carry", given, bench.timeout_s).answer["series"]
        most.append(_say_pressure(results, rows, series))
    growth = max((after / before for before, after in pairwise(most)), default=1.0)
    results.say("backpressure.growth", growth, "most rows waiting, of the longer list / of the shorter")


def _say_pressure(results: Results, rows: int, series: list[dict[str, float]]) -> float:
    waiting = max(moment["fetched"] - moment["labelled"] for moment in series)
    used, spilled = (max(moment[name] for moment in series) for name in ("used", "spilled"))
    name = f"backpressure.{rows}"
    results.say(f"{name}.waiting_rows", waiting, f"{rows} rows: most that were fetched and not yet labelled")
    results.say(f"{name}.waiting_mib", waiting * BODY_BYTES / MIB, "  as they came", " MiB")
    results.say(f"{name}.store_mib", used / MIB, "  most in the object store", " MiB")
    results.say(f"{name}.spilled_mib", spilled / MIB, "  spilled to disk", " MiB")
    return waiting
