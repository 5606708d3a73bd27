"""Which row comes when: the order of a mixture of shards that may be larger than any memory.

In memory are a few numbers per row, not the rows: those are read by row group when their turn comes. An epoch is a
seeded order of all row groups, cut into windows of some thousand rows, whose rows are shuffled among each other. So a
reader goes through each row group once per epoch, and the order hangs on nothing but the seed and the shards, whatever
the number of readers. A mixture that fits into one window is shuffled as a whole: then not even the shards matter.
"""

import hashlib
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.row_index import Numbers, SourceConfig, Texts, open_shard, read_index
from pipeline.selection import SelectionConfig, select

PER_BOX = ("boxes", "tokens_positive", "phrase_index", "category_id")
FEDERATED = ("neg_category_ids", "not_exhaustive_ids")
COLUMNS = ("sample_id", "kind", "image", "text", "phrases", "entity", "score", "iscrowd", *PER_BOX, *FEDERATED)

_WINDOWS_KEPT = 3
"""A batch may lie astride two windows, and a loader that reads ahead is at the next one."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """How samples follow each other."""

    window_rows: int = 4096
    """Rows shuffled among each other, at least; two such windows of encoded images are held in memory."""
    bucket_batches: int = 1
    """Batches formed together, of images of like shape and texts of like length, and then shuffled; 1 forms each by
    itself. Less padding, at the price of batches whose samples are alike."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("window_rows", "bucket_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")


class Mixture:
    """The rows that can be trained on: labelled, with at least one box that is not a crowd and is selected."""

    def __init__(
        self, sources: Sequence[SourceConfig], selection: SelectionConfig, order: OrderConfig, seed: int
    ) -> None:
        """Read the numbers of every row, but no picture.

        Raises:
            ValueError: a source is unfinished, or nothing can be trained on.
        """
        self._selection, self._order, self._seed = selection, order, seed
        self._indexes = [read_index(source, selection) for source in sources]
        self._sizes = [np.diff(index.starts) for index in self._indexes]
        pieces = [
            [np.full(len(sizes), number), np.arange(len(sizes)), np.full(len(sizes), copy)]
            for number, (source, sizes) in enumerate(zip(sources, self._sizes, strict=True))
            for copy in range(source.copies)
        ]
        self._entries = np.concatenate([np.empty((3, 0), np.int64), *map(np.stack, pieces)], axis=1)
        self._epoch = sum(int(sizes.sum()) * s.copies for sizes, s in zip(self._sizes, sources, strict=True))
        if not self._epoch:
            raise ValueError(f"no sample with a box in {[str(s.path) for s in sources]}; look at their manifests")
        self.num_different = sum(len(i.row) for i, s in zip(self._indexes, sources, strict=True) if s.copies)
        self.captions: Sequence[str] = Texts([i.captions for i in self._indexes])
        self._kept: OrderedDict[tuple[object, object], Any] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def __len__(self) -> int:
        """Count the samples of an epoch, copies and all."""
        return self._epoch

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what was read: another process reads for itself."""
        return {**vars(self), "_kept": OrderedDict(), "_groups": OrderedDict()}

    def batch(self, step: int, size: int) -> list[tuple[int, int, int, int]]:
        """Give epoch, source, row and copy of every sample of a batch; batches are numbered over all epochs."""
        many = self._order.bucket_batches
        chunk, place = divmod(step, many)
        positions = self._remember(("batches", size), chunk, lambda: self._batches(chunk, size))[place]
        return [(p // self._epoch, *self._at(*divmod(p, self._epoch))) for p in positions]

    def read(self, source: int, number: int) -> Row:
        """Read a row, its boxes reduced to those that are trained on."""
        index = self._indexes[source]
        group = int(np.searchsorted(index.starts, number, "right")) - 1
        table = self._group(source, group)
        row: Row = table.slice(int(index.row[number]), 1).to_pylist()[0]
        return row | _reduced(row, _kept_boxes(row, self._selection))

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        """Give every different row once, with the number of its source, in the order of the files."""
        for source, index in enumerate(self._indexes):
            for number in range(len(index.row)):
                yield source, self.read(source, number)

    def _batches(self, chunk: int, size: int) -> list[list[int]]:
        """Form some batches together: alike samples meet, and the batches come in any order."""
        many = self._order.bucket_batches
        positions = list(range(chunk * many * size, (chunk + 1) * many * size))
        if many > 1:
            found = [self._at(*divmod(position, self._epoch)) for position in positions]
            alike = [self._indexes[source].likeness[number] for source, number, _ in found]
            positions = [positions[i] for i in np.argsort(alike, kind="stable")]
        batches = [positions[first : first + size] for first in range(0, len(positions), size)]
        if many > 1:
            seeded(self._seed, "batches", chunk).shuffle(batches)
        return batches

    def _at(self, epoch: int, position: int) -> tuple[int, int, int]:
        """Find the source, row and copy at a position of an epoch."""
        _, ends, windows = self._remember("epoch", epoch, lambda: self._epoch_order(epoch))
        window = int(windows[np.searchsorted(ends, position, "right")])
        begin, rows = self._remember("window", (epoch, window), lambda: self._window(epoch, window))
        source, number, copy = rows[position - begin]
        return source, number, copy

    def _epoch_order(self, epoch: int) -> tuple[Numbers, Numbers, Numbers]:
        """Shuffle the row groups; give them, the position behind each, and the window of each."""
        order = list(range(self._entries.shape[1]))
        seeded(self._seed, epoch, "groups").shuffle(order)
        entries = self._entries[:, order]
        sizes = np.array([self._sizes[source][group] for source, group, _ in entries.T], np.int64)
        ends = sizes.cumsum()
        return entries, ends, (ends - sizes) // self._order.window_rows

    def _window(self, epoch: int, window: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Shuffle the rows of a window; give its first position and its rows."""
        entries, ends, windows = self._remember("epoch", epoch, lambda: self._epoch_order(epoch))
        first, last = np.searchsorted(windows, [window, window + 1])
        rows = [
            (source, number, copy)
            for source, group, copy in entries[:, first:last].T.tolist()
            for number in range(self._indexes[source].starts[group], self._indexes[source].starts[group + 1])
        ]
        # Which shard a row lies in is chance: a labelling that was killed and gone on with has other shards.
        rows.sort(key=lambda row: (row[0], self._indexes[row[0]].rank[row[1]], row[2]))
        seeded(self._seed, epoch, "window", window).shuffle(rows)
        return int(ends[first - 1]) if first else 0, rows

    def _remember(self, what: object, key: object, make: Callable[[], Any]) -> Any:
        found = self._kept.pop((what, key), None)
        self._kept[what, key] = found = make() if found is None else found
        for old in [k for k in self._kept if k[0] == what][:-_WINDOWS_KEPT]:
            del self._kept[old]
        return found

    def _group(self, source: int, group: int) -> pa.Table:
        """Read a row group, and forget those that have not been asked for longest."""
        key = (source, group)
        if (table := self._groups.pop(key, None)) is None:
            place, number = self._indexes[source].groups[group]
            table = open_shard(place).read_row_group(number, columns=list(COLUMNS), use_threads=False)
        self._groups[key] = table
        while sum(map(len, self._groups.values())) > 2 * self._order.window_rows + 2 * len(table):
            self._groups.popitem(last=False)
        return table


def seeded(*seed: object) -> random.Random:
    """Make a generator that is the same for the same values in every process, as Python's own ``hash`` is not."""
    digest = hashlib.sha256(repr(seed).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def _reduced(row: Row, keep: Sequence[int]) -> Row:
    columns = {name: row[name] and [row[name][i] for i in keep] for name in PER_BOX}
    if row["kind"] != schema.DETECTION:
        return columns
    # A crowd is full of objects without boxes.
    crowded = {row["category_id"][i] for i, crowd in enumerate(row["iscrowd"] or ()) if crowd}
    return columns | {"not_exhaustive_ids": sorted(crowded.union(row["not_exhaustive_ids"] or ()))}


def _kept_boxes(row: Row, selection: SelectionConfig) -> list[int]:
    if row["kind"] == schema.CAPTION:
        return select(row["boxes"], row["score"], row["phrase_index"], selection)
    crowd = row["iscrowd"] or [False] * len(row["boxes"])
    return [i for i, flag in enumerate(crowd) if not flag]
