"""The parquet file of pairs that every list and every folder of stored images becomes."""

import random
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.storage import Place

ROWS_PER_ROW_GROUP = 8192
"""Rows read or written at once; a row group is also the least that Ray gives one task to read."""

_MISSING = frozenset({"", "nan", "none", "null"})
"""What tools write, in any case and between blanks, where they had nothing to write."""


class Pair(NamedTuple):
    """A row of `schema.PAIRS` without its key; all None for a line that cannot be understood."""

    url: str | None = None
    caption: str | None = None
    stored: str | None = None


def text_or_none(value: object) -> str | None:
    """Take the text of a cell as it is; None where there is none, or a word for nothing."""
    if not isinstance(value, str) or value.strip().lower() in _MISSING:
        return None
    # JSON may hold half of a surrogate pair, which UTF-8 and so parquet cannot.
    return value.encode("utf-8", "replace").decode()


def write_pairs(pairs: Iterable[Pair], out: Place | Path, mix_rows: int = 0) -> int:
    """Write pairs as one parquet file of `schema.PAIRS` that appears only once it is whole.

    Args:
        pairs: The rows in the order of their source; a row's key is its position in it, from 0.
        out: The file to write.
        mix_rows: Rows that are held and written in a random, always equal order, so that neighbours (often of one
            host) part; 0 keeps the order.

    Returns:
        The number of rows; nothing is written if it is 0.
    """
    place = Place.of(out)
    folder = place.local.parent if place.is_local else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    rows = 0
    with tempfile.TemporaryDirectory(prefix=".pairs-", dir=folder) as beside:
        path = Path(beside) / place.name
        with pq.ParquetWriter(path, schema.PAIRS, compression="zstd", use_dictionary=False) as writer:
            keyed = _mixed(enumerate(pairs), mix_rows) if mix_rows else enumerate(pairs)
            while chunk := list(islice(keyed, ROWS_PER_ROW_GROUP)):
                keys, values = zip(*chunk, strict=True)
                writer.write_table(pa.table([keys, *zip(*values, strict=True)], schema=schema.PAIRS))
                rows += len(chunk)
        if rows and folder:
            path.replace(place.local)
        elif rows:
            pafs.copy_files(str(path), place.path, destination_filesystem=place.filesystem)
    return rows


def _mixed(rows: Iterator[tuple[int, Pair]], size: int) -> Iterator[tuple[int, Pair]]:
    order = random.Random(0)
    while held := list(islice(rows, size)):
        order.shuffle(held)
        yield from held
