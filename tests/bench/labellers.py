"""Labellers that keep a log of when they were done with which rows. Imported by Ray's workers, so in a module apart."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
from PIL import Image

from pipeline.labelling import LabelConfig, Labeller
from pipeline.teachers import Found


class TimedLabeller(Labeller):
    """A labeller that notes when its first block came, and after each block when it was done and how long it is."""

    def __init__(self, cfg: LabelConfig, teacher_ref: str, provenance: dict[str, str]) -> None:
        self._log = Path(provenance["run_id"])
        super().__init__(cfg, teacher_ref, {**provenance, "run_id": "bench"})
        self._note(0)

    def _note(self, rows: int) -> None:
        with self._log.open("a", encoding="ascii") as stream:
            stream.write(f"{time.time()} {rows}\n")

    def __call__(self, images: pa.Table) -> pa.Table:
        self._note(0)
        table = super().__call__(images)
        self._note(len(table))
        return table


class QuickLabeller(TimedLabeller):
    """A labeller whose teacher finds one box at once, or after a pause: ``run_id`` is ``log`` or ``log@seconds``."""

    def __init__(self, cfg: LabelConfig, teacher_ref: str, provenance: dict[str, str]) -> None:
        log, _, seconds = provenance["run_id"].partition("@")
        with patch("pipeline.labelling.load_teacher", return_value=Sleeper(float(seconds or 0))):
            super().__init__(cfg, teacher_ref, {**provenance, "run_id": log})


class Sleeper:
    """A teacher that takes its time, and no CPU."""

    name, sha256 = "sleeper", "0" * 64

    def __init__(self, seconds_per_image: float) -> None:
        self._seconds = seconds_per_image
        self._one = threading.Lock()

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def ground(self, images: Sequence[Image.Image], captions: Sequence[str], entities: Sequence[Any]) -> list[Found]:
        with self._one:
            time.sleep(self._seconds * len(images))
        return [Found(boxes_xyxy=[[1.0, 1.0, 9.0, 9.0]], scores=[0.9], entities=[0]) for _ in images]


def read_log(path: Path) -> list[tuple[float, int]]:
    """Read a labeller's log: times, and the rows done at each."""
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return [(float(line.split()[0]), int(line.split()[1])) for line in lines]
