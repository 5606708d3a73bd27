"""Who writes an output, from what, and which rows are done: what makes a run safe to kill and to repeat.

Beside an output ``labels/`` lies ``labels.ledger/``, on the same storage:

``claim.json``   everything that decides the content; a run that would write something else is refused
``writer.json``  who is writing now; a second writer is refused
``done/``        Ray Data's row checkpoint: the ids of committed rows, one small file per shard
``bugs/``        tracebacks of exceptions that no bad row can explain

Ray's checkpoint has gaps that its own recovery does not see. `Ledger.reconcile` closes them before every run.
"""

import json
import logging
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.audit import Keys
from pipeline.shards import plain
from pipeline.storage import Place
from pipeline.tracking import flatten

logger = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
"""Seconds between a writer's signs of life."""
LAPSE_S = 60.0
"""Seconds without one after which a writer on another machine counts as dead."""
SETTLE_S = 2.0
"""Seconds after which, of several runs that take over a dead writer's place at once, only the last still stands."""
PENDING = ".pending.parquet"
"""Ending of a checkpoint file whose rows are not committed yet (Ray's)."""
COMPACT_FROM = 256
"""Checkpoint files from which they are made one: Ray reads all of them before it starts."""
_AT_ONCE = 16
"""Checkpoint files read or deleted side by side: on S3 each takes a few requests, and a large run has thousands."""


class WriterError(ValueError):
    """Somebody else is writing this output."""


class Ledger:
    """The ledger of one output directory."""

    def __init__(self, out: Place) -> None:
        """Name the places; nothing is made yet."""
        self.out = out
        self.folder = Place.of(f"{out}.ledger")
        self.done = self.folder / "done"
        self.bugs = self.folder / "bugs"
        self._claim, self._writer = self.folder / "claim.json", self.folder / "writer.json"
        self._lost = threading.Event()
        self._token = ""

    def claim(self, identity: Mapping[str, object]) -> None:
        """Bind the output to what it is made from, or check that it already is.

        Raises:
            ValueError: the output was begun with something else, or holds files that are not ours.
        """
        text = json.dumps({"identity": identity}, default=plain, sort_keys=True, indent=1)
        if self._claim.exists():
            begun = json.loads(self._claim.read_text())["identity"]
            if told := differences(begun, json.loads(text)["identity"]):
                raise ValueError(
                    f"{self.out} was begun otherwise: {'; '.join(told)}. Nothing is mixed: give what it was begun "
                    f"with, or another output directory"
                )
            return
        if self.out.files():
            raise ValueError(f"{self.out} holds files that are not ours; give an empty or a new directory")
        self._claim.write_text(text)

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Be the only writer for the length of a block.

        Raises:
            WriterError: another one lives; or it came while we were silent, and our rows may be its rows.
        """
        self._token = uuid.uuid4().hex
        me = {"token": self._token, **_who()}
        self._take(me)
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(me, stop), name="heartbeat", daemon=True)
        beat.start()
        try:
            yield
            self.check_writer()
        finally:
            stop.set()
            beat.join()
            if self._is_ours():
                self._writer.delete()

    def check_writer(self) -> None:
        """Make sure that nobody took this output over.

        Raises:
            WriterError: somebody did.
        """
        if not self._is_ours():
            raise WriterError(
                f"{self.out} was taken over by another run while this one was silent; let that one finish"
            )

    def reconcile(self) -> int:
        """Put right what a killed run may have left, and count the rows that are done.

        Ray commits a checkpoint file by renaming it. On S3 a rename is a copy and a deletion; killed between the two,
        both names exist. Ray's recovery then deletes the rows and keeps their ids: they would be lost in silence. A
        pending file with a committed twin is therefore deleted first. Many files become one, as Ray reads them all.
        """
        listed = self._checkpoint_files()
        committed = {place.name for place in listed if not place.name.endswith(PENDING)}
        for place in listed:
            if place.name.endswith(PENDING) and place.name.replace(PENDING, ".parquet") in committed:
                place.delete()
        _delete_leftovers(self.out)
        return len(self._compact([place for place in listed if place.name in committed]))

    def heal(self, present: Keys) -> None:
        """Make the checkpoint say what the shards say: rows it promises that are not there are done again."""
        stale = self._checkpoint_files()
        self._write_ids(present)
        _delete_all(stale)

    def report_bug(self, error: BaseException) -> None:
        """Keep an exception for the driver; called on workers."""
        text = "".join(traceback.format_exception(error))
        (self.bugs / f"{uuid.uuid4().hex}.txt").write_text(text)

    def bugs_seen(self) -> list[str]:
        """Read the tracebacks of this run."""
        return [place.read_text() for place in islice(self.bugs.files(".txt"), 10)]

    def forget_bugs(self) -> None:
        """Clear the tracebacks of an earlier run."""
        self.bugs.delete()

    def _take(self, me: Mapping[str, object]) -> None:
        data = json.dumps(me).encode()
        while not self._writer.create(data):
            if (other := self._read_writer()) is None:
                continue  # it just left
            if other["token"] == me["token"]:
                return  # it was us: the answer to a first try was lost, and the second found our own file
            if _alive(other):
                ago = time.time() - float(other["beat"])
                raise WriterError(
                    f"{self.out} is being written by process {other['pid']} on {other['host']} (last sign of life "
                    f"{ago:.0f} s ago); wait for it or stop it. A dead writer's place is free after {LAPSE_S:.0f} s"
                )
            self._writer.write_bytes(data)
            time.sleep(SETTLE_S)
            if (now := self._read_writer()) is not None and now["token"] == me["token"]:
                return

    def _read_writer(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._writer.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise OSError(f"{self._writer} is no JSON; if nobody is writing {self.out}, delete it") from error
        return found

    def _is_ours(self) -> bool:
        """Ask the place itself: the last sign of life may be seconds old."""
        found = None if self._lost.is_set() else self._read_writer()
        return found is not None and found["token"] == self._token

    def _beat(self, me: Mapping[str, object], stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_S):
            try:
                found = self._read_writer()
                if found is None or found["token"] != me["token"]:
                    self._lost.set()
                    return
                self._writer.write_text(json.dumps({**me, "beat": time.time()}))
            except OSError as error:  # the store is away for a moment; the next beat may reach it
                logger.warning("no sign of life could be written to %s: %s", self._writer, error)

    def _checkpoint_files(self) -> list[Place]:
        return self.done.files(".parquet", recursive=False)

    def _compact(self, files: list[Place]) -> Keys:
        with ThreadPoolExecutor(_AT_ONCE) as readers:
            parts = list(readers.map(_read_ids, files))
        ids = _different(np.concatenate([np.empty(0, np.int64), *parts]))
        if len(files) >= COMPACT_FROM:
            self._write_ids(ids)
            _delete_all(files)
        return ids

    def _write_ids(self, ids: Keys) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"key": ids}), sink, compression="zstd")
        (self.done / f"compacted-{uuid.uuid4().hex}.parquet").write_bytes(sink.getvalue().to_pybytes())


def differences(begun: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Name every setting that differs: ``teacher.sha256 was 1f…, now 9c…``."""
    old, new = flatten(begun), flatten(now)
    return [
        f"{name} was {old.get(name, 'not set')!r}, now {new.get(name, 'not set')!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _who() -> dict[str, object]:
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": os.getpid(), "began": process.create_time(), "beat": time.time()}


def _alive(other: Mapping[str, Any]) -> bool:
    if other["host"] == socket.gethostname():
        try:
            return bool(psutil.Process(other["pid"]).create_time() == other["began"])
        except psutil.NoSuchProcess:
            return False
    return time.time() - float(other["beat"]) < LAPSE_S


def _read_ids(place: Place) -> Keys:
    keys: Keys = pq.read_table(place.path, filesystem=place.filesystem, columns=["key"])["key"].to_numpy()
    return keys


def _different(ids: Keys) -> Keys:
    """Sort ids, each once: 0.2 s for 10 million, of which `numpy.unique` takes 12 s (2.4.6; it goes by hashes)."""
    ids.sort()
    first = np.ones(len(ids), bool)
    np.not_equal(ids[1:], ids[:-1], out=first[1:])
    return ids if first.all() else ids[first]


def _delete_all(places: Sequence[Place]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as deleters:
        list(deleters.map(Place.delete, places))  # asked for, so that an error is raised here


def _delete_leftovers(folder: Place) -> None:
    """Delete what a writer had not finished when it was killed (`storage.WholeFiles`)."""
    if not folder.is_local:
        return  # S3 never shows half an object
    selector = pafs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    for info in folder.filesystem.get_file_info(selector):
        if info.base_name.startswith(".") and info.base_name.endswith(".part"):
            folder.filesystem.delete_file(info.path)
