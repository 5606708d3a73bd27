"""Teacher and engine in processes of their own, as `processes.run_ours` starts them."""

import io
import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
from PIL import Image

from pipeline.download import collecting
from pipeline.labelling import Labeller
from pipeline.pseudo_label import LabelPlan, PseudoLabelConfig, pseudo_label
from pipeline.session import ray_session
from pipeline.storage import Place
from pipeline.teachers import Found, load_teacher
from tests.bench.labellers import QuickLabeller, Sleeper, TimedLabeller, read_log
from tests.bench.processes import answer
from tests.bench.run_download import collecting_config, shout


def bare(teacher: str, parquet: str, rows: int, label: dict[str, Any]) -> dict[str, float]:
    """Run the teacher alone over pictures, captions and phrases that lie in memory, in batches of one size."""
    import torch

    cfg = label_config(label)
    torch.set_num_threads(cfg.threads)
    model = load_teacher(teacher, cfg.teacher)
    labeller = Labeller(cfg, teacher, {})
    table = pq.read_table(parquet)
    stored, captions = table["image"].to_pylist(), table["caption"].to_pylist()
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in stored]
    entities = [[[(p.begin, p.end)] for p in labeller.parser(caption)] for caption in captions]
    batches = [
        [j % len(images) for j in range(i, min(i + cfg.batch_size, rows))] for i in range(0, rows, cfg.batch_size)
    ]

    def ground(batch: list[int]) -> list[Found]:
        return model.ground([images[i] for i in batch], [captions[i] for i in batch], [entities[i] for i in batch])

    ground(batches[0])
    started, cpu, found = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        found += sum(len(answer.scores) for answer in ground(batch))
    return {"loop_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu, "boxes": found}


def label_config(label: dict[str, Any]) -> PseudoLabelConfig:
    return PseudoLabelConfig(**label)


def label(
    teacher: str, pairs: str, out: str, places: Sequence[str], label: dict[str, Any], decoders: int = 2
) -> dict[str, Any]:
    """Label a list in one stream; give the times of the labeller's log."""
    log = Path(f"{out}.log")
    with ray_session(), patch("pipeline.pseudo_label.Labeller", TimedLabeller):
        cfg = collecting_config(places, decoders=decoders, blocks=(label["rows_per_block"], 4))
        manifest = pseudo_label(
            LabelPlan(cfg=label_config(label), teacher=teacher),
            collecting(cfg, Place.of(pairs)),
            Place.of(out),
            run_id=str(log),
            on_progress=shout("stream"),
        )
    return {"rows": manifest.rows_in, "labelled": manifest.rows_out, "log": read_log(log)}


def carry(
    pairs: str, out: str, places: Sequence[str], seconds_per_image: float, store_mib: int, block: int
) -> dict[str, Any]:
    """Stream a list through the engine to a teacher that is none; watch the object store."""
    log = Path(f"{out}.log")
    with (
        patch("pipeline.session.OBJECT_STORE_BYTES", store_mib << 20),
        ray_session(),
        patch("pipeline.pseudo_label.Labeller", QuickLabeller),
        patch("pipeline.pseudo_label.teacher_identity", return_value=(Sleeper.name, Sleeper.sha256)),
        watching_store(places, log) as series,
    ):
        manifest = pseudo_label(
            LabelPlan(cfg=PseudoLabelConfig(rows_per_block=block), teacher=Sleeper.name),
            collecting(collecting_config(places), Place.of(pairs)),
            Place.of(out),
            run_id=f"{log}@{seconds_per_image}",
            on_progress=shout("carry"),
        )
    return {"rows": manifest.rows_in, "labelled": manifest.rows_out, "log": read_log(log), "series": series}


@contextmanager
def watching_store(places: Sequence[str], log: Path) -> Iterator[list[dict[str, float]]]:
    """Note, twice a second, the bytes in the object store, those spilled, and the rows fetched and labelled."""
    series: list[dict[str, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            served = 0.0
            if places:
                with urllib.request.urlopen(f"http://{places[0]}/stats", timeout=10) as answer:
                    served = json.load(answer)["answers"]
            labelled = sum(rows for _, rows in read_log(log))
            used, spilled = store_bytes()
            series.append({"fetched": served, "labelled": labelled, "used": used, "spilled": spilled})

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield series
    finally:
        over.set()
        thread.join()


def store_bytes() -> tuple[float, float]:
    """Ask Ray for the bytes in the object store now, and for those spilled so far."""
    # Ray has no public way to ask for either.
    from ray._private.internal_api import get_memory_info_reply
    from ray._private.state import state

    told = get_memory_info_reply(state).store_stats
    return float(told.object_store_bytes_used), float(told.spilled_bytes_total)


if __name__ == "__main__":
    answer(bare, label, carry)
