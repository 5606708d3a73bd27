"""Rows found by what they came from, and directories written anew without them."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.guards import EvaluationIndex, hash_picture
from pipeline.lineage import DROP
from pipeline.rewrite import LABEL_COLUMNS, Columns, Rewrite, Verdicts, rewrite, scan
from pipeline.shards import Manifest
from pipeline.storage import Place

REMOVED = "sha256:"
"""Begins the address of a row whose content was dropped; its hash follows, so that the address can still be found."""
_ADDRESSES, _DIGESTS = ("url", "image_uri"), ("sha256", "image_sha256", "source_sha256")
_READ = {
    "url": _ADDRESSES,
    "host": _ADDRESSES,
    "teacher": ("teacher", "teacher_sha256"),
    "image": _DIGESTS,
    "picture": (*_DIGESTS, "phash"),
    "run": ("run_id",),
}
"""Columns that are compared, by kind of what is searched for."""
_NAMED = ("status", "key", "sample_id")
_CONTENT = ("caption", "text", "phrases", "entity", "stored", "phash", "neg_category_ids", "not_exhaustive_ids")
_SHORTEST_PREFIX = 8


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is searched for; several things are alternatives."""

    urls: tuple[str, ...] = ()
    """Image addresses, exactly as they were given."""
    hosts: tuple[str, ...] = ()
    """Hosts of image addresses."""
    subdomains: bool = True
    """Take the hosts' subdomains too."""
    teachers: tuple[str, ...] = ()
    """Names of teachers, or their weights' hashes (the first 8 digits at least)."""
    images: tuple[str, ...] = ()
    """SHA-256 of images, as stored or as they came."""
    pictures: tuple[Path, ...] = ()
    """Image files, found by their bytes or their look."""
    max_distance: int = 6
    """Bits of 64 in which the perceptual hash of a picture may differ."""
    runs: tuple[str, ...] = ()
    """MLflow runs that wrote the rows."""

    def __post_init__(self) -> None:
        """Check hosts and hashes."""
        if bad := [host for host in self.hosts if not re.fullmatch(r"[^\s/:@?#]+", host)]:
            raise ValueError(f"hosts has {bad[0]!r}; give names like example.org, without scheme, port or path")
        if bad := [digest for digest in self.images if not re.fullmatch("[0-9a-fA-F]{64}", digest)]:
            raise ValueError(f"images has {bad[0]!r}; give SHA-256 of 64 hex digits, or files as pictures")
        if not 0 <= self.max_distance <= 16:
            raise ValueError(f"max_distance is {self.max_distance}; give 0 to 16 bits")

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """What is searched for by kind, without kinds that are not asked."""
        pictures = tuple(map(str, self.pictures))
        given = {"url": self.urls, "host": self.hosts, "teacher": self.teachers, "image": self.images}
        return {kind: what for kind, what in {**given, "picture": pictures, "run": self.runs}.items() if what}


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A shard that has what was searched for."""

    directory: str
    """The finished directory."""
    file: str
    """The shard in it."""
    rows: int
    """Rows found."""
    usable: int
    """Of these, rows that are neither rejected nor dropped already."""
    kinds: dict[str, int]
    """Rows by kind of what they were found by."""
    examples: list[str]
    """Some of the rows: ``sample_id``, or the key in a directory of images."""


class Search:
    """Finds rows by what they came from."""

    def __init__(self, wanted: Wanted) -> None:
        """Prepare what rows are compared with."""
        self._kinds = tuple(wanted.kinds)
        self._columns = tuple(dict.fromkeys(column for kind in self._kinds for column in _READ[kind]))
        self._addresses = pa.array([*wanted.urls, *map(hide, wanted.urls)], pa.string())
        self._hosts = _host_pattern(wanted.hosts, subdomains=wanted.subdomains)
        self._teachers, self._runs = (pa.array(names, pa.string()) for names in (wanted.teachers, wanted.runs))
        self._digests = pa.array([digest.lower() for digest in wanted.images], pa.string())
        hashed = [hash_picture(path.read_bytes()) for path in wanted.pictures]
        table = {"set": ["picture"] * len(hashed), "sha256": [h[0] for h in hashed], "phash": [h[1] for h in hashed]}
        types = pa.schema([("set", pa.string()), ("sha256", pa.string()), ("phash", pa.int64())])
        self._pictures = EvaluationIndex(pa.table(table, schema=types), wanted.max_distance)
        hidden = {"url": tuple(map(hide, wanted.urls)), "picture": tuple(digest for digest, _ in hashed)}
        self._config = {**wanted.kinds, **{kind: what for kind, what in hidden.items() if what}}

    def hits(self, directory: Path | Place, examples: int) -> list[Hit]:
        """Find the shards of a finished directory that have what is searched for.

        Raises:
            ValueError: the directory is unfinished.
        """
        rows: dict[str, Counter[str]] = {}
        named: dict[str, list[str]] = {}
        for file, batch in scan(directory, (*self._columns, *_NAMED)):
            codes = self._codes(batch)
            if not codes.any():
                continue
            found = batch.filter(pa.array(codes > 0)).select(_NAMED).to_pylist()
            counts, names = rows.setdefault(file, Counter()), named.setdefault(file, [])
            counts.update(self._kinds[code - 1] for code in codes[codes > 0].tolist())
            counts["usable"] += sum(row["status"] in (schema.SUCCESS, schema.LABELLED) for row in found)
            names += [str(row["sample_id"] or row["key"]) for row in found[: examples - len(names)]]
        return [
            Hit(
                directory=str(directory),
                file=file,
                rows=counts.total() - counts["usable"],
                usable=counts["usable"],
                kinds={kind: counts[kind] for kind in self._kinds if counts[kind]},
                examples=named[file],
            )
            for file, counts in rows.items()
        ]

    def drop(self, directory: Path | Place, out: Path) -> Manifest:
        """Write a directory anew with the rows found rejected as ``dropped:<kind>`` and emptied.

        They keep key, ``sample_id``, the hashes of the image, and the hash of the address; image, address, caption,
        phrases, labels and perceptual hash are gone.

        Raises:
            ValueError: the directory is unfinished, or ``out`` holds something else.
        """
        addresses: Columns = dict.fromkeys(_ADDRESSES, _hide_all)
        plan = Rewrite(
            stage=DROP,
            config={kind: sorted(what) for kind, what in self._config.items()},
            erase={**dict.fromkeys((*LABEL_COLUMNS, *_CONTENT)), **addresses},
        )
        reasons = ("", *(f"dropped:{kind}" for kind in self._kinds))

        def judge() -> Verdicts:
            codes = [self._codes(batch) for _, batch in scan(directory, (*self._columns, "status"))]
            return Verdicts(reasons=reasons, codes=np.concatenate([np.zeros(0, np.uint16), *codes]))

        return rewrite(directory, out, plan, judge)

    def _codes(self, rows: pa.RecordBatch) -> NDArray[np.uint16]:
        """Give per row the number, from 1, of the first kind it is found by; 0 if it is not."""
        codes = np.zeros(rows.num_rows, dtype=np.uint16)
        for number, kind in reversed(list(enumerate(self._kinds, start=1))):
            codes[self._found(kind, rows)] = number
        return codes

    def _found(self, kind: str, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        if kind == "picture":
            return self._pictures.find(rows) >= 0
        if kind == "host":
            matches = [pc.match_substring_regex(rows[name], self._hosts) for name in _ADDRESSES]
        elif kind == "teacher":
            prefixes = [name for name in self._teachers.to_pylist() if len(name) >= _SHORTEST_PREFIX]
            matches = [pc.is_in(rows["teacher"], self._teachers)]
            matches += [pc.starts_with(rows["teacher_sha256"], prefix.lower()) for prefix in prefixes]
        else:
            wanted = {"url": self._addresses, "image": self._digests, "run": self._runs}[kind]
            matches = [pc.is_in(rows[name], wanted) for name in _READ[kind]]
        found: NDArray[np.bool_] = np.any(
            [match.fill_null(False).to_numpy(zero_copy_only=False) for match in matches], axis=0
        )
        return found


def hide(address: str) -> str:
    """Replace an address by its hash; one that is hidden already stays."""
    if address.startswith(REMOVED):
        return address
    return REMOVED + hashlib.sha256(address.encode()).hexdigest()


def _hide_all(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if address is None else hide(address) for address in column.to_pylist()], pa.string())


def _host_pattern(hosts: Sequence[str], *, subdomains: bool) -> str:
    """Match an address whose host is one of these, however it is written: any case, with user, port or final dot."""
    names = {form for host in hosts for form in (host, _ascii(host))}
    either = "|".join(re.escape(name.rstrip(".")) for name in sorted(names))
    below = r"(?:[^/?#@:]*\.)?" if subdomains else ""
    return rf"(?i)^[a-z][a-z0-9+.\-]*://(?:[^/?#]*@)?{below}(?:{either})\.?(?::\d*)?(?:[/?#]|$)"


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return host
