"""Lists of (caption, image address) as they are published, made into one parquet file of pairs.

Every line of a list becomes a row, so that the row count of all later stages can be traced back to it: a line that
cannot be understood is kept with neither address nor caption, and ends as `bad_line`. Read as they come are Conceptual
Captions (tsv without a header, the caption first or last), SBU (a json of two arrays, or two text files side by side),
COCO captions (json; a pair per caption), and tables with named columns in the usual formats.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.pairs_file import ROWS_PER_ROW_GROUP, Pair, text_or_none, write_pairs
from pipeline.sources.stored import locate_file
from pipeline.storage import Place

FORMATS = (".tsv", ".csv", ".json", ".jsonl", ".txt", ".parquet")
_TABULAR = (".tsv", ".csv")
_UNREADABLE = (OSError, EOFError, zlib.error, csv.Error, json.JSONDecodeError, RecursionError, pa.ArrowException)
_TWINS = ("_urls.txt", "_captions.txt")
_ADDRESS = re.compile(r"https?://\S", re.IGNORECASE)
_LOOKED_AT = 100
"""Lines looked at to tell how a list is made."""
_READ_BYTES = 1 << 20
"""Bytes asked for at once: the fewer requests to S3, the better."""

Row = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """A list of captioned images."""

    path: Place | Path
    """File ending in .tsv, .csv, .json, .jsonl, .parquet, or _urls.txt beside _captions.txt; text may be gzipped
    (.tsv.gz). Or a folder of .parquet files."""
    url_column: str = "url"
    """Column with the address of the image."""
    caption_column: str = "caption"
    """Column with the caption."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a tsv or csv file without a header, in their order. Not needed where there are just two:
    the one with the addresses is found by looking."""
    header: bool = True
    """Unused."""
    images: Place | Path | None = None
    """Folder with the images, if they are there already; then nothing is fetched."""
    file_column: str = "file_name"
    """Column with the name of the image in that folder; unused without one."""
    mix_rows: int = 0
    """Rows written in random order together, always the same, so that one host is not asked in a burst; 0 keeps the
    order. Keys stay positions in the list as it is."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself before a file is opened."""
        if self.columns and self.format not in _TABULAR:
            raise ValueError(f"columns is {self.columns}, but {self.path} names its columns itself; leave it out")
        if self.columns:
            self.check_columns(self.path, self.columns)
        if self.mix_rows < 0:
            raise ValueError(f"mix_rows is {self.mix_rows}; give a number of rows, or 0 to keep the order")

    @property
    def format(self) -> str:
        """Ending of the file without ``.gz``, in lower case."""
        return _ending(Place.of(self.path))

    def check_columns(self, source: object, names: Iterable[str]) -> None:
        """Refuse a list without the columns it takes.

        Raises:
            ValueError: one is missing.
        """
        given = list(names)
        for wanted in (self.file_column if self.images else self.url_column, self.caption_column):
            if wanted not in given:
                raise ValueError(
                    f"{source} has no column {wanted!r}, only {given}; name the columns of address and caption, or, if "
                    f"the file has no header, all its columns in their order"
                )

    def pair(self, row: Row | None) -> Pair:
        """Take what counts of a row; None is a line that cannot be understood."""
        if row is None:
            return Pair()
        url, caption = text_or_none(row.get(self.url_column)), text_or_none(row.get(self.caption_column))
        return Pair(url, caption, self._locate(row.get(self.file_column)) if self.images else None)

    def _locate(self, name: object) -> str | None:
        """Say where an image lies; names that lead out of the folder are none."""
        path = PurePosixPath(text_or_none(name) or "/")
        return None if path.is_absolute() or ".." in path.parts else locate_file(Place.of(f"{self.images}/{path}"))


def import_pairs(config: PairsConfig, out: Place | Path) -> int:
    """Write a list as one parquet file of `schema.PAIRS` and return the number of rows.

    The list is streamed, except .json, which is read whole; ``out`` appears only once it is whole.

    Raises:
        ValueError: the list is absent, unreadable or empty, or lacks a column.
    """
    files = _files(Place.of(config.path))
    rows = write_pairs(chain.from_iterable(_read(config, file) for file in files), out, config.mix_rows)
    if rows == 0:
        raise ValueError(f"{config.path} has no rows; give a list with at least one pair of address and caption")
    return rows


def _files(place: Place) -> list[Place]:
    if place.is_dir():
        if files := place.files(".parquet"):
            return files
        raise ValueError(f"{place} is a folder without .parquet files; give a list, or a folder of parquet files")
    if _ending(place) not in FORMATS or place.name.lower().endswith(".parquet.gz"):
        raise ValueError(
            f"{place} has no known ending; allowed are {', '.join(FORMATS)} and, for text, one of them with .gz; "
            f"rename or convert the file"
        )
    if not place.exists():
        raise ValueError(f"{place} does not exist; give the path of a {', '.join(FORMATS)} file")
    return [place]


def _ending(place: Place) -> str:
    return PurePosixPath(place.name.lower().removesuffix(".gz")).suffix


def _read(config: PairsConfig, place: Place) -> Iterator[Pair]:
    ending = _ending(place)
    try:
        yield from map(config.pair, _READERS[ending](config, place))
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{place} cannot be read as {ending} ({reason}); check that it is whole and its ending right"
        ) from error


def _read_parquet(config: PairsConfig, place: Place) -> Iterator[Row]:
    with place.open_input() as stream, pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        config.check_columns(place, names)
        wanted = [n for n in (config.url_column, config.caption_column, config.file_column) if n in names]
        for batch in file.iter_batches(ROWS_PER_ROW_GROUP, columns=wanted):
            for cells in zip(*(_texts(batch[name]) for name in wanted), strict=True):
                yield dict(zip(wanted, cells, strict=True))


def _texts(column: pa.Array) -> list[str | None]:
    """Read a column of any type as text; bytes that are no UTF-8 become U+FFFD."""
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        column = column.cast(pa.string()).cast(pa.binary())
    return [None if cell is None else cell.decode(errors="replace") for cell in column.to_pylist()]


def _read_tsv(config: PairsConfig, place: Place) -> Iterator[Row | None]:
    with ExitStack() as opened:
        # No quotes here: a caption with a single " in it would swallow the lines up to the next one.
        lines = (line.rstrip("\r\n").split("\t") for line in _lines(place, opened))
        yield from _read_table(config, place, lines)


def _read_csv(config: PairsConfig, place: Place) -> Iterator[Row | None]:
    with ExitStack() as opened:
        yield from _read_table(config, place, csv.reader(_lines(place, opened, newline="")))


def _read_table(config: PairsConfig, place: Place, lines: Iterator[list[str]]) -> Iterator[Row | None]:
    first = list(islice(lines, _LOOKED_AT))
    names = config.columns
    if first and not names:
        names = _name_columns(config, place, first)
        first = first if _has_address(first[0]) else first[1:]
    caption = names.index(config.caption_column) if names else 0
    for cells in chain(first, lines):
        extra = len(cells) - len(names)
        if extra > 0 and _ending(place) == ".tsv":  # of all columns, only captions hold tabs
            cells[caption : caption + extra + 1] = ["\t".join(cells[caption : caption + extra + 1])]
        yield dict(zip(names, cells, strict=True)) if len(cells) == len(names) else None


def _name_columns(config: PairsConfig, place: Place, lines: Sequence[list[str]]) -> tuple[str, ...]:
    """Name the columns by the header or, in a file of two columns without one, by where the addresses are."""
    if not _has_address(lines[0]):
        header = tuple(cell.strip() for cell in lines[0])
        config.check_columns(place, header)
        return header
    half = len(lines) / 2
    first, last = (sum(bool(cells and _ADDRESS.match(cells[end])) for cells in lines) >= half for end in (0, -1))
    if first == last or sum(len(cells) > 2 for cells in lines) >= half:
        raise ValueError(
            f"{place} has no header, and its first {len(lines)} lines do not tell which column is which; give the "
            f"names of all its columns in their order, such as caption url"
        )
    return (config.url_column, config.caption_column) if first else (config.caption_column, config.url_column)


def _has_address(cells: Sequence[str]) -> bool:
    return any(map(_ADDRESS.match, cells))


def _read_jsonl(config: PairsConfig, place: Place) -> Iterator[Row | None]:
    with ExitStack() as opened:
        yield from _read_objects(config, place, map(_parse_line, _lines(place, opened)))


def _read_objects(config: PairsConfig, place: Place, values: Iterable[object]) -> Iterator[Row | None]:
    rows = (value if isinstance(value, dict) else None for value in values)
    first = list(islice(rows, _LOOKED_AT))
    if any(first):
        config.check_columns(place, dict.fromkeys(name for row in first if row for name in row))
    yield from chain(first, rows)


def _parse_line(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _read_json(config: PairsConfig, place: Place) -> Iterator[Row | None]:
    with ExitStack() as opened:
        value = json.load(_lines(place, opened))
    if isinstance(value, dict) and {"images", "annotations"} <= value.keys():
        return _read_coco(config, place, value)
    if isinstance(value, dict):
        value = _turn_columns(config, place, value)
    if not isinstance(value, list):
        raise ValueError(
            f"{place} holds a {type(value).__name__}; give an array of objects, an object of equally long arrays, or "
            f"COCO's captions"
        )
    return _read_objects(config, place, value)


def _turn_columns(config: PairsConfig, place: Place, value: dict[str, Any]) -> list[dict[str, Any]]:
    """Make rows of an object of arrays; SBU's own names are taken for ours."""
    ours = {"image_urls": config.url_column, "captions": config.caption_column}
    arrays = {name: cells for name, cells in value.items() if isinstance(cells, list)}
    if len({len(cells) for cells in arrays.values()}) != 1:
        sizes = {name: len(cells) for name, cells in arrays.items()}
        raise ValueError(
            f"{place} holds an object with arrays of lengths {sizes}; give equally long ones, or an array of objects"
        )
    names = [name if name in (config.url_column, config.caption_column) else ours.get(name, name) for name in arrays]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*arrays.values(), strict=True)]


def _read_coco(config: PairsConfig, place: Place, value: Mapping[str, Any]) -> Iterator[Row]:
    if value["annotations"] and not any("caption" in note for note in value["annotations"]):
        raise ValueError(f"{place} is a COCO file whose annotations have no caption; give its captions_*.json")
    images = {image["id"]: image for image in value["images"]}
    for note in value["annotations"]:
        image = images.get(note.get("image_id"), {})
        url = next((image[name] for name in ("coco_url", "url", "flickr_url") if image.get(name)), None)
        yield {
            config.url_column: url,
            config.caption_column: note.get("caption"),
            config.file_column: image.get("file_name"),
        }


def _read_twins(config: PairsConfig, place: Place) -> Iterator[Row]:
    stem = next((place.name.partition(end)[0] for end in _TWINS if end in place.name), None)
    if stem is None:
        raise ValueError(f"{place} holds addresses or captions alone; name two files X_urls.txt and X_captions.txt")
    end = ".gz" if place.name.endswith(".gz") else ""
    files = [place.parent / f"{stem}{name}{end}" for name in _TWINS]
    with ExitStack() as opened:
        for url, caption in zip_longest(*(_lines(file, opened) for file in files)):
            if url is None or caption is None:
                raise ValueError(f"{files[0]} and {files[1].name} have not equally many lines; get both files again")
            yield {config.url_column: url.rstrip("\r\n"), config.caption_column: caption.rstrip("\r\n")}


def _lines(place: Place, opened: ExitStack, newline: str = "\n") -> io.TextIOWrapper:
    """Open a text file; bytes that are no UTF-8 become U+FFFD: one odd caption must not cost the list."""
    stream = opened.enter_context(io.BufferedReader(cast("io.RawIOBase", place.open_input()), _READ_BYTES))
    binary = opened.enter_context(gzip.GzipFile(fileobj=stream)) if place.name.lower().endswith(".gz") else stream
    return opened.enter_context(
        io.TextIOWrapper(cast("io.BufferedReader", binary), encoding="utf-8-sig", errors="replace", newline=newline)
    )


_READERS = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".txt": _read_twins,
    ".parquet": _read_parquet,
}
