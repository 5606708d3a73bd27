"""Training on this machine: images per second with one worker and two, what a step is made of, and memory per image."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from glipv2.text.tokenizer import make_vocabulary
from tests.bench.labelling import WORDS
from tests.bench.processes import run, run_ours, scratch
from tests.bench.run_training import NAMES, PARTS, write_shards
from tests.bench.timing import Results

SIZES = {"nano": (16, 8, "128 px"), "t": (1, 3, "400 px")}
"""Images per worker and step, steps that count, and the short side."""

GPU_BATCHES = (1, 2, 4, 8, 16, 32, 64)
GPU_STEPS = 10
GPU_TOLD = {"images_per_s": " /s", "data_wait": "", "memory_gb": " GB", "tflops": " TFLOP/s", "mfu": ""}


@dataclass(frozen=True, kw_only=True)
class TrainingBench:
    """Where, and for how long."""

    out: Path
    rows: int = 128
    timeout_s: float = 900.0
    """Of one worker."""


def compare_workers(results: Results, bench: TrainingBench) -> None:
    """Train for some steps with one worker and with two, one thread each, and take the steps apart."""
    with scratch(bench.out) as folder:
        given = prepare(folder, bench.rows)
        for size, (batch, steps, side) in SIZES.items():
            rates = []
            for world in (1, 2):
                print(f"training, {size} at {side}, {world} x {batch} images a step, one thread for each worker")
                work = {**given, "size": size, "batch": batch, "steps": steps}
                with ThreadPoolExecutor(world) as pool:
                    found, *_ = pool.map(partial(_worker, work, world, bench.timeout_s), range(world))
                for part in PARTS:
                    name = part.replace("_", "-")
                    results.say(f"training.{size}.{world}.{part}_ms", 1000 * found[part], f"  {name}, per step", " ms")
                rates.append(found["images_per_s"])
                results.say(f"training.{size}.{world}.images_per_s", rates[-1], "images per second, all workers", " /s")
            results.say(f"training.{size}.scaling", rates[1] / rates[0] / 2, "two workers: efficiency")


def compare_training_memory(results: Results, bench: TrainingBench) -> None:
    """Weigh two steps of GLIP-T with one image and with two: what another image takes."""
    print("memory of training GLIP-T at 400 px, one step after the other; an image at 800 px takes four times as much")
    with scratch(bench.out) as folder:
        given = prepare(folder, bench.rows)
        for name, recompute in (("kept", False), ("recomputed", True)):
            one, two = (
                run_ours("run_training.remember", {**given, "batch": n, "recompute": recompute}, bench.timeout_s)
                for n in (1, 2)
            )
            peak, more = one.answer["peak_gib"], two.answer["peak_gib"] - one.answer["peak_gib"]
            results.say(f"training.t.{name}.peak_gib", peak, f"activations {name}: one image, with weights", " GiB")
            results.say(f"training.t.{name}.image_gib", more, "  another image", " GiB")


def measure_gpu_training(results: Results, bench: TrainingBench, size: str = "t", device: str = "cuda:0") -> None:
    """Train GLIP-T at 800 px in bfloat16 on one GPU, with twice as many images a step until its memory does not do."""
    print(f"training, {size} on {device}, pictures of 800 x 1000 px, bfloat16 on a GPU, {GPU_STEPS} steps each")
    with scratch(bench.out) as folder:
        paths = list(prepare(folder, bench.rows).values())
        given = {"paths": paths, "size": size, "steps": GPU_STEPS, "device": device}
        for name, recompute in (("kept", False), ("recomputed", True)):
            for batch in GPU_BATCHES:
                work = {**given, "batch": batch, "recompute": recompute}
                found = run_ours("run_training.account", work, bench.timeout_s).answer
                if not found:
                    print(f"  activations {name}, {batch} images a step: more than the GPU's memory")
                    break
                for key, unit in GPU_TOLD.items():
                    if key in found:
                        text = f"  activations {name}, {batch} images a step: {key}"
                        results.say(f"training_gpu.{size}.{name}.{batch}.{key}", found[key], text, unit)


def ablate_quickly(results: Results, bench: TrainingBench) -> None:
    """Run the paper's ablation in its smallest form that learns something: one seed, three rows."""
    print("ablation in small, one seed: what captions and masking do")
    with scratch(bench.out) as folder:
        command = [sys.executable, "-m", "jobs.ablate", "quick", "--out", str(folder / "ablation")]
        run(command, {}, 2 * bench.timeout_s)
        scores = json.loads((folder / "ablation" / "ablation.json").read_text(encoding="utf-8"))["scores"]
    for row, [found] in scores.items():
        for column in ("base", "novel"):
            results.say(f"ablation.{row}.{column}", found[column], f"{row}: AP50 of {column} nouns", " %")


def prepare(folder: Path, rows: int) -> dict[str, Any]:
    """Write shards to train on, and their vocabulary."""
    write_shards(folder / "shards", rows)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(make_vocabulary([*WORDS, *NAMES])) + "\n", encoding="utf-8")
    return {"shards": str(folder / "shards"), "vocabulary": str(vocabulary)}


def _worker(given: dict[str, Any], world: int, timeout_s: float, rank: int) -> dict[str, Any]:
    return run_ours("run_training.work", {**given, "place": [rank, world]}, timeout_s).answer
