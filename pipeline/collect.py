"""Give every pair its image, or the reason why there is none: what a download actor does with its blocks.

The image is fetched, or read where it already lies, and then decoded in a process of its own. Blocks share one rolling
window of requests, so that several blocks on threads of one actor keep it busy while each awaits its slowest address.
"""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.decode import ImageConfig, IsolatedDecoder
from pipeline.fetch import FetchConfig, Fetcher
from pipeline.img2dataset_parts import Picture
from pipeline.isolation import Limits
from pipeline.sources.stored import StoredReader

_NO_ADDRESS = "bad_line"


@dataclass(frozen=True, kw_only=True)
class CollectConfig(ImageConfig):
    """How images are fetched, chosen and stored (`ImageConfig`), by one actor."""

    fetch: FetchConfig = field(default_factory=FetchConfig)
    """Limits of every request."""
    decode: Limits = field(default_factory=lambda: Limits(processes=2))
    """Processes that decode, per actor, and what they may use; about 150 images/s each."""


class Reader(Protocol):
    """Reads images that lie somewhere already."""

    def read(self, locator: str) -> bytes | str:
        """Read an image's bytes, or say why there are none."""


class _Outcome(NamedTuple):
    """What became of one pair."""

    status: str
    reason: str | None = None
    source_sha256: str | None = None
    picture: Picture | None = None


class Collector:
    """Fetches and decodes blocks of pairs, several at once on threads; a context manager."""

    def __init__(self, config: CollectConfig, reader: Reader | None = None) -> None:
        """Open the client and start the decoders, once per process.

        Args:
            config: What to fetch and keep.
            reader: Reads stored images, for any number of threads; a `StoredReader` by default.
        """
        self._decode = IsolatedDecoder(config, config.decode)
        # One thread more than decoders: it prepares the next image while all of them are busy.
        num_workers = config.decode.processes + 1
        self._fetcher = Fetcher(config.fetch, num_workers=num_workers)
        self._workers = ThreadPoolExecutor(num_workers, thread_name_prefix="stored")
        self._most_pending = 2 * num_workers
        self._reader = reader or StoredReader(config.fetch.max_bytes)

    def __enter__(self) -> Self:
        """Use the collector for the length of a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the collector."""
        self.close()

    def close(self) -> None:
        """End its threads and processes; nobody may be calling."""
        self._fetcher.close()
        self._workers.shutdown()
        self._decode.close()

    def __call__(self, pairs: pa.Table) -> pa.Table:
        """Give every row of `schema.PAIRS` its outcome, as `schema.IMAGES`; the order stays."""
        urls, stored = pairs["url"].to_pylist(), pairs["stored"].to_pylist()
        outcomes = [_Outcome(schema.FAILED_TO_DOWNLOAD, _NO_ADDRESS)] * len(urls)
        here = [row for row, locator in enumerate(stored) if locator is not None]
        for row, outcome in zip(here, self._read_all([stored[row] for row in here]), strict=True):
            outcomes[row] = outcome
        there = [row for row, url in enumerate(urls) if url is not None and stored[row] is None]
        fetched = self._fetcher.fetch_all([urls[row] for row in there], self._take) if there else []
        for row, result in zip(there, fetched, strict=True):
            outcomes[row] = _Outcome(schema.FAILED_TO_DOWNLOAD, result) if isinstance(result, str) else result
        return _to_table(pairs, outcomes)

    def _read_all(self, locators: list[str]) -> Iterator[_Outcome]:
        """Read stored images in their order, in which they may lie side by side in a file."""
        pending: deque[Future[_Outcome]] = deque()
        for locator in locators:
            pending.append(self._workers.submit(self._read, locator))
            if len(pending) == self._most_pending:
                yield pending.popleft().result()
        for future in pending:
            yield future.result()

    def _read(self, locator: str) -> _Outcome:
        data = self._reader.read(locator)
        return _Outcome(schema.FAILED_TO_DOWNLOAD, data) if isinstance(data, str) else self._take(data)

    def _take(self, data: bytes) -> _Outcome:
        digest = hashlib.sha256(data).hexdigest()
        picture = self._decode(data)
        if isinstance(picture, str):
            return _Outcome(schema.FAILED_TO_RESIZE, picture, digest)
        return _Outcome(schema.SUCCESS, None, digest, picture)


def _to_table(pairs: pa.Table, outcomes: list[_Outcome]) -> pa.Table:
    """Put outcomes beside their pairs, column by column: dictionaries of rows cost several times as much."""
    pictures = [outcome.picture for outcome in outcomes]
    data = _binary([picture.data if picture else None for picture in pictures])
    image = pa.StructArray.from_arrays(
        [data, pa.nulls(len(data), pa.string())], fields=list(schema.IMAGE_TYPE), mask=data.is_null()
    )
    columns: dict[str, Any] = {
        "status": [outcome.status for outcome in outcomes],
        "reason": [outcome.reason for outcome in outcomes],
        "image": image,
        "source_sha256": [outcome.source_sha256 for outcome in outcomes],
    }
    for name in ("width", "height", "original_width", "original_height", "sha256", "phash"):
        columns[name] = [None if picture is None else getattr(picture, name) for picture in pictures]
    given = {name: pairs[name] for name in schema.PAIRS.names}
    return pa.table({**given, **columns}, schema=schema.IMAGES)


def _binary(values: list[bytes | None]) -> pa.BinaryArray:
    """Copy bytes into an array once; Arrow's own way grows it step by step, which copies it several times over."""
    offsets = np.cumsum([0, *(len(value or b"") for value in values)])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{len(values)} images take {offsets[-1]} bytes, too many for a block; lower rows_per_block")
    present = pa.array([value is not None for value in values], pa.bool_())
    data = b"".join(value or b"" for value in values)
    buffers = [present.buffers()[1], pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(values), buffers)
