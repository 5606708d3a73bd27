"""Images that lie somewhere already: their locators, and the reader that gives their bytes.

A locator is a URI that says all there is to know:

``file:///d/a.jpg``                                             a file
``s3://b/00000.tar#offset=1536&bytes=70211``                    a member of an uncompressed tar
``s3://b/00000.parquet#group=2&row=17&column=image.bytes``      a cell of a parquet file
``file:///d/00000.parquet#missing``                             an image that its data set is known to lack

Nothing is ever unpacked to disk, and names inside archives are never used as paths.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qsl, quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage import Place

MISSING, UNREADABLE, TOO_LARGE = "stored_missing", "stored_unreadable", "stored_too_large"
"""Why there are no bytes: nothing is there; it cannot be read as the locator says; it is above the cap."""

MAX_CACHED_BYTES = 64 << 20
"""Row groups a reader keeps; the one in use is kept whatever its size."""

_MISSING_MARK = "missing"


def locate_file(place: Place) -> str:
    """Name a whole file."""
    return f"file://{quote(place.path)}" if place.is_local else f"s3://{quote(place.path)}"


def locate_range(place: Place, offset: int, size: int) -> str:
    """Name a range of bytes of a file."""
    return f"{locate_file(place)}#offset={offset}&bytes={size}"


def locate_cell(place: Place, group: int, row: int, column: str) -> str:
    """Name a cell of a parquet file: its row group, its row in it, and the dotted path of a binary column."""
    return f"{locate_file(place)}#group={group}&row={row}&column={quote(column)}"


def locate_missing(place: Place) -> str:
    """Name an image that is known to be absent from the data set that this file belongs to."""
    return f"{locate_file(place)}#{_MISSING_MARK}"


def is_missing(locator: str) -> bool:
    """Tell whether an image is known to be absent."""
    return locator.endswith(f"#{_MISSING_MARK}")


@dataclass(frozen=True)
class _Group:
    """A column of a row group, in memory."""

    cells: pa.ChunkedArray
    num_bytes: int


class StoredReader:
    """Reads images by locator, from any number of threads; made once per process, as it keeps files and row groups.

    Rows read in order cost one read of each row group. Memory: `MAX_CACHED_BYTES` and a row group.
    """

    def __init__(self, max_bytes: int) -> None:
        """Set the cap.

        Args:
            max_bytes: Largest image; a larger one is refused before it is read.
        """
        self._max_bytes = max_bytes
        self._groups: OrderedDict[tuple[str, int, str], _Group] = OrderedDict()
        self._lock = threading.Lock()  # one thread reads a row group, the others wait for it instead of reading it too
        self._opened = threading.local()

    def read(self, locator: str) -> bytes | str:
        """Give the bytes of an image, or the reason why there are none."""
        uri, _, fragment = locator.partition("#")
        if fragment == _MISSING_MARK:
            return MISSING
        where = dict(parse_qsl(fragment))
        try:
            place = Place.of(unquote(uri.removeprefix("file://")))
            if where.keys() == {"group", "row", "column"}:
                return self._read_cell(place, where)
            if where.keys() == {"offset", "bytes"}:
                return self._read_range(place, int(where["offset"]), int(where["bytes"]))
            return UNREADABLE if fragment else self._read_file(place)
        except FileNotFoundError:
            return MISSING
        except (OSError, ValueError, IndexError, KeyError, pa.ArrowException):
            return UNREADABLE

    def _read_file(self, place: Place) -> bytes | str:
        with place.open_input() as stream:
            if stream.size() > self._max_bytes:
                return TOO_LARGE
            return cast("bytes", stream.read())

    def _read_range(self, place: Place, offset: int, size: int) -> bytes | str:
        if size > self._max_bytes:
            return TOO_LARGE
        data = cast("bytes", self._open(place).read_at(size, offset))
        return data if len(data) == size else UNREADABLE

    def _open(self, place: Place) -> pa.NativeFile:
        """Open a file, or give it again: rows in order come from one file after the other."""
        last: tuple[Place, pa.NativeFile] | None = getattr(self._opened, "last", None)
        if last is None or last[0] != place:
            last = self._opened.last = (place, place.open_input())
        return last[1]

    def _read_cell(self, place: Place, where: Mapping[str, str]) -> bytes | str:
        group, row, column = int(where["group"]), int(where["row"]), where["column"]
        with self._lock:
            cell = self._read_group(place, group, column)[row]
        if not cell.is_valid:
            return MISSING
        if cell.as_buffer().size > self._max_bytes:
            return TOO_LARGE
        return cast("bytes", cell.as_py())

    def _read_group(self, place: Place, group: int, column: str) -> pa.ChunkedArray:
        key = (str(place), group, column)
        if key not in self._groups:
            with place.open_input() as stream, pq.ParquetFile(stream) as file:
                cells = file.read_row_group(group, columns=[column]).column(0)
            if pa.types.is_struct(cells.type):
                cells = pc.struct_field(cells, column.rpartition(".")[2])
            self._groups[key] = _Group(cells, cells.nbytes)
        self._groups.move_to_end(key)
        while len(self._groups) > 1 and sum(kept.num_bytes for kept in self._groups.values()) > MAX_CACHED_BYTES:
            self._groups.popitem(last=False)
        return self._groups[key].cells
