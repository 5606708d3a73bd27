"""Lists of (caption, image address) in any usual file format, made into one parquet file of pairs.

Every line of the file becomes a row, so that the row count of all later stages can be traced back to it: a line that
cannot be understood is kept with neither address nor caption, and ends as `bad_line` when it is downloaded.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema

FORMATS = (".tsv", ".csv", ".json", ".jsonl", ".parquet")
_TABULAR = (".tsv", ".csv")
_UNREADABLE = (OSError, EOFError, zlib.error, csv.Error, json.JSONDecodeError, pa.ArrowException)
_ROWS_PER_WRITE = 10_000

Pair = tuple[str | None, str | None]
"""Address and caption of one image; both None for a line that cannot be understood."""

_BAD_LINE: Pair = (None, None)


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """A list of captioned image addresses.

    Conceptual Captions has no header: CC3M is ``header=False, columns=("caption", "url")``, CC12M the other way round.
    """

    path: Path
    """File ending in .tsv, .csv, .json (an array of objects), .jsonl or .parquet; text may be gzipped (.tsv.gz)."""
    url_column: str = "url"
    """Column with the address of the image."""
    caption_column: str = "caption"
    """Column with the caption."""
    header: bool = True
    """Whether the first line of a tsv or csv file names its columns."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a tsv or csv file without a header, in their order."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself before a file is opened."""
        if self.format not in FORMATS or (self.format == ".parquet" and self.path.suffix == ".gz"):
            raise ValueError(
                f"{self.path} has no known ending; allowed are {', '.join(FORMATS)} and, for text, one of them with "
                f".gz; rename or convert the file"
            )
        if self.header == bool(self.columns):
            raise ValueError(
                f"header is {self.header} and columns is {self.columns}; give columns for a file without a header "
                f"(header=False), and only for such a file"
            )
        if self.columns and self.format not in _TABULAR:
            raise ValueError(f"columns is {self.columns}, but {self.format} files name their columns; leave it out")
        if self.columns:
            _check_columns(self, self.columns)

    @property
    def format(self) -> str:
        """Ending of the file without ``.gz``, in lower case."""
        name = self.path.name.lower().removesuffix(".gz")
        return Path(name).suffix


def import_pairs(config: PairsConfig, out: Path) -> int:
    """Write a list as one parquet file of `schema.PAIRS` and return the number of rows.

    The file is streamed (except a JSON array); ``out`` appears only once it is whole.

    Raises:
        ValueError: the file is absent, unreadable or empty, or lacks a column.
    """
    if not config.path.is_file():
        what = "is a folder" if config.path.is_dir() else "does not exist"
        raise ValueError(f"{config.path} {what}; give the path of a {', '.join(FORMATS)} file")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.unfinished")
    try:
        with closing(_read(config)) as pairs, pq.ParquetWriter(beside, schema.PAIRS, compression="zstd") as writer:
            rows = _write(pairs, writer)
        if rows == 0:
            raise ValueError(f"{config.path} has no rows; give a file with at least one pair of address and caption")
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    return rows


def _write(pairs: Iterator[Pair], writer: pq.ParquetWriter) -> int:
    rows = 0
    while chunk := list(islice(pairs, _ROWS_PER_WRITE)):
        keys = range(rows, rows + len(chunk))
        urls, captions = zip(*chunk, strict=True)
        writer.write(pa.table([keys, urls, captions], schema=schema.PAIRS))
        rows += len(chunk)
    return rows


def _read(config: PairsConfig) -> Generator[Pair, None, None]:
    try:
        if config.format == ".parquet":
            yield from _read_parquet(config)
        else:
            with _open(config.path) as stream:
                yield from _read_text(config, stream)
    except _UNREADABLE as error:
        raise ValueError(
            f"{config.path} cannot be read as {config.format} ({error}); check that it is whole and its ending right"
        ) from error


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_parquet(config: PairsConfig) -> Iterator[Pair]:
    with pq.ParquetFile(config.path) as file:
        _check_columns(config, file.schema_arrow.names)
        wanted = [config.url_column, config.caption_column]
        for batch in file.iter_batches(_ROWS_PER_WRITE, columns=wanted):
            urls, captions = (batch[name].cast(pa.string()).to_pylist() for name in wanted)
            yield from zip(urls, captions, strict=True)


def _read_text(config: PairsConfig, stream: gzip.GzipFile | io.BufferedReader) -> Iterator[Pair]:
    # Bytes that are no UTF-8 become U+FFFD: one odd caption must not cost the list.
    newline = "" if config.format == ".csv" else "\n"
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=newline)
    if config.format == ".tsv":
        # No quotes here: a caption with a single " in it would swallow the lines up to the next one.
        return _read_table(config, (line.rstrip("\r\n").split("\t") for line in text))
    if config.format == ".csv":
        return _read_table(config, csv.reader(text))
    if config.format == ".jsonl":
        return _read_objects(config, map(_parse_line, text))
    values = json.load(text)
    if not isinstance(values, list):
        raise ValueError(
            f"{config.path} holds a {type(values).__name__}, not an array of objects; convert it to .jsonl"
        )
    return _read_objects(config, values)


def _read_table(config: PairsConfig, lines: Iterator[list[str]]) -> Iterator[Pair]:
    names = config.columns or tuple(next(lines, ()))
    if not names:
        return
    _check_columns(config, names)
    url, caption = names.index(config.url_column), names.index(config.caption_column)
    for cells in lines:
        yield (cells[url], cells[caption]) if len(cells) == len(names) else _BAD_LINE


def _read_objects(config: PairsConfig, values: Iterable[object]) -> Iterator[Pair]:
    checked = False
    for value in values:
        if not isinstance(value, dict):
            yield _BAD_LINE
            continue
        if not checked:
            _check_columns(config, list(value))
            checked = True
        yield _text(value.get(config.url_column)), _text(value.get(config.caption_column))


def _parse_line(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _text(value: object) -> str | None:
    # JSON may hold half of a surrogate pair, which UTF-8 and so parquet cannot.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _check_columns(config: PairsConfig, names: Sequence[str]) -> None:
    for wanted in (config.url_column, config.caption_column):
        if wanted not in names:
            raise ValueError(
                f"{config.path} has no column {wanted!r}, only {list(names)}; set url_column and caption_column, or "
                f"header=False and columns if the file has no header"
            )
