"""Steps and works for tests of the engine: rows are numbers, and some of them are dangerous."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.engine import Source, Step, Work
from pipeline.storage import Place

TABLE = pa.schema(
    [
        pa.field("key", pa.int64(), nullable=False),
        pa.field("value", pa.string()),
        pa.field("boxes", pa.list_(schema.BOX_TYPE)),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Dangers:
    """What happens at which row."""

    kill: frozenset[int] = frozenset()
    """The process dies, each time."""
    kill_once: Path | None = None
    """The process dies at the first block any process works on, as long as this file is not there."""
    bug: frozenset[int] = frozenset()
    """A step raises."""
    seconds_per_block: float = 0.0
    seen: Path | None = None
    """Folder to which every row worked on adds a byte to the file of its name."""
    marks: Mapping[str, str] = field(default_factory=dict)


class Square:
    """Turn a key into its square; every third row is rejected."""

    def __init__(self, dangers: Dangers) -> None:
        self._dangers = dangers

    def __call__(self, rows: pa.Table) -> pa.Table:
        keys = rows["key"].to_pylist()
        self._meet(keys)
        status = [schema.REJECTED if key % 3 == 0 else schema.LABELLED for key in keys]
        table = pa.table(
            {
                "key": pa.array(keys, pa.int64()),
                "value": [str(key * key) for key in keys],
                "boxes": pa.array([[[0.0, 0.0, key + 0.5, 1.0]] for key in keys], pa.list_(schema.BOX_TYPE)),
                "status": status,
                "reason": pa.array(["multiple" if s == schema.REJECTED else None for s in status], pa.string()),
            }
        ).cast(TABLE)
        return table.append_column(schema.OUTCOME, table["status"])

    def _meet(self, keys: list[int]) -> None:
        dangers = self._dangers
        time.sleep(dangers.seconds_per_block)
        if dangers.kill.intersection(keys) or (dangers.kill_once and _first(dangers.kill_once)):
            os.kill(os.getpid(), signal.SIGKILL)
        if found := dangers.bug.intersection(keys):
            raise KeyError(f"no such thing as row {min(found)}")
        if dangers.seen:
            for key in keys:
                with (dangers.seen / str(key)).open("ab") as stream:
                    stream.write(b".")


def _first(mark: Path) -> bool:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def crashed(row: Mapping[str, Any]) -> dict[str, object]:
    return {"value": row["word"], "status": schema.REJECTED, "reason": "worker_crash"}


def write_list(folder: Path, count: int) -> Place:
    path = folder / "list.parquet"
    table = pa.table({"key": pa.array(range(count), pa.int64()), "word": [f"w{i}" for i in range(count)]})
    pq.write_table(table, path, row_group_size=max(1, count // 4))
    return Place.of(path)


def squares(
    rows: Place, count: int, dangers: Dangers | None = None, *, rows_per_block: int = 10, threshold: float = 0.3
) -> Work:
    step = Step(make=partial(Square, dangers or Dangers()), num_actors=2, num_cpus=1)
    return Work(
        stage="squares",
        source=Source(
            places=[rows],
            columns=["key", "word"],
            num_rows=count,
            identity={"threshold": threshold, "teacher": {"sha256": "aa"}},
            inputs={"list": "hash"},
            steps=[step],
        ),
        table=TABLE,
        good=schema.LABELLED,
        apart=True,
        crashed=crashed,
        rows_per_block=rows_per_block,
        config={"threshold": threshold},
    )
