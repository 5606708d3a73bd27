"""The rows of finished shards that can be trained on: a few numbers for each, found without opening a picture."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.selection import SelectionConfig
from pipeline.shards import Manifest, place_sha256, read_manifest
from pipeline.storage import Place

LENGTH_CLASS = 64
"""Characters of text that make a class of their own when alike samples are batched; a caption has some 60."""
_CLASSES = 8
_INDEXED = ["sample_id", "kind", "status", "text", "width", "height", "boxes", "score", "iscrowd"]
_OPEN_FILES = 64

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One directory of grounding shards in the mixture."""

    path: Path | Place
    """Finished directory, absolute, or on S3."""
    copies: int = 1
    """How often each sample occurs in an epoch; 0 leaves the source out."""
    share: float = 1.0
    """Part of its samples that is used at all, above 0 to 1: always the same ones, and of a smaller share a part."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.share <= 1:
            raise ValueError(f"share of {self.path} is {self.share}; give a number above 0 up to 1, or copies 0")
        if self.copies < 0:
            raise ValueError(f"copies of {self.path} is {self.copies}; give 0 to leave it out, or a count")


@dataclass(frozen=True, kw_only=True)
class RowIndex:
    """The trainable rows of one source, in the order of its files."""

    groups: list[tuple[Place, int]]
    """File and number of each row group that has any."""
    starts: Numbers
    """Per row group its first row, and the number of rows at the end."""
    row: Numbers
    """Per row its position in its row group."""
    rank: Numbers
    """Per row its place in the order of sample ids."""
    likeness: Numbers
    """Per row a number that is equal for rows of like shape and length."""
    captions: pa.StringArray
    """Every different text of a pseudo-labelled caption, sorted."""


class Texts(Sequence[str]):
    """Texts in Arrow's memory, which holds them more tightly than Python's strings."""

    def __init__(self, parts: Sequence[pa.StringArray]) -> None:
        """Put the different ones in alphabetical order."""
        texts = pc.unique(pa.chunked_array(list(parts), pa.large_string()))
        self._texts = texts.take(pc.sort_indices(texts))

    def __len__(self) -> int:
        """Count them."""
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """Give one, or some."""
        found = self._texts[index]
        return found.to_pylist() if isinstance(index, slice) else str(found.as_py())


def require_manifest(source: Path | Place) -> Manifest:
    """Read the manifest of a finished source.

    Raises:
        ValueError: it is not finished.
    """
    manifest = read_manifest(source)
    if manifest is None:
        raise ValueError(f"{source} holds no finished shards (no manifest.json); finish the stage that writes it")
    return manifest


def check_sources(sources: Sequence[SourceConfig], *, check_hashes: bool = True) -> None:
    """See to it that every shard is there, whole, and of this schema, and that there is something to train on.

    Args:
        sources: the mixture.
        check_hashes: read every byte and compare its hash; else sizes are compared alone.

    Raises:
        ValueError: one is not, or there is nothing; names the file and the remedy.
    """
    if not any(require_manifest(source.path).rows_out * source.copies for source in sources):
        counts = ", ".join(f"{s.path} ({require_manifest(s.path).rows_out} x {s.copies})" for s in sources)
        raise ValueError(f"no sample to train on in {counts}; give sources that have usable rows, and copies above 0")
    for source in sources:
        for file in require_manifest(source.path).files:
            place = Place.of(source.path) / str(file["path"])
            remedy = f"restore it, or make {source.path} anew"
            if not place.is_file():
                raise ValueError(f"{place} is missing, but the manifest lists it; {remedy}")
            with place.open_input() as stream:
                if stream.size() != file["bytes"]:
                    raise ValueError(f"{place} has {stream.size()} bytes, not {file['bytes']} as written; {remedy}")
                try:
                    columns = pq.read_schema(stream)
                except (pa.ArrowException, OSError) as error:
                    raise ValueError(f"{place} cannot be read as parquet: {_first_line(error)}; {remedy}") from error
            if missing := [name for name in _INDEXED if name not in columns.names]:
                raise ValueError(
                    f"{source.path} holds no grounding shards: {file['path']} lacks the columns {', '.join(missing)}; "
                    "give labels, or imported human-labelled data"
                )
            found = (columns.metadata or {}).get(b"glipv2_schema_version", b"none").decode()
            if found != str(schema.SCHEMA_VERSION):
                raise ValueError(
                    f"{place} has schema version {found}, but this program reads {schema.SCHEMA_VERSION}; make the "
                    "shards anew with this version"
                )
            if check_hashes and place_sha256(place) != file["sha256"]:
                raise ValueError(f"{place} has another hash than when it was written; {remedy}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@lru_cache(maxsize=_OPEN_FILES)
def open_shard(place: Place) -> pq.ParquetFile:
    """Open a shard; the last few stay open."""
    return pq.ParquetFile(place.open_input())


def read_index(source: SourceConfig, selection: SelectionConfig) -> RowIndex:
    """Find the rows of a source that can be trained on: labelled, with a box that is not a crowd and is selected."""
    groups: list[tuple[Place, int]] = []
    rows: list[npt.NDArray[np.int64]] = []
    parts: list[pa.Table] = []
    texts: list[pa.Array] = [pa.array([], pa.large_string())]
    for file in require_manifest(source.path).files if source.copies else ():
        place = Place.of(source.path) / str(file["path"])
        for number in range(open_shard(place).num_row_groups):
            table = open_shard(place).read_row_group(number, columns=_INDEXED, use_threads=False)
            found = np.flatnonzero(_trainable(table, selection) & _chosen(table["sample_id"], source.share))
            if len(found):
                groups.append((place, number))
                rows.append(found)
                table = table.take(found)
                parts.append(pa.table({"sample_id": table["sample_id"], "likeness": _likeness(table)}))
                captions = table.filter(pc.equal(table["kind"], schema.CAPTION))["text"]
                texts.append(captions.cast(pa.large_string()).combine_chunks())
    together = pa.concat_tables(parts) if parts else pa.table({"sample_id": [], "likeness": []})
    order = pc.sort_indices(together["sample_id"]).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return RowIndex(
        groups=groups,
        starts=np.cumsum([0, *map(len, rows)]),
        row=np.concatenate([np.empty(0, np.int64), *rows]),
        rank=rank,
        likeness=np.asarray(together["likeness"], np.int64),
        captions=pc.unique(pa.chunked_array(texts)),
    )


def _trainable(table: pa.Table, selection: SelectionConfig) -> npt.NDArray[np.bool_]:
    """Tell which rows have a box to be trained on; for a caption it is enough that its best one is good enough."""
    caption = np.asarray(pc.equal(table["kind"], schema.CAPTION))
    good = _any(table["score"], lambda score: score >= selection.min_score)
    boxed = np.asarray(pc.fill_null(pc.list_value_length(table["boxes"]), 0)) > 0
    unflagged = np.asarray(pc.is_null(table["iscrowd"]))
    alone = _any(table["iscrowd"], np.logical_not)
    labelled = np.asarray(pc.equal(table["status"], schema.LABELLED))
    return np.asarray(labelled & np.where(caption, good & boxed, boxed & (unflagged | alone)))


def _chosen(sample_ids: pa.ChunkedArray, share: float) -> npt.NDArray[np.bool_]:
    if share == 1:
        return np.ones(len(sample_ids), bool)
    digests = (hashlib.sha256(name.encode()).digest() for name in sample_ids.to_pylist())
    return np.array([int.from_bytes(digest[:8], "big") < share * 2**64 for digest in digests], bool)


def _any(lists: pa.ChunkedArray, good: Any) -> npt.NDArray[np.bool_]:
    """Tell in which lists there is a good value."""
    found = np.zeros(len(lists), bool)
    if lists.num_chunks:
        whole = lists.combine_chunks()
        parents = pc.list_parent_indices(whole).to_numpy()
        found[parents[good(whole.flatten().to_numpy(zero_copy_only=False))]] = True
    return found


def _likeness(table: pa.Table) -> Numbers:
    """Number the rows by the shape of their picture and the length of their text; a prompt is as long as it may be."""
    length = pc.fill_null(pc.utf8_length(table["text"]), LENGTH_CLASS * _CLASSES)
    classes = np.minimum(np.asarray(length) // LENGTH_CLASS, _CLASSES)
    wide = np.asarray(pc.fill_null(pc.greater(table["width"], table["height"]), False))
    return np.asarray(classes + wide * (_CLASSES + 1), np.int64)
