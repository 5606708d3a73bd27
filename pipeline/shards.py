"""Finished directories: parquet shards and the manifest that is written last.

A directory without ``manifest.json`` is unfinished and may be deleted and made again; one with it is complete and
says what made it, from what, and where every row went.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.storage import Place

MANIFEST_NAME = "manifest.json"
_FILE_KEYS = frozenset({"path", "bytes", "sha256"})
UNFINISHED_NAME = ".unfinished"
"""Present from the first moment of a stage to its manifest: what it lies in may be deleted and made again."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished directory holds and how it came to be."""

    stage: str
    """Name of the stage that made the directory."""
    config_hash: str
    """Hash of everything that decides the content; see `config_hash`."""
    rows_in: int
    """Rows the stage was given."""
    rows_out: int
    """Rows the next stage can use."""
    rejects: dict[str, int] = field(default_factory=dict)
    """Rows that end here, by reason. ``rows_in == rows_out + sum(rejects.values())`` always."""
    files: list[dict[str, object]] = field(default_factory=list)
    """Each file: ``path`` relative to the directory, ``bytes``, ``sha256``, and of a shard ``rows``."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Name of each input and the hash that pins it."""
    config: dict[str, object] = field(default_factory=dict)
    """The resolved configuration, as JSON."""
    run_id: str = ""
    """MLflow run that wrote it."""
    seconds: float = 0.0
    """Wall time of the stage."""
    digest: str = ""
    """Hash of the set of rows, whatever their order and whichever file they lie in (`pipeline.audit`)."""
    schema_version: int = schema.SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse accounts that do not add up."""
        rejected = sum(self.rejects.values())
        if self.rows_in != self.rows_out + rejected:
            raise ValueError(
                f"{self.stage}: {self.rows_in} rows in, but {self.rows_out} out and {rejected} rejected {self.rejects}"
            )

    @property
    def content_hash(self) -> str:
        """Hash of the rows, else of the files' hashes: pins this directory as another stage's input."""
        if self.digest:
            return config_hash([self.digest, self.rows_in])
        return config_hash(sorted((str(f["path"]), str(f["sha256"])) for f in self.files))


def config_hash(value: object) -> str:
    """Hash any JSON-like value into 16 hex digits, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=plain).encode()).hexdigest()[:16]


def plain(value: object) -> object:
    """Turn what JSON lacks into what it has: paths into text, sets into sorted lists (their own order is random)."""
    if isinstance(value, Path | Place):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} has no place in a configuration")


def file_sha256(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def place_sha256(place: Place) -> str:
    """Hash the bytes of a file, wherever it lies."""
    digest = hashlib.sha256()
    with place.open_input() as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def read_manifest(directory: Path | Place) -> Manifest | None:
    """Read the manifest of a finished directory; None if it is unfinished or absent.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    place = Place.of(directory) / MANIFEST_NAME
    if not place.exists():
        return None
    try:
        manifest = Manifest(**json.loads(place.read_text()))
        if lacking := [missing for file in manifest.files if (missing := sorted(_FILE_KEYS - set(file)))]:
            raise ValueError(f"{len(lacking)} of its files lack keys, the first {', '.join(lacking[0])}")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{place} is damaged or of another version: {error}; restore it, or make its directory anew"
        ) from error
    return manifest


def write_manifest(directory: Path | Place, manifest: Manifest) -> None:
    """Mark a directory finished, wholly or not at all."""
    place = Place.of(directory)
    (place / MANIFEST_NAME).write_text(json.dumps(asdict(manifest), indent=1, default=plain))
    (place / UNFINISHED_NAME).delete()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is either wholly there or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def begin(directory: Path, wanted_hash: str) -> Manifest | None:
    """Prepare a stage's output directory.

    Returns:
        The manifest if the directory is already finished with the same configuration and inputs: nothing is left
        to do. Otherwise None, and the directory exists and is empty of an earlier, unfinished attempt.

    Raises:
        ValueError: the directory is finished but was made by another configuration, or holds a stranger's files.
    """
    manifest = read_manifest(directory)
    if manifest is not None:
        if manifest.config_hash != wanted_hash:
            raise ValueError(
                f"{directory} was made by another configuration or from other inputs ({manifest.config_hash}, now "
                f"{wanted_hash}); give another output directory, or delete that one"
            )
        return manifest
    marker = directory / UNFINISHED_NAME
    if marker.exists():
        shutil.rmtree(directory)
    elif directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} holds files that are not ours; give an empty or a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return None


def describe_files(directory: Path) -> list[dict[str, object]]:
    """List the parquet files under a directory with rows, bytes and sha256, in path order."""
    return [
        {
            "path": str(path.relative_to(directory)),
            "rows": pq.ParquetFile(path).metadata.num_rows,
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in sorted(directory.rglob("*.parquet"))
    ]


def shard_places(directory: Path | Place) -> list[Place]:
    """List the shards of a directory: of a finished one those of its manifest, in its order, else all, by name."""
    place = Place.of(directory)
    manifest = read_manifest(place)
    return place.files(".parquet") if manifest is None else [place / str(file["path"]) for file in manifest.files]


def open_rows(directory: Path | Place) -> pads.Dataset:
    """Open all shards of a directory as one data set, without reading them."""
    paths = [place.path for place in shard_places(directory)]
    return pads.dataset(paths, format="parquet", partitioning=None, filesystem=Place.of(directory).filesystem)


def count_rejects(directory: Path, good: str) -> tuple[int, dict[str, int]]:
    """Count the rows of status ``good`` and, by reason, all others (columns ``status`` and ``reason``)."""
    reasons: Counter[str] = Counter()
    kept = 0
    for batch in open_rows(directory).to_batches(columns=["status", "reason"]):
        for status, reason in zip(batch["status"].to_pylist(), batch["reason"].to_pylist(), strict=True):
            if status == good:
                kept += 1
            else:
                reasons[str(reason) if status == schema.REJECTED else f"{status}:{reason}"] += 1
    return kept, dict(sorted(reasons.items()))


def write_rows(rows: Iterable[dict[str, object]], directory: Path, table: pa.Schema, rows_per_file: int = 1024) -> int:
    """Write row dictionaries as numbered parquet shards ``00000.parquet`` … and return how many rows there were."""
    written = 0
    for number, chunk in enumerate(_chunks(rows, rows_per_file)):
        write_table(schema.to_table(chunk, table), directory / f"{number:05d}.parquet")
        written += len(chunk)
    return written


def write_table(rows: pa.Table, path: Path) -> None:
    """Write one shard the way readers want it (schema module): small row groups, image bytes left as they are."""
    pq.write_table(rows, path, **parquet_options(rows.schema))


def parquet_options(table: pa.Schema) -> dict[str, Any]:
    """How every shard is written: zstd for all but the image bytes, which do not compress; no dictionaries."""
    columns = [name for name in table.names if name != "image"]
    return {
        "row_group_size": schema.ROWS_PER_ROW_GROUP,
        "use_dictionary": False,
        "compression": {**dict.fromkeys(columns, "zstd"), "image.bytes": "none", "image.path": "none"},
    }


def _chunks(rows: Iterable[dict[str, object]], size: int) -> Iterator[list[dict[str, object]]]:
    chunk: list[dict[str, object]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
