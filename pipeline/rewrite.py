"""A finished directory made anew with some rows rejected: what the guards and a takedown have in common.

Rows are judged first, one small number each, then written: a file without a condemned row is copied as it is, another
is written again, a row group at a time. No row disappears: a condemned one stays as a rejected row with its reason,
emptied of what it must not carry any more.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.shards import Manifest, begin, config_hash, count_rejects, parquet_options, read_manifest, write_manifest
from pipeline.storage import Place

BOX_COLUMNS = ("boxes", "tokens_positive", "phrase_index", "category_id", "category", "score", "iscrowd")
LABEL_COLUMNS = ("image", *BOX_COLUMNS)
"""What a rejected row never carries."""
_LABELLED, _REJECTED = f"outcome={schema.LABELLED}", f"outcome={schema.REJECTED}"
_ROWS_AT_ONCE = 1 << 14
_TYPES = {field.name: field.type for field in (*schema.IMAGES, *schema.GROUNDING)}

Columns = Mapping[str, Callable[[pa.ChunkedArray], pa.ChunkedArray] | None]
"""Per column of a condemned row: what becomes of its values, None for null."""


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Which rows of a directory are condemned, and why."""

    reasons: tuple[str, ...]
    """Reason by code; code 0 means the row stays."""
    codes: NDArray[np.uint16]
    """Code per row, in the order of `scan`."""


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """What makes one directory of another."""

    stage: str
    """Name of the stage in the new manifest."""
    config: Mapping[str, object]
    """What decides the verdicts, as JSON; in the manifest under the stage's name."""
    erase: Columns
    """What becomes of a condemned row's columns; the others stay as they are."""


def require_manifest(directory: Path | Place) -> Manifest:
    """Read the manifest of a finished directory.

    Raises:
        ValueError: it is unfinished or absent.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise ValueError(f"{directory} holds no finished shards (no manifest.json); finish their stage first")
    return manifest


def scan(directory: Path | Place, columns: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Read some columns of every row, in the order of the manifest's files; a column a file lacks is null.

    Yields:
        The path of a file inside the directory, and some of its rows.
    """
    for file in require_manifest(directory).files:
        with (Place.of(directory) / str(file["path"])).open_input() as stream:
            parquet = pq.ParquetFile(stream)
            stored = parquet.schema_arrow.names
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=[name for name in columns if name in stored]):
                known = {name: batch[name] for name in columns if name in stored}
                lacking = {name: pa.nulls(batch.num_rows, _TYPES[name]) for name in columns if name not in stored}
                yield str(file["path"]), pa.RecordBatch.from_pydict({**known, **lacking})


def rewrite(
    source: Path | Place, out: Path, plan: Rewrite, judge: Callable[[], Verdicts], run_id: str = ""
) -> Manifest:
    """Write ``source`` into ``out`` with the condemned rows rejected; a finished ``out`` of the same plan is only read.

    Args:
        source: finished directory of images or labels.
        out: directory to write.
        plan: what is done.
        judge: gives the verdicts; called only if there is something to do.
        run_id: MLflow run.

    Raises:
        ValueError: the source is unfinished, or ``out`` holds something else.
    """
    given = require_manifest(source)
    wanted = config_hash([plan.stage, plan.config, given.content_hash, schema.SCHEMA_VERSION])
    if (done := begin(out, wanted)) is not None:
        return done
    started = time.perf_counter()
    verdicts = judge()
    if len(verdicts.codes) != given.rows_in:
        raise RuntimeError(f"{source}: {len(verdicts.codes)} rows were judged, but its manifest tells {given.rows_in}")
    files: list[dict[str, object]] = []
    first = 0
    for file in given.files:
        last = first + int(str(file["rows"]))
        part = Verdicts(reasons=verdicts.reasons, codes=verdicts.codes[first:last])
        files += _copy(source, out, file, part, plan, wanted) if part.codes.any() else _copy_whole(source, out, file)
        first = last
    kept, rejects = count_rejects(out, schema.SUCCESS if _holds_images(out) else schema.LABELLED)
    manifest = Manifest(
        stage=plan.stage,
        config_hash=wanted,
        rows_in=given.rows_in,
        rows_out=kept,
        rejects=rejects,
        files=sorted(files, key=lambda file: str(file["path"])),
        inputs={Place.of(source).name: given.content_hash},
        config={**given.config, plan.stage: dict(plan.config)},
        run_id=run_id,
        seconds=time.perf_counter() - started,
    )
    write_manifest(out, manifest)
    return manifest


def _holds_images(directory: Path | Place) -> bool:
    [*shards] = Place.of(directory).files(".parquet")
    if not shards:
        return False
    with shards[0].open_input() as stream:
        return "sample_id" not in pq.ParquetFile(stream).schema_arrow.names


def _copy_whole(source: Path | Place, out: Path, file: dict[str, object]) -> list[dict[str, object]]:
    here, there = (Place.of(place) / str(file["path"]) for place in (source, out))
    _make_folder(there)
    pafs.copy_files(here.path, there.path, here.filesystem, there.filesystem)
    return [file]


def _copy(
    source: Path | Place, out: Path, file: dict[str, object], verdicts: Verdicts, plan: Rewrite, tag: str
) -> list[dict[str, object]]:
    """Write one file again; its condemned rows go to the folder of rejects, if there is one."""
    path = str(file["path"])
    # Tagged, because the folder of rejects has a file of the same number, and may have one of an earlier rewrite.
    elsewhere = path.replace(f"{_LABELLED}/", f"{_REJECTED}/{tag}-")
    first = 0
    with (Place.of(source) / path).open_input() as stream, ExitStack() as opened:
        writers: dict[str, pq.ParquetWriter] = {}
        for batch in pq.ParquetFile(stream).iter_batches(schema.ROWS_PER_ROW_GROUP):
            codes = verdicts.codes[first : first + len(batch)]
            first += len(batch)
            rows = _condemn(pa.Table.from_batches([batch]), codes, verdicts.reasons, plan.erase)
            masks = {path: codes >= 0} if elsewhere == path else {path: codes == 0, elsewhere: codes > 0}
            for name, mask in masks.items():
                if not mask.any():
                    continue
                if name not in writers:
                    writers[name] = opened.enter_context(_open(Place.of(out) / name, rows.schema))
                writers[name].write_table(rows.filter(pa.array(mask)))
    return [_describe(Place.of(out), name) for name in writers]


def _condemn(rows: pa.Table, codes: NDArray[np.uint16], reasons: Sequence[str], erase: Columns) -> pa.Table:
    """Turn the condemned rows of a table into rejected ones."""
    guilty = pa.array(codes > 0)
    kept = pa.array(np.arange(len(rows)), mask=codes > 0)  # a null position takes a null
    said = pa.array([reasons[code] for code in codes.tolist()], pa.string())
    changed = {
        name: rows[name].take(kept) for name, change in erase.items() if change is None and name in rows.schema.names
    }
    given = {name: change(rows[name]) for name, change in erase.items() if change and name in rows.schema.names}
    for name, values in {**given, "status": pa.scalar(schema.REJECTED), "reason": said}.items():
        changed[name] = pc.if_else(guilty, values, rows[name])
    for name, column in changed.items():
        where = rows.schema.get_field_index(name)
        rows = rows.set_column(where, rows.schema.field(where), column)
    return rows


def _open(place: Place, columns: pa.Schema) -> pq.ParquetWriter:
    _make_folder(place)
    options = {name: value for name, value in parquet_options(columns).items() if name != "row_group_size"}
    return pq.ParquetWriter(place.path, columns, filesystem=place.filesystem, **options)


def _make_folder(place: Place) -> None:
    if place.is_local:  # S3 knows no folders
        place.local.parent.mkdir(parents=True, exist_ok=True)


def _describe(out: Place, name: str) -> dict[str, object]:
    place = out / name
    with place.open_input() as stream:
        rows = pq.ParquetFile(stream).metadata.num_rows
    with place.open_input() as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": name, "rows": rows, "bytes": place.size(), "sha256": digest}
