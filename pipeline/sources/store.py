"""Human-labelled data as grounding shards: the same rows, manifest and accounts as pseudo-labelled captions."""

import time
from collections.abc import Iterable
from pathlib import Path

from pipeline import schema
from pipeline.shards import Manifest, begin, config_hash, count_rejects, describe_files, write_manifest, write_rows


def store_source(
    rows: Iterable[dict[str, object]],
    out: Path,
    *,
    name: str,
    inputs: dict[str, str],
    categories: dict[int, str] | None = None,
) -> Manifest:
    """Write what a reader yields into ``out``; a finished directory of the same inputs is only read.

    Args:
        rows: rows of `schema.GROUNDING`, labelled and rejected ones.
        out: directory to write.
        name: of the data set.
        inputs: name and hash of each file read.
        categories: vocabulary of a detection set; its negatives are drawn from it at load time.
    """
    config: dict[str, object] = {"source": name, "categories": {str(k): v for k, v in (categories or {}).items()}}
    wanted = config_hash(["source", config, inputs, schema.SCHEMA_VERSION])
    if (done := begin(out, wanted)) is not None:
        return done
    started = time.perf_counter()
    written = write_rows(rows, out, schema.GROUNDING)
    kept, rejects = count_rejects(out, schema.LABELLED)
    manifest = Manifest(
        stage=f"read {name}",
        config_hash=wanted,
        rows_in=written,
        rows_out=kept,
        rejects=rejects,
        files=describe_files(out),
        inputs=inputs,
        config=config,
        seconds=time.perf_counter() - started,
    )
    write_manifest(out, manifest)
    return manifest
