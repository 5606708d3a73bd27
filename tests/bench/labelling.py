"""What the engine adds to its teacher: rows per second from list to shards, against the teacher alone."""

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from glipv2 import checkpoint
from glipv2.config import glip_t, nano
from glipv2.model.glipv2 import GLIPv2
from glipv2.text.tokenizer import WordPiece, make_vocabulary
from pipeline.sources.pairs_file import Pair, write_pairs
from pipeline.sources.stored import locate_cell
from pipeline.storage import Place
from tests.bench.loopback_server import BODY_BYTES, Server, make_pictures, serving
from tests.bench.processes import Spent, run_ours, scratch
from tests.bench.timing import Results

CAPTIONS = (
    "A man in a red coat walks two dogs along a stony beach.",
    "Two cats sleep on a pink sofa beside a remote control.",
    "An old wooden boat lies on the grass in front of a white house.",
    "Several people wait at a bus stop with their bags and umbrellas.",
)
WORDS = sorted({word.strip(".").lower() for caption in CAPTIONS for word in caption.split()})
DISTINCT = 64


@dataclass(frozen=True, kw_only=True)
class LabelBench:
    """How much is labelled, and by what."""

    out: Path
    rows: int = 1000
    """On a GPU ten times as many."""
    rounds: int = 2
    teacher_px: int = 416
    """Short side that pictures have in the nano teacher: more than its own 128, so that one takes 50 ms or more."""
    threads: int = 1
    """CPU threads of the teacher, with and without the engine."""
    rows_per_block: int = 64
    """Small, as the rows are few: the first and last block of a run are not worked on beside another."""
    timeout_s: float = 900.0
    """Of one run."""


def compare_labelling(results: Results, bench: LabelBench) -> None:
    """Label a list streamed from a server and from stored pictures, and run the teacher alone."""
    compare_with(results, bench, "cpu")
    if torch.cuda.is_available():
        compare_with(results, replace(bench, rows=10 * bench.rows, rows_per_block=256), "cuda")


def compare_with(results: Results, bench: LabelBench, device: str) -> None:
    """Measure on one device."""
    what = f"nano at {bench.teacher_px} px" if device == "cpu" else "GLIP-T in bfloat16"
    print(f"labelling, {device}: {bench.rows} pictures of 500 x 400 px, {what}, {bench.rounds} rounds")
    with scratch(bench.out) as folder, serving(folder, count=DISTINCT) as server:
        given = _prepare(bench, device, folder, server)
        runs: dict[str, list[dict[str, float]]] = {"bare": [], "streamed": [], "stored": []}
        for number in range(bench.rounds):
            runs["bare"].append(_bare(bench, folder, given))
            for way in ("streamed", "stored"):
                runs[way].append(_engine(bench, given, folder / f"{way}.parquet", folder / f"{way}-{number}", server))
            print("    " + ", ".join(f"{way} {own[-1]['steady']:.2f}/s" for way, own in runs.items()), flush=True)
    _say(results, device, runs)


def _prepare(bench: LabelBench, device: str, folder: Path, server: Server) -> dict[str, Any]:
    """Save a teacher that finds something everywhere, the pictures, and the list in two forms."""
    words = make_vocabulary(WORDS)
    side = bench.teacher_px
    small = replace(nano(len(words)), min_size_px=side, max_size_px=2 * side)
    torch.manual_seed(0)
    model = GLIPv2(small if device == "cpu" else replace(glip_t(), vocab_size=len(words)))
    torch.nn.init.zeros_(model.head.bias)
    checkpoint.save(model, WordPiece(words, model.cfg.max_tokens), folder / "teacher")
    pictures = make_pictures(DISTINCT, 500, 400, BODY_BYTES)
    captions = [CAPTIONS[i % len(CAPTIONS)] for i in range(bench.rows)]
    pq.write_table(pa.table({"image": pictures, "caption": captions[:DISTINCT]}), folder / "distinct.parquet")
    write_pairs(
        (Pair(*pair) for pair in zip(server.urls(bench.rows), captions, strict=True)), folder / "streamed.parquet"
    )
    locators = store(folder / "pictures.parquet", pictures, bench.rows)
    stored = (Pair(None, caption, locator) for caption, locator in zip(captions, locators, strict=True))
    write_pairs(stored, folder / "stored.parquet")
    label = {
        "rows_per_block": bench.rows_per_block,
        "threads": bench.threads,
        "max_boxes": 10,
        "num_gpus": 1.0 if device == "cuda" else 0.0,
    }
    return {"teacher": str(folder / "teacher"), "label": label}


def store(path: Path, pictures: list[bytes], rows: int, group: int = 128) -> Iterator[str]:
    """Write a parquet file of pictures, the same ones again and again, and give the locator of each row."""
    with pq.ParquetWriter(
        path, pa.schema([("image", pa.binary())]), compression="none", use_dictionary=False
    ) as writer:
        for first in range(0, rows, group):
            cells = [pictures[i % len(pictures)] for i in range(first, min(first + group, rows))]
            writer.write_table(pa.table({"image": pa.array(cells, pa.binary())}))
    return (locate_cell(Place.of(path), i // group, i % group, "image") for i in range(rows))


def _bare(bench: LabelBench, folder: Path, given: dict[str, Any]) -> dict[str, float]:
    spent = run_ours(
        "run_labelling.bare",
        {**given, "parquet": str(folder / "distinct.parquet"), "rows": bench.rows},
        bench.timeout_s,
    )
    loop_s, cpu_s = spent.answer["loop_s"], spent.answer["cpu_s"]
    return {
        "whole": bench.rows / spent.wall_s,
        "steady": bench.rows / loop_s,
        "ms": 1000 * loop_s / bench.rows,
        "cpu_ms": 1000 * cpu_s / bench.rows,
    }


def _engine(bench: LabelBench, given: dict[str, Any], pairs: Path, out: Path, server: Server) -> dict[str, float]:
    with _watching_gpu() as samples:
        spent = run_ours(
            "run_labelling.label",
            {**given, "pairs": str(pairs), "out": str(out), "places": [server.place]},
            bench.timeout_s,
        )
    if spent.answer["labelled"] != bench.rows:
        raise AssertionError(f"{out}: {spent.answer['labelled']} of {bench.rows} rows have labels")
    begin, end = _window(spent)
    busy = [share for moment, share in samples if begin <= moment <= end]
    idle = {"gpu_idle": 1 - statistics.mean(busy)} if busy else {}
    cpu = {"cpu_ms": 1000 * spent.cpu / bench.rows}
    return {"whole": bench.rows / spent.wall_s, "steady": bench.rows / (end - begin), **idle, **cpu}


def _window(spent: Spent) -> tuple[float, float]:
    """Tell when the first block came to the teacher and when the last one was done."""
    log = spent.answer["log"]
    return log[1][0], log[-1][0]  # the first line is of the constructor


@contextmanager
def _watching_gpu() -> Iterator[list[tuple[float, float]]]:
    """Note the busy share of the first GPU twice a second, where there is one."""
    samples: list[tuple[float, float]] = []
    if not torch.cuda.is_available():
        yield samples
        return
    query = ["nvidia-smi", "-i", "0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "500"]
    process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)

    def read() -> None:
        for line in process.stdout or ():
            if line.strip().isdigit():
                samples.append((time.time(), int(line) / 100))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        process.terminate()
        process.wait()
        thread.join()


def _say(results: Results, device: str, runs: dict[str, list[dict[str, float]]]) -> None:
    def median(way: str, name: str) -> float:
        return statistics.median(run[name] for run in runs[way])

    results.say(f"labelling.{device}.teacher_ms", median("bare", "ms"), "the teacher alone, per image", " ms")
    results.say(f"labelling.{device}.teacher_cpu_ms", median("bare", "cpu_ms"), "  of it CPU", " ms")
    for name, text in (("steady", "start-up left out"), ("whole", "start-up included")):
        results.say(f"labelling.{device}.bare.{name}", median("bare", name), f"the teacher alone, {text}", " /s")
        for way in ("streamed", "stored"):
            rate = median(way, name)
            results.say(f"labelling.{device}.{way}.{name}", rate, f"engine, {way}, {text}", " /s")
            share = rate / median("bare", name)
            results.say(f"labelling.{device}.{way}.{name}_ratio", share, "  of the teacher alone")
    for way in ("streamed", "stored"):
        results.say(f"labelling.{device}.{way}.cpu_ms", median(way, "cpu_ms"), f"engine, {way}, CPU per row", " ms")
        if device == "cuda":
            results.say(f"labelling.{device}.{way}.gpu_idle", median(way, "gpu_idle"), f"engine, {way}, GPU idle share")
