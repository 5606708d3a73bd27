"""The download stage against img2dataset's own command line: one server, one list, the same pixels, in turns."""

import io
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from PIL import Image

from pipeline.sources.pairs_file import Pair, write_pairs
from tests.bench.loopback_server import Server, serving
from tests.bench.processes import Spent, run, run_ours, scratch
from tests.bench.timing import Results

SLOW_EVERY = 50
"""One address of so many takes seconds: 2 %."""
SETTINGS = {"http": (False, 0), "https": (True, 0), "slow": (False, SLOW_EVERY)}
"""Name of each setting, whether it has TLS, and how often an address is slow."""
COMPARED = 20
"""Pictures whose pixels are compared."""
JPEG_NOISE = 2.0
"""Largest mean difference of two pictures, of 255, that may pass for the same pixels."""


@dataclass(frozen=True, kw_only=True)
class DownloadBench:
    """How much is downloaded, and how."""

    out: Path
    rows: int = 20_000
    rounds: int = 2
    settings: Sequence[str] = tuple(SETTINGS)
    num_actors: int = 1
    decoders: int = 2
    blocks: tuple[int, int] = (500, 4)
    """Rows of a block, and blocks at once per actor."""
    timeout_s: float = 900.0
    """Of one run."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One contender's numbers, of one run."""

    whole: float
    """Rows per second of the whole process."""
    steady: float
    """Rows per second from the server's first request to the last file."""
    cpu_ms: float
    """CPU-milliseconds per row, of the whole process tree."""
    server_share: float
    """CPUs the server took between first request and last file."""


def compare_downloads(results: Results, bench: DownloadBench) -> None:
    """Download a list with both, in every setting."""
    for name in bench.settings:
        tls, slow_every = SETTINGS[name]
        print(f"download, {name}: {bench.rows} pictures of 500 x 400 px, {bench.rounds} rounds")
        with scratch(bench.out) as folder, serving(folder, tls=tls) as server:
            _compare(results, bench, name, (server, slow_every), folder)


def _compare(results: Results, bench: DownloadBench, name: str, served: tuple[Server, int], folder: Path) -> None:
    server, slow_every = served
    urls = server.urls(bench.rows, slow_every)
    write_pairs((Pair(url, "a picture") for url in urls), folder / "pairs.parquet")
    pq.write_table(pa.table({"url": urls, "caption": ["a picture"] * len(urls)}), folder / "list.parquet")
    ways: dict[str, Callable[[Path], Spent]] = {
        "ours": lambda out: _ours(bench, server, folder, out),
        "img2dataset": lambda out: _theirs(bench, server, folder, out),
    }
    runs: dict[str, list[_Run]] = {way: [] for way in ways}
    for number in range(bench.rounds):
        for way, start in ways.items():
            out = folder / f"{way}-{number}"
            runs[way].append(_measure(bench, server, out, start))
            last = runs[way][-1]
            print(f"    {way}: {last.whole:.0f} rows/s, {last.steady:.0f} without start-up", flush=True)
    _check_pixels(folder / "ours-0", folder / "img2dataset-0", len(urls))
    _say(results, name, runs)


def _ours(bench: DownloadBench, server: Server, folder: Path, out: Path) -> Spent:
    given = {
        "pairs": str(folder / "pairs.parquet"),
        "out": str(out),
        "places": [server.place],
        "num_actors": bench.num_actors,
        "decoders": bench.decoders,
        "blocks": bench.blocks,
    }
    return run_ours("run_download.download", given, bench.timeout_s, environment=server.environment)


def _theirs(bench: DownloadBench, server: Server, folder: Path, out: Path) -> Spent:
    options = {
        "url_list": folder / "list.parquet",
        "input_format": "parquet",
        "output_folder": out,
        "output_format": "parquet",
        "caption_col": "caption",
        "processes_count": 2,
        "thread_count": 32,
        "image_size": 384,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "encode_quality": 95,
        "number_sample_per_shard": 1000,
        "extract_exif": False,  # ours stores none; its hash of the bytes stays on, as ours has one too
    }
    command = [str(Path(sys.executable).with_name("img2dataset")), *(f"--{k}={v}" for k, v in options.items())]
    return run(command, server.environment, bench.timeout_s)


def _measure(bench: DownloadBench, server: Server, out: Path, start: Callable[[Path], Spent]) -> _Run:
    before = server.reset()
    spent = start(out)
    server_cpu = server.stats()["cpu_s"] - before
    files = list(out.rglob("*.parquet"))
    seconds = max(file.stat().st_mtime for file in files) - server.stats()["first"]
    kept = sum(pc.sum(pc.equal(pq.read_table(f, columns=["status"])["status"], "success")).as_py() for f in files)
    if kept != bench.rows:
        raise AssertionError(f"{out}: {kept} of {bench.rows} pictures arrived, so its time means nothing")
    return _Run(
        whole=bench.rows / spent.wall_s,
        steady=bench.rows / seconds,
        cpu_ms=1000 * spent.cpu / bench.rows,
        server_share=server_cpu / seconds,
    )


def _check_pixels(ours: Path, theirs: Path, rows: int) -> None:
    """Compare some pictures of both.

    Raises:
        AssertionError: they are not the same pictures, so their times compare nothing.
    """
    wanted = list(range(0, rows, max(1, rows // COMPARED)))
    mine = _pictures(ours, "image", wanted)
    other = _pictures(theirs, "jpg", wanted)
    worst = 0.0
    for index in wanted:
        pixels, others = (np.asarray(Image.open(io.BytesIO(p[index])), np.float32) for p in (mine, other))
        if pixels.shape != others.shape:
            raise AssertionError(f"picture {index}: ours is {pixels.shape}, theirs {others.shape}")
        worst = max(worst, float(np.abs(pixels - others).mean()))
    print(f"    largest mean difference of {len(wanted)} pictures: {worst:.3f} of 255")
    if worst > JPEG_NOISE:
        raise AssertionError(f"pictures differ by {worst:.1f} of 255 in the mean; they are not the same")


def _pictures(folder: Path, column: str, wanted: list[int]) -> dict[int, bytes]:
    """Read pictures by the number at the end of their address."""
    dataset = pads.dataset([str(file) for file in folder.rglob("*.parquet")], format="parquet")
    found: dict[int, bytes] = {}
    for batch in dataset.to_batches(columns=["url", column], batch_size=256):
        numbers = [int(url.rpartition("/")[2]) for url in batch["url"].to_pylist()]
        for row in np.flatnonzero(np.isin(numbers, wanted)):
            cell = batch[column][int(row)].as_py()
            found[numbers[row]] = cell["bytes"] if isinstance(cell, dict) else cell
    return found


def _say(results: Results, name: str, runs: dict[str, list[_Run]]) -> None:
    texts = {
        "whole": ("start-up included", " /s"),
        "steady": ("from first request to last file", " /s"),
        "cpu_ms": ("CPU per row, all processes", " ms"),
        "server_share": ("CPUs the server took", ""),
    }
    for field, (text, unit) in texts.items():
        medians = {way: statistics.median(getattr(r, field) for r in own) for way, own in runs.items()}
        for way, value in medians.items():
            results.say(f"download.{name}.{way}.{field}", value, f"{way}: {text}", unit)
        if field in ("whole", "steady"):
            ratio = medians["ours"] / medians["img2dataset"]
            results.say(f"download.{name}.{field}_ratio", ratio, f"ours / img2dataset, {text}")
