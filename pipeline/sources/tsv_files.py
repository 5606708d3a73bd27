"""Lines of GLIP's TSV files brought together by key: what is said of a picture, its size, and the picture itself."""

import base64
import binascii
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple

from pipeline.sources.coco import Record, Row, start_row

logger = logging.getLogger(__name__)

_MAX_KEY = 4096
"""Bytes that the longest key may have."""


@dataclass(frozen=True, kw_only=True)
class TsvFiles:
    """The files of a set."""

    images: Path
    """``*.img.tsv``: key, picture in base64. In the order of the labels it is read once from end to end; in another
    one through its index, ``*.img.lineidx`` beside it, or what a first reading finds."""
    labels: Path
    """``*.label.tsv``: key, json. Its order is the order of the rows."""
    source: str
    """Name of the data set; first part of every ``sample_id``."""
    split: str
    """Name of the split; second part of every ``sample_id``."""
    sizes: Path | None = None
    """``*.hw.tsv``: key, height and width, in the order of the labels. A picture of another size is rejected."""
    line_list: Path | None = None
    """``*.linelist.tsv``: numbers from 0 of the lines of ``labels`` to read, all if None. A line listed several times
    is read once; ``copies`` of the mixture are for more."""


class Entry(NamedTuple):
    """A line of the labels."""

    number: int
    """Of the line, from 0."""
    key: str
    """Of the picture."""
    label: Any
    """What is said of it, as it was parsed."""
    where: str
    """File and line, for messages."""


def read_rows(files: TsvFiles, kind: str, describe: Callable[[Entry], Record]) -> Iterator[tuple[Entry, Row]]:
    """Begin a row with its picture, or with the reason why there is none, for each line of the labels.

    Args:
        files: What to read.
        kind: Kind of the rows.
        describe: Gives the ``id`` of an entry's row, and ``width`` and ``height`` of the picture if it knows them.

    Raises:
        ValueError: A file is not of the format.
    """
    with ExitStack() as opened:
        images = _Images(files.images, opened)
        # `start_row` takes its picture from a file.
        file = Path(opened.enter_context(TemporaryDirectory())) / "image"
        for entry, size in _read_entries(files):
            image = {"file_name": file.name, **size, **describe(entry)}
            file.unlink(missing_ok=True)
            if (encoded := images.find(entry.key)) is not None:
                file.write_bytes(_decode(encoded))
            yield entry, start_row(image, files, kind, file.parent) | {"image_uri": entry.key}


class _Images:
    """Pictures by key: the next line as long as the order is that of the labels, any other one through an index."""

    def __init__(self, path: Path, opened: ExitStack) -> None:
        self._path = path
        self._stream = opened.enter_context(_open(path))
        self._offsets: dict[bytes, int] | None = None

    def find(self, key: str) -> bytes | None:
        """Give the base64 of a picture, None if there is none."""
        if self._offsets is None:
            own, _, rest = self._stream.readline().partition(b"\t")
            if own.strip() == key.encode():
                return rest.rpartition(b"\t")[2]
            logger.info("%s has not the order of its labels; it is read through an index", self._path)
            self._offsets = self._index()
        offset = self._offsets.get(key.encode())
        if offset is None:
            return None
        self._stream.seek(offset)
        return self._stream.readline().rpartition(b"\t")[2]

    def _index(self) -> dict[bytes, int]:
        offsets: dict[bytes, int] = {}
        for offset in self._find_lines():
            self._stream.seek(offset)
            key, tab, _ = self._stream.read(_MAX_KEY).partition(b"\t")
            if not tab:
                what = f"has no key at byte {offset}, where its index has a line"
                raise ValueError(
                    f"{self._path} {what}; expected key, tab, base64 (a lineidx of another file: delete it)"
                )
            offsets.setdefault(key.strip(), offset)
        return offsets

    def _find_lines(self) -> Iterator[int]:
        index = self._path.with_suffix(".lineidx")
        if index.is_file():
            yield from _read_numbers(index)
            return
        offset = 0
        with _open(self._path) as lines:
            for line in lines:
                yield offset
                offset += len(line)


def _read_entries(files: TsvFiles) -> Iterator[tuple[Entry, Record]]:
    """Read the lines that count, each with the size of its picture as far as it is known."""
    wanted = None if files.line_list is None else set(_read_numbers(files.line_list))
    with ExitStack() as opened:
        lines = opened.enter_context(_open(files.labels))
        sizes = None if files.sizes is None else opened.enter_context(_open(files.sizes))
        for number, line in enumerate(lines):
            stated = sizes.readline() if sizes else b""
            if line.strip() and (wanted is None or number in wanted):
                where = f"{files.labels}, line {number + 1}"
                key, label = _parse_label(line, where)
                size = _parse_size(stated, key, f"{files.sizes}, line {number + 1}") if sizes else {}
                yield Entry(number=number, key=key, label=label, where=where), size


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; expected a TSV file of GLIP's family") from error


def _read_numbers(path: Path) -> list[int]:
    with _open(path) as lines:
        try:
            return [int(line) for line in lines if line.strip()]
        except ValueError as error:
            raise ValueError(f"{path}: {error}; expected a number per line") from error


def _decode(encoded: bytes) -> bytes:
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        return b""  # no picture either, and rejected as such


def _parse_label(line: bytes, where: str) -> tuple[str, Any]:
    try:
        key, label = line.split(b"\t")[:2]
        return key.decode().strip(), json.loads(label)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected a key, a tab and json") from error


def _parse_size(line: bytes, key: str, where: str) -> Record:
    try:
        own, text = line.decode().strip().split("\t")
        given = (
            json.loads(text)
            if text.startswith(("[", "{"))
            else dict(zip(("height", "width"), text.split(), strict=True))
        )
        first = given[0] if isinstance(given, list) else given
        size = {side: int(first[side]) for side in ("height", "width")}
    except (LookupError, TypeError, ValueError) as error:
        wanted = '[{"height": h, "width": w}] or h w'
        raise ValueError(f"{where} has {line[:200]!r}; expected a key, a tab and {wanted}") from error
    if own.strip() != key:
        raise ValueError(f"{where} is about {own!r}; expected {key!r}, the order of the labels (or give no sizes)")
    return size
