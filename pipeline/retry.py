"""Give rows that failed for a passing reason another chance, and exchange only those.

The rows are run again beside the finished labels, as an output of their own that may be killed and repeated like any
other. Then the manifest, written last, exchanges them in one step: until it is written, readers see the old labels.
"""

import logging
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.audit import Account, Keys, account_file
from pipeline.engine import Source
from pipeline.failure import RunError
from pipeline.fetch import retryable
from pipeline.ledger import Ledger
from pipeline.pseudo_label import LabelPlan, pseudo_label
from pipeline.shards import MANIFEST_NAME, Manifest, parquet_options, read_manifest, shard_places, write_manifest
from pipeline.storage import Place

logger = logging.getLogger(__name__)

RETRIES = "retries"
"""Entry of the manifest's configuration: how often rows of it were retried."""


def retry_failed(plan: LabelPlan, source: Source, out: Place, *, run_id: str = "") -> Manifest:
    """Run the rows of finished labels again that failed for a passing reason.

    Raises:
        ValueError: the labels are not finished, or were made otherwise.
    """
    started = time.monotonic()
    # Refuses another teacher, list or threshold, as the run itself would.
    if read_manifest(out) is None:
        raise ValueError(f"{out} is not finished, so nothing has failed for good; give the command without --retry")
    before = pseudo_label(plan, source, out, run_id=run_id)
    ledger = Ledger(out)
    with ledger.writer():
        _sweep(out, before)
        if not any(map(retryable, before.rejects)):
            logger.info("nothing in %s failed for a passing reason", out)
            return before
        number = int(str(before.config.get(RETRIES, 0))) + 1
        attempt = ledger.folder / f"retry-{number:03d}"
        keys = failed_keys(out)
        again = replace(source, places=[_choose_rows(source, keys, attempt)], num_rows=len(keys), keys=keys)
        pseudo_label(plan, again, attempt / "labels", run_id=run_id)
        ledger.check_writer()
        manifest = _exchange(out, before, attempt, number, keys)
        manifest = replace(manifest, run_id=run_id, seconds=before.seconds + time.monotonic() - started)
        write_manifest(out, manifest)
        _sweep(out, manifest)
        attempt.delete()
    return manifest


def failed_keys(out: Place) -> Keys:
    """Find the rows that failed for a passing reason."""
    found = []
    for place in shard_places(out):
        if f"{schema.OUTCOME}={schema.REJECTED}" in place.path:
            table = pq.read_table(place.path, filesystem=place.filesystem, columns=["key", "reason"], partitioning=None)
            found.append(table["key"].to_numpy()[_retryable(table)])
    return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)


def _retryable(table: pa.Table) -> np.ndarray:
    reasons = table["reason"].to_pylist()
    return np.array([retryable(str(reason)) for reason in reasons], bool)


def _choose_rows(source: Source, keys: Keys, attempt: Place) -> Place:
    """Write the rows to be run again as a source of their own."""
    chosen = attempt / "rows.parquet"
    wanted, parts = pa.array(keys), []
    for place in source.places:
        with place.open_input() as stream, pq.ParquetFile(stream) as file:
            for batch in file.iter_batches(columns=source.columns):
                parts.append(batch.filter(pc.is_in(batch["key"], wanted)))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches(parts), sink, compression="zstd", row_group_size=8192)
    chosen.write_bytes(sink.getvalue())
    return chosen


def _exchange(out: Place, before: Manifest, attempt: Place, number: int, keys: Keys) -> Manifest:
    """Put new shards beside the old and account for both; nothing is deleted yet."""
    listed = []
    for place in shard_places(out):
        if f"{schema.OUTCOME}={schema.REJECTED}" not in place.path:
            listed.append(place)
        elif (kept := _without(place, keys, number)) is not None:
            listed.append(kept)
    for place in shard_places(attempt / "labels"):
        target = out / place.relative_to(attempt / "labels").replace(place.name, f"retry-{number:03d}-{place.name}")
        target.write_bytes(place.read_bytes())
        listed.append(target)
    account = Account(files=[account_file(place, out, schema.LABELLED) for place in listed])
    seen = account.times_seen(before.rows_in)
    if not (seen == 1).all():
        raise RunError(f"{out}: a retry would lose or double {int((seen != 1).sum())} rows; the old labels stay")
    return replace(
        before,
        rows_out=account.kept,
        rejects=account.rejects,
        files=[file.entry for file in account.files],
        digest=account.digest,
        config={**before.config, RETRIES: number},
    )


def _without(place: Place, keys: Keys, number: int) -> Place | None:
    """Write a shard of rejects again without the rows that were retried; None if none is left."""
    with place.open_input() as stream, pq.ParquetFile(stream) as file:
        table = file.read()
    kept = table.filter(pc.invert(pc.is_in(table["key"], pa.array(keys))))
    if kept.num_rows in (0, table.num_rows):
        return place if kept.num_rows else None
    again = place.parent / f"retry-{number:03d}-kept-{place.name}"
    sink = pa.BufferOutputStream()
    pq.write_table(kept, sink, **parquet_options(kept.schema))
    again.write_bytes(sink.getvalue())
    return again


def _sweep(out: Place, manifest: Manifest) -> None:
    """Delete shards that the manifest does not list: what a retry left behind, killed or not."""
    listed = {str(file["path"]) for file in manifest.files} | {MANIFEST_NAME}
    for place in out.files(".parquet"):
        if place.relative_to(out) not in listed:
            place.delete()
