"""Find 64-bit hashes that differ in few bits, among millions, in bounded memory.

Two hashes within ``d`` bits of each other are, cut into ``m`` pieces, within ``d // m`` bits in at least one piece
(Norouzi, Punjani and Fleet: Fast Search in Hamming Space with Multi-Index Hashing, arXiv 1307.2982). So each piece gets
a table, and a query looks up its own piece and those a few bits away. Pieces are as wide as the logarithm of the number
of hashes, which keeps a table's entries short.
"""

import math
from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]

_BITS = 64
_WIDEST = 22
"""Bits of the widest piece: its table has four million entries, 32 MB."""
_AT_ONCE = 1 << 22
"""Candidates compared at a time: bounds the memory to some 200 MB."""


class Neighbourhood:
    """Hashes in which neighbours can be looked up; small enough to travel to every worker of a job."""

    def __init__(self, hashes: Hashes, max_distance: int) -> None:
        """Build the tables.

        Args:
            hashes: what can be found; equal ones may occur.
            max_distance: bits in which a neighbour may differ.
        """
        self.hashes, self.max_distance = hashes, max_distance
        wide = min(max(round(math.log2(max(len(hashes), 2))), 8), _WIDEST)
        number = max(1, round(_BITS / wide))
        edges = [_BITS * i // number for i in range(number + 1)]
        self._tables = [_Table(hashes, low, high - low, max_distance // number) for low, high in pairwise(edges)]

    def __len__(self) -> int:
        """Give the number of hashes."""
        return len(self.hashes)

    def pairs(self, queries: Hashes) -> Iterator[tuple[Positions, Positions]]:
        """Find all neighbours of all queries, in portions of rising queries.

        Yields:
            Positions in ``queries`` and, as many, in ``hashes``: each pair once, a query's pairs in one portion.
        """
        if not len(self.hashes) or not len(queries):
            return
        expected = sum(table.candidates(queries) for table in self._tables)
        portion = np.cumsum(expected) // _AT_ONCE
        for part in np.split(np.arange(len(queries)), np.flatnonzero(np.diff(portion)) + 1):
            asked, found = zip(*(table.lookup(queries[part]) for table in self._tables), strict=True)
            rows, columns = part[np.concatenate(asked)], np.concatenate(found)
            near = np.bitwise_count(queries[rows] ^ self.hashes[columns]) <= self.max_distance
            pairs = np.unique(rows[near] * len(self.hashes) + columns[near])  # a pair may be near in several pieces
            yield pairs // len(self.hashes), pairs % len(self.hashes)


class _Table:
    """The hashes by one piece of their bits."""

    def __init__(self, hashes: Hashes, low: int, width: int, radius: int) -> None:
        self._low, self._mask = np.uint64(low), np.uint64((1 << width) - 1)
        self._masks = np.array(
            [sum(1 << bit for bit in bits) for r in range(radius + 1) for bits in combinations(range(width), r)],
            dtype=np.uint64,
        )
        pieces = self._piece(hashes)
        self._order = np.argsort(pieces, kind="stable").astype(np.int32 if len(hashes) < 1 << 31 else np.int64)
        counts = np.bincount(pieces.astype(np.int64), minlength=1 << width)
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def _piece(self, hashes: Hashes) -> Hashes:
        return (hashes >> self._low) & self._mask

    def _buckets(self, queries: Hashes) -> NDArray[np.int64]:
        return (self._piece(queries)[:, None] ^ self._masks).astype(np.int64)

    def candidates(self, queries: Hashes) -> NDArray[np.int64]:
        """Count what each query would be compared with, and the tables it is looked up in."""
        total = np.full(len(queries), len(self._masks), dtype=np.int64)
        for mask in self._masks:
            buckets = (self._piece(queries) ^ mask).astype(np.int64)
            total += self._starts[buckets + 1] - self._starts[buckets]
        return total

    def lookup(self, queries: Hashes) -> tuple[Positions, Positions]:
        """Give each query's candidates as pairs of positions."""
        buckets = self._buckets(queries)
        starts = self._starts[buckets]
        counts = (self._starts[buckets + 1] - starts).ravel()
        rows = np.repeat(np.repeat(np.arange(len(queries)), buckets.shape[1]), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self._order[np.repeat(starts.ravel(), counts) + within].astype(np.int64)


def first_of_equals(values: Hashes) -> NDArray[np.bool_]:
    """Tell of each value, or row of values, whether it is the first of its kind."""
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True, axis=None if values.ndim == 1 else 0)[1]] = True
    return first


def losers(hashes: Hashes, max_distance: int, among: Hashes | None = None) -> NDArray[np.bool_]:
    """Tell which hashes have an earlier one, itself no loser, within ``max_distance`` bits.

    One that loses speaks for nobody: a chain of small differences never removes what is far from all that stays, and
    every loser is near one that stays.

    Args:
        hashes: in the order of their right to stay.
        max_distance: bits.
        among: a group per hash; only hashes of one group compete.
    """
    groups = np.zeros(len(hashes), dtype=np.uint64) if among is None else among
    # Equal ones first: a popular picture in k copies would make k * k pairs.
    lost = ~first_of_equals(hashes if among is None else np.stack([hashes, groups], axis=1))
    left = np.flatnonzero(~lost)
    for asked, found in Neighbourhood(hashes[left], max_distance).pairs(hashes[left]):
        earlier = found < asked
        rows, others = left[asked[earlier]], left[found[earlier]]
        same = (groups[rows] == groups[others]) & ~lost[others]
        for row, other in zip(rows[same].tolist(), others[same].tolist(), strict=True):
            lost[row] |= not lost[other]
    return lost
