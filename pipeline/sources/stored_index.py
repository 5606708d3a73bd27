"""Folders of captioned images that somebody has downloaded already, made into a file of pairs with locators.

What a folder holds is found by looking: img2dataset's output (files, parquet or webdataset; its metadata tell of
failures too), plain webdataset tars, Hugging Face image-text parquet, or images with a text file each. Images are not
read here, except that a tar is read through once to find its members.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.pairs_file import ROWS_PER_ROW_GROUP, Pair, text_or_none, write_pairs
from pipeline.sources.stored import locate_cell, locate_file, locate_missing, locate_range
from pipeline.storage import Place

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
CAPTION_NAMES = ("caption", "text", "txt", "TEXT", "captions", "sentence", "sentences", "description", "title")
"""Columns taken for the caption, the first that is there, unless one is named."""
URL_NAMES = ("url", "URL", "image_url", "coco_url")

MAX_GROUP_BYTES = 512 << 20
"""Largest images of one row group: a reader holds all of them at once."""
MAX_TEXT_BYTES = 1 << 20
"""Largest text file read for a caption."""

_SUCCESS = "success"
_READ_BYTES = 1 << 20
"""Bytes of a tar asked for at once: the fewer requests to S3, the better."""
_NO_CAPTIONS = frozenset({"key", "status", "error_message", "exif", "md5", "sha256", "sha512", "reason", "stored"})
"""Text columns of img2dataset and of ours that tell about an image, not of it."""


@dataclass(frozen=True, kw_only=True)
class StoredConfig:
    """Captioned images that need no download."""

    path: Place | Path
    """Folder, or one .tar or .parquet file."""
    caption_column: str = ""
    """Column of the caption in parquet files; empty takes one with a usual name, or the only text there is."""
    image_column: str = ""
    """Column of the images in parquet files; empty takes the only one that holds images."""
    fetch_missing: bool = False
    """Fetch the images that img2dataset failed to get. Without it they end as `stored_missing`, and nothing is asked
    of the network."""


@dataclass(frozen=True)
class _Columns:
    """What is taken of a parquet file."""

    image: str | None  # dotted path of a binary column
    caption: str
    url: str | None


def index_stored(config: StoredConfig, out: Place | Path) -> int:
    """Write a folder's images as one parquet file of `schema.PAIRS` and return the number of rows.

    Rows come shard by shard in the order of names, an image with several captions as often as it has captions.

    Raises:
        ValueError: the folder is absent or holds nothing known, or one of its files is damaged.
    """
    place = Place.of(config.path)
    rows = write_pairs(chain.from_iterable(_shards(config, place)), out)
    if rows == 0:
        raise ValueError(f"{place} holds no image; give a folder with at least one captioned image")
    return rows


def _shards(config: StoredConfig, place: Place) -> Iterator[Iterable[Pair]]:
    """Find what a folder consists of; each part gives its rows."""
    if not place.exists():
        raise ValueError(f"{place} does not exist; give a folder of captioned images, a .tar or a .parquet file")
    # img2dataset's folders may hold millions of files a level below: those are not listed unless nothing lies on top.
    names = [place] if place.is_file() else place.files(recursive=False)
    if not any(name.name.endswith((".tar", ".parquet")) for name in names) and place.is_dir():
        names = place.files()
    tars = {name for name in names if name.name.endswith(".tar")}
    tables = [name for name in names if name.name.endswith(".parquet")]
    if packed := next(
        (name for name in names if name.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2"))), None
    ):
        raise ValueError(f"{packed} is compressed, so no image can be read from its middle; unpack it to a .tar")
    if tables or tars:
        alone = sorted(tars - {_beside(table, ".tar") for table in tables})
        return chain((_read_parquet(config, table, tars) for table in tables), (_read_tar(config, t) for t in alone))
    if any(_ending(name.name) in IMAGE_ENDINGS for name in names):
        return iter([_read_files(names)])
    raise ValueError(
        f"{place} holds nothing we know; give img2dataset's output, webdataset .tar files, .parquet files with images, "
        f"or images with a .txt or .json beside each"
    )


def _read_parquet(config: StoredConfig, table: Place, tars: set[Place]) -> Iterable[Pair]:
    """Read a parquet file that holds images, or the metadata of img2dataset beside them."""
    try:
        with table.open_input() as stream, pq.ParquetFile(stream) as file:
            names = set(file.schema_arrow.names)
            columns = _find_columns(config, table, file.schema_arrow)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{table} cannot be read ({reason}); if img2dataset was stopped, run it again, or delete this file"
        ) from error
    if columns.image:
        return _read_table(config, table, columns)
    if not {"key", "status"} <= names:
        raise ValueError(
            f"{table} has no column of images, only {sorted(names)}; name it, or give a list of addresses as such"
        )
    find = partial(_members, _beside(table, ".tar")) if _beside(table, ".tar") in tars else partial(_siblings, table)
    return _read_metadata(config, table, columns, find)


def _beside(table: Place, ending: str) -> Place:
    return table.parent / (table.name.removesuffix(".parquet") + ending)


def _find_columns(config: StoredConfig, table: Place, columns: pa.Schema) -> _Columns:
    images = {field.name: path for field in columns if (path := _image_path(field))}
    image = _choose(config.image_column, list(images), (), table, "image")
    texts = [field.name for field in columns if _is_text(field.type)]
    url = next((name for name in URL_NAMES if name in texts), None)
    texts = [name for name in texts if name not in _NO_CAPTIONS and name != url]
    caption = _choose(config.caption_column, texts, CAPTION_NAMES, table, "caption")
    if caption is None:
        raise ValueError(f"{table} has no captions, only {columns.names}; img2dataset stores them if given caption_col")
    return _Columns(images[image] if image else None, caption, url)


def _choose(given: str, found: Sequence[str], usual: Sequence[str], table: Place, what: str) -> str | None:
    """Choose the column that was named, has a usual name, or is the only one; None if there is none at all."""
    if given and given not in found:
        raise ValueError(f"{table} has no {what} column {given!r}; {what} columns are {list(found)}")
    choice = given or next((name for name in usual if name in found), None)
    if choice is None and len(found) > 1:
        raise ValueError(f"{table} has several columns that may be the {what}: {list(found)}; name one")
    return choice or next(iter(found), None)


def _image_path(field: pa.Field) -> str | None:
    """Give the path of the binary column of a field that holds images: bytes, or Hugging Face's struct with them."""
    if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type) and {"bytes", "path"} == {inner.name for inner in field.type}:
        return f"{field.name}.bytes"
    return None


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _read_table(config: StoredConfig, table: Place, columns: _Columns) -> Iterator[Pair]:
    """Read the rows of a parquet file with images, but not the images."""
    image = cast("str", columns.image)
    with table.open_input() as stream, pq.ParquetFile(stream) as file:
        for group in range(file.num_row_groups):
            _check_size(table, file.metadata.row_group(group), image)
            names = [
                name for name in (columns.caption, columns.url, "status", "key") if name in file.schema_arrow.names
            ]
            for number, row in enumerate(file.read_row_group(group, columns=names).to_pylist()):
                missing = {"key", "status"} <= row.keys() and row["status"] != _SUCCESS
                stored = None if missing else locate_cell(table, group, number, image)
                yield from _pairs(config, table, columns, row, stored)


def _check_size(table: Place, group: Any, image: str) -> None:
    sizes = [group.column(i) for i in range(group.num_columns)]
    size = sum(column.total_uncompressed_size for column in sizes if column.path_in_schema == image)
    if size > MAX_GROUP_BYTES:
        raise ValueError(
            f"{table} has {group.num_rows} images of {size >> 20} MB in one row group, and {MAX_GROUP_BYTES >> 20} MB "
            f"at most can be held; write it again with row groups of 100 rows"
        )


def _read_metadata(
    config: StoredConfig, table: Place, columns: _Columns, find: Callable[[], Mapping[str, str]]
) -> Iterator[Pair]:
    """Read img2dataset's account of a shard: each row succeeded, and its image has the row's key, or failed."""
    images = find()
    names = [name for name in ("key", "status", columns.caption, columns.url) if name]
    with table.open_input() as stream, pq.ParquetFile(stream) as file:
        for batch in file.iter_batches(ROWS_PER_ROW_GROUP, columns=names):
            for row in batch.to_pylist():
                stored = images.get(str(row["key"])) if row["status"] == _SUCCESS else None
                yield from _pairs(config, table, columns, row, stored)


def _pairs(
    config: StoredConfig, table: Place, columns: _Columns, row: Mapping[str, Any], stored: str | None
) -> Iterator[Pair]:
    url, captions = text_or_none(row.get(columns.url or "")), row[columns.caption]
    for caption in captions if isinstance(captions, list) and captions else [captions]:
        yield _settle(config, table, Pair(url, text_or_none(caption), stored))


def _members(tar: Place) -> dict[str, str]:
    """Locate the images of a tar by key."""
    return {key: sample.stored for key, sample in _samples(tar) if sample.stored}


def _siblings(table: Place) -> dict[str, str]:
    """Locate the images in the folder that has the name of a metadata file, by key."""
    names = _beside(table, "").files(recursive=False)
    return {PurePosixPath(name.name).stem: locate_file(name) for name in names if _ending(name.name) in IMAGE_ENDINGS}


def _read_tar(config: StoredConfig, tar: Place) -> Iterator[Pair]:
    for _, pair in _samples(tar):
        yield _settle(config, tar, pair)


def _settle(config: StoredConfig, place: Place, pair: Pair) -> Pair:
    """Decide about a row without an image: to be fetched, if that is wanted and possible, or known to be missing."""
    if pair.stored or (pair.url and config.fetch_missing):
        return pair
    return pair._replace(stored=locate_missing(place))


def _samples(tar: Place) -> Iterator[tuple[str, Pair]]:
    """Read a webdataset tar: neighbours whose names are equal up to the first dot are one sample."""
    try:
        with (
            io.BufferedReader(cast("io.RawIOBase", tar.open_input()), _READ_BYTES) as stream,
            tarfile.open(fileobj=stream, mode="r:") as archive,
        ):
            # Links, devices and the like are nobody's image. Names are compared, never opened.
            members = (member for member in iter(archive.next, None) if member.isreg() and not member.issparse())
            for key, parts in groupby(members, lambda member: _key(member.name)):
                yield key, _sample(tar, archive, parts)
                archive.members = []  # type: ignore[attr-defined]  # it would remember all it has seen
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("it ends in the middle")
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{tar} is no whole tar ({error}); get it again, or delete it") from error


def _sample(tar: Place, archive: tarfile.TarFile, parts: Iterable[tarfile.TarInfo]) -> Pair:
    stored: str | None = None
    texts: dict[str, bytes] = {}
    for member in parts:
        ending = _ending(member.name)
        if ending in IMAGE_ENDINGS:
            stored = stored or locate_range(tar, member.offset_data, member.size)
        elif ending in ("txt", "json") and member.size <= MAX_TEXT_BYTES:
            content = archive.extractfile(member)
            texts[ending] = content.read() if content else b""
    return _described(texts, stored)


def _described(texts: Mapping[str, bytes], stored: str | None) -> Pair:
    """Take address and caption from the text files of an image."""
    try:
        known = json.loads(texts.get("json", b"{}"))
    except (ValueError, RecursionError):
        known = {}
    known = known if isinstance(known, dict) else {}
    caption = text_or_none(texts.get("txt", b"").decode(errors="replace"))
    caption = caption or next((text for name in CAPTION_NAMES if (text := text_or_none(known.get(name)))), None)
    return Pair(next((url for name in URL_NAMES if (url := text_or_none(known.get(name)))), None), caption, stored)


def _key(name: str) -> str:
    """Take a member's name up to the first dot of its last part, as webdataset does."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()


def _read_files(names: Sequence[Place]) -> Iterator[Pair]:
    """Read images that have a text file of the same name."""
    for _, parts in groupby(names, lambda name: str(name).rpartition(".")[0]):
        files = {_ending(part.name): part for part in parts}
        image = next((files[ending] for ending in IMAGE_ENDINGS if ending in files), None)
        texts: dict[str, bytes] = {end: files[end].read_bytes() for end in ("txt", "json") if end in files}
        if image:
            yield _described(texts, locate_file(image))
