"""A reader that looks at an output while it is made, broken and gone on with."""

import io
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.chaos.servers import BUCKET, Store
from tests.chaos.stages import Home

LOOK_S = 0.1


class Shelf:
    """What lies in a home, by path from it: on this machine, and in the store past its front."""

    def __init__(self, home: Home, store: Store | None) -> None:
        self._local, self._store = home.local, store
        self._prefix = home.remote.removeprefix(f"s3://{BUCKET}/")

    def names(self) -> set[str]:
        there = (path for path in self._local.rglob("*") if path.is_file())
        found = {path.relative_to(self._local).as_posix() for path in there}
        if self._prefix and self._store:
            found |= {key.removeprefix(f"{self._prefix}/") for key in self._store.names(self._prefix)}
        return found

    def read(self, name: str) -> bytes:
        local = self._local / name
        if local.exists() or not self._prefix or not self._store:
            return local.read_bytes()
        return self._store.read(f"{self._prefix}/{name}")

    def bring(self, folder: Path) -> Path:
        """Give the home as one local folder."""
        if not self._prefix:
            return self._local
        for name in self.names():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.read(name))
        return folder


class Follower:
    """Remembers which pieces of work were committed, and every shard or json that was torn when it was first seen."""

    def __init__(self, shelf: Shelf, committed: Callable[[str], bool]) -> None:
        self._shelf, self._committed, self._over = shelf, committed, threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._read: set[str] = set()
        self.seen: dict[str, float] = {}
        """Committed pieces, and when they were first seen."""
        self.torn: list[str] = []

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def first_after(self, moment: float) -> float | None:
        """Tell when the first piece after a moment was there."""
        return min((when for when in self.seen.values() if when > moment), default=None)

    def _look_on(self) -> None:
        while not self._over.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        with suppress(FileNotFoundError):  # a folder deleted under our eyes; the next look sees the rest
            for name in self._shelf.names():
                if self._committed(name):
                    self.seen.setdefault(name, time.monotonic())
                # The ledger is nobody's to read but the engine's, which expects it torn.
                read = name.endswith((".parquet", ".json")) and not hidden(name) and ".ledger/" not in name
                if read and name not in self._read:
                    self._read_once(name)

    def _read_once(self, name: str) -> None:
        try:
            content = self._shelf.read(name)
            json.loads(content) if name.endswith(".json") else pq.read_table(io.BytesIO(content))
        except FileNotFoundError:
            return  # deleted since: what a dead writer had not committed
        except (pa.ArrowInvalid, ValueError, OSError) as error:
            self.torn.append(f"{name}: {error}")
        self._read.add(name)


def hidden(name: str) -> bool:
    """Say whether a path is nobody's business: a part of it begins with a dot or an underscore."""
    return any(part.startswith((".", "_")) for part in name.split("/"))
