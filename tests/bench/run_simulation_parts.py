"""The parts of a run that its number of rows alone decides, one after the other, without a row being labelled."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import DataContext
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import IdColumnCheckpointManager

from pipeline import engine, schema
from pipeline.audit import Account, FileAccount, account_file
from pipeline.engine import KEY
from pipeline.labelling import LabelConfig
from pipeline.ledger import Ledger
from pipeline.lint import LintConfig
from pipeline.session import ray_session
from pipeline.shards import Manifest, parquet_options, read_manifest, write_manifest
from pipeline.storage import Place
from tests.bench.labelling import CAPTIONS
from tests.bench.no_op_labelling import NoOpLabeller, TinyCollector
from tests.bench.processes import answer

STATUS = Path("/proc/self/status")


def try_parts(folder: str, rows: int, block: int) -> dict[str, Any]:
    """Give the seconds of each part, the bytes this process held at most on top of before, and bytes of all ids."""
    out = Place.of(folder) / "out"
    ledger = Ledger(out)
    _fill(ledger, out, rows, block)
    found = {"list_shards": _weighed(lambda: out.files(".parquet"))}
    found["reconcile_first"] = _weighed(ledger.reconcile)
    found["reconcile_again"] = _weighed(ledger.reconcile)
    ids: list[int] = []
    with ray_session():
        found["ray_loads_ids"] = _weighed(lambda: ids.append(_load(ledger)))
    account = Account(files=[_file(first, min(block, rows - first)) for first in range(0, rows, block)])
    work = SimpleNamespace(good="", source=SimpleNamespace(num_rows=rows, keys=None))
    with patch("pipeline.engine.take_account", return_value=account):
        found["settle"] = _weighed(lambda: engine._settle(cast("Any", work), out, ledger, account))
    entries = [file.entry for file in account.files]
    manifest = Manifest(stage="simulation", config_hash="", rows_in=rows, rows_out=rows, files=entries)
    found["write_manifest"] = _weighed(lambda: write_manifest(out, manifest))
    found["read_manifest"] = _weighed(lambda: read_manifest(out))
    return {"parts": found, "id_bytes": ids[0], "audited_per_cpu_s": _audited(Place.of(folder) / "audited")}


def _fill(ledger: Ledger, out: Place, rows: int, block: int) -> None:
    """Write the row checkpoint that a run leaves, a file for each shard, and a shard's name for each."""
    (out / "outcome=labelled").local.mkdir(parents=True)
    ledger.done.local.mkdir(parents=True)
    for number, first in enumerate(range(0, rows, block)):
        name = f"{'0' * 32}_{number:06d}"
        pq.write_table(
            pa.table({KEY: np.arange(first, min(first + block, rows))}), str(ledger.done / f"{name}.parquet")
        )
        (out / "outcome=labelled" / f"{name}-0.parquet").local.touch()


def _load(ledger: Ledger) -> int:
    """Load the ids as Ray does when a run is gone on with; give their bytes in the object store."""
    config = CheckpointConfig(id_column=KEY, checkpoint_path=str(ledger.done), delete_checkpoint_on_success=False)
    manager = IdColumnCheckpointManager(checkpoint_config=config, data_context=DataContext.get_current())
    return int(manager.load_checkpoint()[1])


def _audited(folder: Place, rows: int = 1000, repeats: int = 5) -> float:
    """Count the rows that one CPU audits in a second, with pictures of the size that a plan assumes."""
    folder.local.mkdir()
    given = {
        "key": range(rows),
        "url": ["u"] * rows,
        "caption": CAPTIONS * (rows // len(CAPTIONS)),
        "stored": [None] * rows,
    }
    images = TinyCollector(os.urandom(LintConfig.image_bytes))(pa.table(given, schema=schema.PAIRS))
    labelled = NoOpLabeller(LabelConfig(), "", {"run_id": str(folder / "log")})(images)
    shard = folder / "0.parquet"
    pq.write_table(labelled.drop_columns([schema.OUTCOME]), shard.path, **parquet_options(schema.GROUNDING))
    account_file(shard, folder, schema.LABELLED)  # imports what it needs
    began = time.process_time()
    for _ in range(repeats):
        account_file(shard, folder, schema.LABELLED)
    return rows * repeats / (time.process_time() - began)


def _file(first: int, rows: int) -> FileAccount:
    return FileAccount(
        path=f"outcome=labelled/{'0' * 32}_{first:09d}-0.parquet",
        bytes=1,
        sha256=f"{first:064d}",
        keys=np.arange(first, first + rows),
        kept=rows,
        rejects={},
        digest=first,
    )


def _weighed(function: Callable[[], object]) -> tuple[float, int]:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before, began = _held("VmRSS"), time.perf_counter()
    function()
    return time.perf_counter() - began, _held("VmHWM") - before


def _held(name: str) -> int:
    return int(STATUS.read_text(encoding="ascii").split(f"{name}:")[1].split()[0]) * 1024


if __name__ == "__main__":
    answer(try_parts)
