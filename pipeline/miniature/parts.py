"""Drawing the files of one part of the world, in as many processes as one likes: the bytes stay the same."""

import io
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.miniature.draw import Picture, Style, draw_picture

JPEG_QUALITY = 90
_BATCH = 64
"""Pictures per piece of work."""


def encode_jpeg(image: Image.Image) -> bytes:
    """Encode a picture the usual way."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """How a picture is named and encoded."""

    name: str = "{index:08d}.jpg"
    """File name inside the part's folder; ``index`` counts from 1."""
    encode: Callable[[Image.Image], bytes] = encode_jpeg
    """A function of a module, so that it travels to other processes."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pictures that are made alike."""

    name: str
    """Unique in the world; with the seed and the number of a picture it decides the picture."""
    folder: Path
    """Where the files go."""
    count: int
    """How many pictures."""
    styles: tuple[Style, ...] = (Style(),)
    """Used in turn."""
    kinds: tuple[FileKind, ...] = (FileKind(),)
    """Used in turn."""

    def file_name(self, number: int) -> str:
        """Name the file of the picture with a number from 0."""
        return self.kinds[number % len(self.kinds)].name.format(index=number + 1)


Drawn = dict[str, list[tuple[str, Picture]]]
"""By name of part: file names and what is in them."""


def draw_parts(parts: Sequence[Part], seed: int, side_px: int, num_processes: int) -> Drawn:
    """Draw all files of some parts; the number of processes changes the time and nothing else."""
    batches = [
        _Batch(part=part, numbers=range(first, min(first + _BATCH, part.count)), seed=seed, side_px=side_px)
        for part in parts
        for first in range(0, part.count, _BATCH)
    ]
    drawn: Drawn = {part.name: [] for part in parts}
    if num_processes == 1:
        _collect(drawn, batches, map(_draw_batch, batches))
    else:
        # Spawned, because a fork of a process with threads (Ray's, a server's) may hang.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, spawn, initializer=_die_with_parent) as pool:
            _collect(drawn, batches, pool.map(_draw_batch, batches))
    return drawn


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """A piece of work for one process."""

    part: Part
    numbers: range
    seed: int
    side_px: int


def _die_with_parent() -> None:
    """Let no orphan of a killed build wait for work for ever, or write into its successor's folder."""

    def watch(parent: multiprocessing.process.BaseProcess) -> None:
        parent.join()
        os._exit(1)

    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=watch, args=(parent,), daemon=True).start()


def _draw_batch(batch: _Batch) -> list[Picture]:
    part, pictures = batch.part, []
    for number in batch.numbers:
        style = part.styles[number % len(part.styles)]
        image, picture = draw_picture(style, batch.side_px, f"{batch.seed}/{part.name}/{number}")
        path = part.folder / part.file_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(part.kinds[number % len(part.kinds)].encode(image))
        pictures.append(picture)
    return pictures


def _collect(drawn: Drawn, batches: Sequence[_Batch], results: Iterable[list[Picture]]) -> None:
    for batch, pictures in zip(batches, results, strict=True):
        names = [batch.part.file_name(number) for number in batch.numbers]
        drawn[batch.part.name] += zip(names, pictures, strict=True)
