"""Finished shards as raw rows: what the manifest promises, and what is there."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.data_lint_checks import CategoryTable, RawBox, RawRow, numbers, show
from pipeline.data_lint_json import load_json
from pipeline.data_lint_report import KINDS, Findings
from pipeline.shards import MANIFEST_NAME, file_sha256
from pipeline.sources.coco import CocoSource, Row, start_row

_PER_BOX = ("tokens_positive", "phrase_index", "category_id", "category", "score", "iscrowd", "segmentation")
_VERSION_KEY = b"glipv2_schema_version"
_PASSED_OVER = "training drops the box, or its words"
_IN_TRAINING = {
    "image_missing": "training stops",
    "image_unreadable": "training stops",
    "image_size_differs": "boxes may not fit",
    "caption_blank": "training has no text for it",
    "box_malformed": "training stops",
    "box_not_finite": _PASSED_OVER,
    "box_without_area": _PASSED_OVER,
    "box_outside": _PASSED_OVER,
    "box_over_edge": "read as it is",
    "box_over_edge_slightly": "read as it is",
    "box_without_span": "the box teaches no word",
    "span_malformed": "training stops",
    "span_outside": "the span teaches no word",
    "span_empty": "the span teaches no word",
    "category_unknown": "not in the manifest's vocabulary: training stops",
    "image_file_twice": "both are trained on, each without the other's boxes",
}

FATES = {kind: _IN_TRAINING.get(kind, KINDS[kind].fate) for kind in KINDS}
"""What becomes of a finding in shards, which have been imported already."""


@dataclass(frozen=True, kw_only=True)
class ShardsSource:
    """A finished directory of grounding shards."""

    shards: Path
    """The directory."""


def shard_rows(source: ShardsSource, findings: Findings, categories: CategoryTable) -> Iterator[RawRow]:
    """Give the rows of a finished directory; of an unfinished one those of every shard."""
    manifest = _read_manifest(source.shards, findings)
    given = manifest.get("config")
    named = given.get("categories") if isinstance(given, dict) else None
    for key, name in named.items() if isinstance(named, dict) else ():
        if key.removeprefix("-").isdecimal():
            categories.add(int(key), name)
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "image"
        for path in _shards(source.shards, manifest, findings):
            for row in _read(path, path.relative_to(source.shards).as_posix(), findings):
                if (sample := str(row.get("sample_id"))) in seen:
                    findings.add("sample_id_twice", sample)
                seen.add(sample)
                if row.get("status") == schema.REJECTED:
                    continue
                yield _row(row, picture, findings)


def _read_manifest(directory: Path, findings: Findings) -> dict[str, Any]:
    if not (directory / MANIFEST_NAME).is_file():
        findings.add("manifest_missing", f"no {MANIFEST_NAME}")
        return {}
    manifest = load_json(directory / MANIFEST_NAME, findings)
    if not isinstance(manifest, dict):
        findings.add("manifest_malformed", show(manifest))
        return {}
    if (version := manifest.get("schema_version")) != schema.SCHEMA_VERSION:
        findings.add("schema_version_differs", f"manifest: {show(version)}, this program's is {schema.SCHEMA_VERSION}")
    rejects = manifest.get("rejects")
    rows_in, rows_out = manifest.get("rows_in"), manifest.get("rows_out")
    counts = [rows_out, *(rejects.values() if isinstance(rejects, dict) else [None])]
    whole = [count for count in counts if isinstance(count, int)]
    if len(whole) < len(counts) or rows_in != sum(whole):
        what = f"rows_in {show(rows_in)}, rows_out {show(rows_out)}, rejects {show(rejects)} do not add up"
        findings.add("manifest_malformed", what)
    return manifest


def _shards(directory: Path, manifest: dict[str, Any], findings: Findings) -> Iterator[Path]:
    """Find the shards, and compare them with what the manifest says of them."""
    there = sorted(directory.rglob("*.parquet"))
    files = manifest.get("files")
    if not isinstance(files, list):
        if manifest:
            findings.add("manifest_malformed", f"files is {show(files)}, no list")
        yield from there
        return
    listed: set[Path] = set()
    for entry in files:
        if not isinstance(entry, dict) or not isinstance(name := entry.get("path"), str):
            findings.add("manifest_malformed", f"entry of files: {show(entry)}")
            continue
        path = directory / name
        listed.add(path)
        if path not in there:
            findings.add("shard_missing", name)
            continue
        if entry.get("sha256") != (real := file_sha256(path)):
            findings.add("shard_changed", f"{name}: sha256 {real[:12]}…, in the manifest {show(entry.get('sha256'))}")
        yield path
    for path in there:
        if path not in listed:
            findings.add("shard_stray", path.relative_to(directory).as_posix())


def _read(path: Path, where: str, findings: Findings) -> Iterator[Row]:
    """Read a shard as far as it can be."""
    try:
        with pq.ParquetFile(path) as file:
            version = (file.schema_arrow.metadata or {}).get(_VERSION_KEY, b"none").decode(errors="replace")
            if version != str(schema.SCHEMA_VERSION):
                what = f"{where}: {version}, this program's is {schema.SCHEMA_VERSION}"
                findings.add("schema_version_differs", what)
            for field in schema.GROUNDING:
                if field.name not in file.schema_arrow.names:
                    findings.add("column_missing", f"{where}: {field.name}")
                elif (found := file.schema_arrow.field(field.name).type) != field.type:
                    findings.add("column_missing", f"{where}: {field.name} is {found}, not {field.type}")
            for batch in file.iter_batches(schema.ROWS_PER_ROW_GROUP):
                yield from batch.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        findings.add("shard_unreadable", f"{where}: {error}")


def _row(row: Row, picture: Path, findings: Findings) -> RawRow:
    where, kind, boxes = str(row.get("sample_id")), row.get("kind"), row.get("boxes")
    if kind not in (schema.DETECTION, schema.GROUND, schema.CAPTION) or row.get("status") != schema.LABELLED:
        findings.add("row_malformed", f"{where}: kind {show(kind)}, status {show(row.get('status'))}")
    grounding = kind != schema.DETECTION
    listed: Sequence[Any] = boxes if isinstance(boxes, list) else []
    for column in _PER_BOX:
        value = row.get(column)
        needed = column in ("tokens_positive", "phrase_index") if grounding else column == "category_id"
        if len(value) != len(listed) if isinstance(value, list) else needed and listed:
            number = len(value) if isinstance(value, list) else "no"
            findings.add("columns_disagree", f"{where}: {len(listed)} boxes, {number} {column}")
    _check_phrases(row, where, findings)
    ids, spans = row.get("category_id"), row.get("tokens_positive")
    return RawRow(
        where=where,
        name=str(row.get("image_uri") or where),
        open=partial(_open, row, picture),
        width=row.get("width"),
        height=row.get("height"),
        grounding=grounding,
        caption=row.get("text"),
        boxes=[
            RawBox(
                where=f"box {at}",
                corners=numbers(box, 4),
                category=_item(ids, at),
                spans=_item(spans, at),
            )
            for at, box in enumerate(listed)
        ],
        negative=row.get("neg_category_ids"),
        not_exhaustive=row.get("not_exhaustive_ids"),
    )


def _check_phrases(row: Row, where: str, findings: Findings) -> None:
    """Look at what ties boxes to phrases, and phrases to entities."""
    phrases, entity = row.get("phrases"), row.get("entity")
    number = len(phrases) if isinstance(phrases, list) else 0
    if isinstance(entity, list) and len(entity) != number:
        findings.add("columns_disagree", f"{where}: {number} phrases, {len(entity)} entity")
    owners = row.get("phrase_index")
    for at, owner in enumerate(owners if isinstance(owners, list) else []):
        if not isinstance(owner, int) or not -1 <= owner < number:
            findings.add("columns_disagree", f"{where}, box {at}: phrase_index {show(owner)} of {number} phrases")


def _item(values: object, at: int) -> Any:
    return values[at] if isinstance(values, list) and at < len(values) else None


def _open(row: Row, picture: Path) -> Row:
    """Decode the image of a row in the way of the import, which takes it from a file."""
    image = row.get("image")
    encoded = image.get("bytes") if isinstance(image, dict) else None
    picture.unlink(missing_ok=True)
    if isinstance(encoded, bytes):
        picture.write_bytes(encoded)
    source = CocoSource(annotations=picture, images=picture.parent, source="", split="")
    return start_row({"id": "", "file_name": picture.name}, source, schema.DETECTION)
