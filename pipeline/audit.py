"""Count what really lies on disk: every row once, every file whole.

A run is finished when its files say so, not when its tasks do. The account of each file is taken where the file can be
read fastest, by Ray tasks over the cluster; the driver keeps ten bytes per row, and 40 more for a moment.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipeline import schema
from pipeline.failure import RunError
from pipeline.storage import Place

FILES_PER_TASK = 16
"""Files one task looks at."""
TASKS_AT_ONCE = 64
"""Tasks in flight, which bounds what waits on the driver."""
_NOT_CONTENT = ("run_id", "image")
"""Columns that do not tell one content from another: who wrote a row, and pixels that their sha256 stands for."""

Keys = npt.NDArray[np.int64]


class AuditError(RunError):
    """Rows are missing, there twice, or cannot be read: nothing is called finished."""


@dataclass(frozen=True, kw_only=True)
class FileAccount:
    """What one shard holds."""

    path: str
    """Relative to the directory."""
    bytes: int
    sha256: str
    keys: Keys
    """Row ids, in file order."""
    kept: int
    """Rows of the good status."""
    rejects: dict[str, int]
    """Other rows, by reason."""
    digest: int
    """Sum over the rows of a hash of each: the same whatever their order, and whichever files they lie in."""

    @property
    def entry(self) -> dict[str, object]:
        """The file as the manifest lists it."""
        return {"path": self.path, "rows": len(self.keys), "bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a directory holds."""

    files: list[FileAccount]
    unreadable: list[str] = field(default_factory=list)
    """Files that are no parquet, or lack rows they claim."""

    @property
    def digest(self) -> str:
        """Hash of the set of rows."""
        return f"{sum(file.digest for file in self.files) % 2**128:032x}"

    @property
    def kept(self) -> int:
        """Rows of the good status."""
        return sum(file.kept for file in self.files)

    @property
    def rejects(self) -> dict[str, int]:
        """Other rows, by reason."""
        reasons: Counter[str] = Counter()
        for file in self.files:
            reasons.update(file.rejects)
        return dict(sorted(reasons.items()))

    def times_seen(self, num_rows: int) -> npt.NDArray[np.uint16]:
        """Count how often each of the rows 0 … ``num_rows`` - 1 is there (65,535 at most).

        Raises:
            AuditError: a row is there that was never given.
        """
        seen = np.zeros(num_rows, np.uint16)
        for file in self.files:
            if len(file.keys) and not 0 <= file.keys.min() <= file.keys.max() < num_rows:
                raise AuditError(
                    f"{file.path} holds rows beyond the {num_rows} given; the directory is not of this list"
                )
            np.add.at(seen, file.keys, np.uint16(1))
        return seen


def take_account(directory: Place, good: str, known: Sequence[FileAccount] = ()) -> Account:
    """Read every shard under a directory once, in Ray tasks, and count.

    Args:
        directory: holds the shards.
        good: status of the rows that count as kept.
        known: shards read before; they never change, so they are not read again.
    """
    there = directory.files(".parquet")
    paths = {place.relative_to(directory) for place in there}
    files = [file for file in known if file.path in paths]
    read = {file.path for file in files}
    work = [place for place in there if place.relative_to(directory) not in read]
    chunks = [work[i : i + FILES_PER_TASK] for i in range(0, len(work), FILES_PER_TASK)]
    unreadable: list[str] = []
    waiting: list[ray.ObjectRef[list[FileAccount | str]]] = []
    while chunks or waiting:
        while chunks and len(waiting) < TASKS_AT_ONCE:
            waiting.append(_account_files.remote(chunks.pop(), directory, good))
        done, waiting = ray.wait(waiting)
        for found in ray.get(done[0]):
            if isinstance(found, str):
                unreadable.append(found)
            else:
                files.append(found)
    files.sort(key=lambda file: (int(file.keys.min()) if len(file.keys) else -1, file.path))
    return Account(files=files, unreadable=sorted(unreadable))


def superfluous(account: Account, seen: npt.NDArray[np.uint16]) -> list[FileAccount]:
    """Choose files all of whose rows are there elsewhere too; without them no row is lost.

    Such files are left by a writer that outlived its driver: it commits rows which the next run, started meanwhile,
    writes again.
    """
    left = seen.copy()
    chosen = []
    for file in sorted(account.files, key=lambda file: len(file.keys)):
        if len(file.keys) and (left[file.keys] > 1).all():
            left[file.keys] -= 1
            chosen.append(file)
    return chosen


def account_file(place: Place, directory: Place, good: str) -> FileAccount:
    """Take the account of one shard.

    Raises:
        pyarrow.ArrowException, OSError: it cannot be read.
    """
    data = place.read_bytes()
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            table = file.read([name for name in file.schema_arrow.names if name not in _NOT_CONTENT])
    except OSError as error:  # damaged within; the store has given the bytes it has
        raise pa.ArrowInvalid(str(error)) from error
    kept, rejects = _outcomes(table, good)
    return FileAccount(
        path=place.relative_to(directory),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        keys=table["key"].to_numpy().astype(np.int64),
        kept=kept,
        rejects=rejects,
        digest=_digest(table),
    )


@ray.remote(num_cpus=1, max_retries=3)
def _account_files(places: Sequence[Place], directory: Place, good: str) -> list[FileAccount | str]:
    found: list[FileAccount | str] = []
    for place in places:
        try:
            found.append(account_file(place, directory, good))
        except (pa.ArrowInvalid, pa.ArrowTypeError, EOFError) as error:  # torn; a store that fails is another matter
            found.append(f"{place.relative_to(directory)}: {str(error).splitlines()[0]}")
    return found


def _outcomes(table: pa.Table, good: str) -> tuple[int, dict[str, int]]:
    reasons: Counter[str] = Counter()
    kept = 0
    counted = table.group_by(["status", "reason"]).aggregate([([], "count_all")])
    for row in counted.to_pylist():
        status, reason, count = row["status"], row["reason"], row["count_all"]
        if status == good:
            kept += count
        else:
            reasons[str(reason) if status == schema.REJECTED else f"{status}:{reason}"] += count
    return kept, dict(reasons)


def _digest(table: pa.Table) -> int:
    total = 0
    for row in table.to_pylist():
        total += int.from_bytes(hashlib.blake2b(repr(sorted(row.items())).encode(), digest_size=16).digest(), "big")
    return total % 2**128
