"""What must not be trained on: pictures of the sets a model is measured on, and the same picture twice.

A picture is known again by the hash of its bytes, and by a perceptual hash, which scaling and recompression hardly
change (`pipeline.phash`). Blank pictures all look alike, and alike is not the same: only their bytes count. Rows of
downloaded pictures carry both hashes; rows of human-labelled sets have none, and are hashed from what they store.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from io import BytesIO
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps

from glipv2.image import UNREADABLE
from pipeline import schema
from pipeline.lineage import record_stage
from pipeline.neighbours import Hashes, Neighbourhood, first_of_equals, losers
from pipeline.paths import NOT_GIVEN, require
from pipeline.phash import phash
from pipeline.rewrite import LABEL_COLUMNS, Rewrite, Verdicts, require_manifest, rewrite, scan
from pipeline.shards import Manifest, config_hash
from pipeline.storage import Place
from pipeline.tracking import Input, open_run

logger = logging.getLogger(__name__)

STAGE = "guard"
LEAKS, SAME_BYTES, LOOKS_ALIKE = "leaks", "duplicate_content", "near_duplicate"
"""Reasons: ``leaks:<set>``; the bytes of a row that stays; nearly the picture of a row that stays."""

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
_INDEX = pa.schema([("set", pa.string()), ("path", pa.string()), ("sha256", pa.string()), ("phash", pa.int64())])
_BYTES = ("sha256", "image_sha256", "source_sha256")
_TEXTS = ("caption", "text")
_JUDGED = ("status", "key", "phash", *_BYTES)
_NO_LEAK, _FAILED = -1, -2
_BLANK_ONES = 8
"""A hash with fewer ones or fewer zeros is that of a blank picture: any other's are half and half."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What is kept out."""

    eval_images: tuple[str, ...] = ()
    """Image folders of the sets a model is measured on, ``name=/abs/dir`` each, searched with their sub-folders."""
    max_distance: int = 6
    """Bits of 64 in which a picture's perceptual hash may differ from an evaluation picture's to count as it. Every two
    bits more find more cropped and brightened copies, and about four times as many strangers."""
    duplicates: Literal["none", "bytes", "alike"] = "bytes"
    """Which repeated pictures are kept out: none, those of the same bytes, or also those that look alike."""
    duplicate_distance: int = 2
    """Bits in which hashes may differ for pictures to look alike. The more rows, the more strangers are alike: of ten
    millions give 0."""
    same_caption: bool = False
    """Call a picture repeated only if its caption is the same, for lists with several captions per picture."""

    def __post_init__(self) -> None:
        """Check names, folders and distances."""
        for name in ("max_distance", "duplicate_distance"):
            if not 0 <= getattr(self, name) <= 16:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; give 0 to 16 bits: different pictures differ in about 32"
                )
        if len(self.folders) != len(self.eval_images) or not all(f.is_absolute() for f in self.folders.values()):
            raise ValueError(f"eval_images is {self.eval_images}; give name=/abs/dir for each set, every name once")

    @property
    def folders(self) -> dict[str, Path]:
        """Folder by name of the set."""
        pairs = (entry.partition("=") for entry in self.eval_images)
        return {name: Path(folder) for name, _, folder in pairs if name}


@dataclass(frozen=True, kw_only=True)
class GuardJob:
    """One finished directory of images or labels to be guarded."""

    source: Path = NOT_GIVEN
    """Finished directory of images or labels, absolute."""
    out: Path = NOT_GIVEN
    """Directory to write, absolute; the hashes of evaluation pictures are kept beside it."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """What is kept out."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        require(source=self.source, out=self.out)


class EvaluationIndex:
    """Hashes of evaluation pictures, to look others up in; small enough to travel to every worker."""

    def __init__(self, hashes: pa.Table, max_distance: int) -> None:
        """Take a table with columns ``set``, ``sha256`` and ``phash`` (null: the file is no picture)."""
        coded = hashes["set"].combine_chunks().dictionary_encode()
        self.names: tuple[str, ...] = tuple(coded.dictionary.to_pylist())
        owners = coded.indices.to_numpy()
        digests, _ = _digests(hashes["sha256"])
        order = np.argsort(digests, kind="stable")  # of equal files the first set's
        self._digests, self._digest_owners = digests[order], owners[order]
        perceptual, known = _perceptual(hashes["phash"])
        self._near, self._near_owners = Neighbourhood(perceptual[known], max_distance), owners[known]
        self.fingerprint = config_hash(
            [max_distance, *zip(*hashes.select(["set", "sha256"]).to_pydict().values(), strict=True)]
        )
        """Pins the pictures by content, wherever they lie."""

    def __len__(self) -> int:
        """Give the number of files."""
        return len(self._digests)

    def lookup(self, phash: int | None, sha256: str | None) -> str | None:
        """Name the set a picture is of, if any."""
        row = pa.table({"phash": pa.array([phash], pa.int64()), "sha256": pa.array([sha256], pa.string())})
        code = int(self.find(row)[0])
        return self.names[code] if code >= 0 else None

    def find(self, rows: pa.Table | pa.RecordBatch) -> NDArray[np.int64]:
        """Give the number of the set each row's picture is of, -1 for none; the first set if it is of several."""
        far = len(self.names)
        owner = np.full(rows.num_rows, far, dtype=np.int64)
        for column in (rows[name] for name in _BYTES if name in rows.schema.names and len(self)):
            digests, known = _digests(column)
            where = np.minimum(np.searchsorted(self._digests, digests), len(self) - 1)
            hit = known & (self._digests[where] == digests)
            owner[hit] = np.minimum(owner[hit], self._digest_owners[where[hit]])
        perceptual, known = _perceptual(rows["phash"])
        asked = np.flatnonzero(known)
        for queries, found in self._near.pairs(perceptual[asked]):
            np.minimum.at(owner, asked[queries], self._near_owners[found])
        return np.where(owner == far, -1, owner)


def guard_table(images: pa.Table | pa.RecordBatch, index: EvaluationIndex) -> list[str | None]:
    """Give the reason to reject each row of images or labels, None where there is none; failed rows have none."""
    codes = np.where(_good(images), index.find(images), -1)
    return [f"{LEAKS}:{index.names[code]}" if code >= 0 else None for code in codes.tolist()]


def load_index(cfg: GuardConfig, path: Path) -> EvaluationIndex:
    """Hash all evaluation pictures, or read what an earlier call left in ``path`` for the folders as they are now.

    A file that is no whole picture is known by its bytes alone, and counted in the log.

    Raises:
        ValueError: a folder holds no picture.
    """
    listings = {name: _listing(folder) for name, folder in cfg.folders.items()}
    wanted = {name: config_hash(listing) for name, listing in listings.items()}
    stored = pq.read_table(path) if path.exists() else _INDEX.empty_table()
    known = json.loads((stored.schema.metadata or {}).get(b"listings", b"{}"))
    parts = []
    for name, listing in listings.items():
        if known.get(name) == wanted[name]:
            parts.append(stored.filter(pc.field("set") == name))
        else:
            parts.append(_hash_files(name, cfg.folders[name], [file for file, *_ in listing]))
    table = pa.concat_tables([_INDEX.empty_table(), *(part.replace_schema_metadata() for part in parts)])
    if known != wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        pq.write_table(table.replace_schema_metadata({"listings": json.dumps(wanted)}), beside)
        beside.replace(path)
    return EvaluationIndex(table, cfg.max_distance)


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """List the pictures under a folder with what changes when one is replaced."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _FORMATS and path.is_file())
    if not found:
        raise ValueError(f"{folder} holds no picture; give the folder with the images of an evaluation set")
    facts = ((path, path.stat()) for path in found)
    return [(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in facts]


def _hash_files(name: str, folder: Path, files: Sequence[str]) -> pa.Table:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        hashed = list(threads.map(lambda file: hash_picture((folder / file).read_bytes()), files))
    unreadable = sum(perceptual is None for _, perceptual in hashed)
    logger.info("%s: %d evaluation pictures, %d of them unreadable", name, len(files), unreadable)
    digests, perceptuals = zip(*hashed, strict=True)
    return pa.table([[name] * len(files), files, digests, perceptuals], schema=_INDEX)


def hash_picture(encoded: bytes) -> tuple[str, int | None]:
    """Hash a file's bytes and, upright, its picture; None if there is no whole one."""
    digest = hashlib.sha256(encoded).hexdigest()
    try:
        with Image.open(BytesIO(encoded), formats=sorted(set(_FORMATS.values()))) as image:
            return digest, phash(np.asarray(ImageOps.exif_transpose(image).convert("RGB").convert("L")))
    except UNREADABLE:
        return digest, None


def judge(directory: Path | Place, cfg: GuardConfig, index: EvaluationIndex) -> Verdicts:
    """Find the rows of a finished directory that are to be kept out.

    Of equal pictures the row of the lowest key stays, or the first where rows have no key. At its peak this takes some
    100 bytes per row, and the pictures of one row group where rows have no hashes.
    """
    parts = [_facts(batch, index, cfg) for batch in _read(directory, _JUDGED + _TEXTS * cfg.same_caption)]
    reasons = ("", SAME_BYTES, LOOKS_ALIKE, *(f"{LEAKS}:{name}" for name in index.names))
    if not parts:
        return Verdicts(reasons=reasons, codes=np.zeros(0, dtype=np.uint16))
    rows = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    leaks, keys = rows["leaks"], rows["keys"]
    codes = np.where(leaks >= 0, leaks + len(reasons) - len(index.names), 0).astype(np.uint16)
    order = np.argsort(np.where(keys < 0, np.arange(len(keys)), keys), kind="stable")
    order = order[leaks[order] == _NO_LEAK]
    if cfg.duplicates != "none":
        named = order[rows["bytes"][order] > 0]
        codes[named[~first_of_equals(rows["bytes"][named])]] = reasons.index(SAME_BYTES)
    if cfg.duplicates == "alike":
        seen = order[rows["seen"][order] & (codes[order] == 0)]
        groups = rows["texts"][seen] if cfg.same_caption else None
        codes[seen[losers(rows["phash"][seen], cfg.duplicate_distance, groups)]] = reasons.index(LOOKS_ALIKE)
    return Verdicts(reasons=reasons, codes=codes)


def _read(directory: Path | Place, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read what rows are judged by; those that nobody hashed yet are hashed."""
    for path, batches in groupby(scan(directory, columns), key=itemgetter(0)):
        first = 0
        for _, rows in batches:
            bare = _good(rows) & rows["phash"].is_null().to_numpy(zero_copy_only=False)
            yield _hashed(rows, bare, Place.of(directory) / path, first) if bare.any() else rows
            first += rows.num_rows


def _hashed(rows: pa.RecordBatch, bare: NDArray[np.bool_], file: Place, first: int) -> pa.RecordBatch:
    """Hash the pictures of the bare ones among rows that begin at ``first`` in a file."""
    found = np.full((rows.num_rows, 2), None, dtype=object)
    found[bare] = list(_hash_stored(file, first + np.flatnonzero(bare)))
    columns = {name: rows[name] for name in rows.schema.names}
    for name, hashes in zip(("image_sha256", "phash"), found.T, strict=True):
        columns[name] = pc.coalesce(rows[name], pa.array(hashes, rows[name].type))
    return pa.RecordBatch.from_pydict(columns)


def _hash_stored(file: Place, wanted: NDArray[np.int64]) -> Iterator[tuple[str | None, int | None]]:
    """Hash the pictures stored in some rows of a shard, ascending; of its row groups those rows' alone are read."""
    with file.open_input() as stream, ThreadPoolExecutor(os.cpu_count()) as threads:
        shard = pq.ParquetFile(stream)
        starts = np.cumsum([0, *(shard.metadata.row_group(i).num_rows for i in range(shard.num_row_groups))])
        groups = np.searchsorted(starts, wanted, "right") - 1
        for group in np.unique(groups):
            images = shard.read_row_group(group, columns=["image"])["image"].combine_chunks()
            encoded = pc.struct_field(images, "bytes").take(pa.array(wanted[groups == group] - starts[group]))
            yield from threads.map(lambda one: hash_picture(one) if one else (None, None), encoded.to_pylist())


def _good(rows: pa.Table | pa.RecordBatch) -> NDArray[np.bool_]:
    """Tell which rows hold a picture."""
    return np.isin(rows["status"].to_pylist(), (schema.SUCCESS, schema.LABELLED))


def _facts(rows: pa.RecordBatch, index: EvaluationIndex, cfg: GuardConfig) -> dict[str, NDArray[Any]]:
    """Reduce rows to numbers: set they leak from or why there is none, key (-1: none), and what tells equals."""
    leaks = np.where(_good(rows), index.find(rows), _FAILED).astype(np.int16)
    facts = {"leaks": leaks, "keys": rows["key"].fill_null(-1).to_numpy(zero_copy_only=False)}
    if cfg.duplicates == "none":
        return facts
    stored, image, source = (_digests(rows[name])[0] for name in _BYTES)
    # Equal bytes that came are equal bytes stored, but not the other way round.
    digests = np.where(stored > 0, stored, np.where(image > 0, image, source))
    if cfg.same_caption:
        said = zip(*(rows[name].to_pylist() for name in _TEXTS), strict=True)
        facts["texts"] = np.array([_short_hash(caption or text or "") for caption, text in said], dtype=np.uint64)
        digests = np.where(digests > 0, digests ^ facts["texts"], 0)
    facts["bytes"] = digests
    if cfg.duplicates == "alike":
        facts["phash"], facts["seen"] = _perceptual(rows["phash"])
    return facts


def _digests(column: pa.Array | pa.ChunkedArray) -> tuple[Hashes, NDArray[np.bool_]]:
    """Give the first 64 bits of hex digests, 0 for null, and which are not null: enough to tell millions apart."""
    digests = np.array([int(digest[:16], 16) if digest else 0 for digest in column.to_pylist()], dtype=np.uint64)
    return digests, digests > 0


def _perceptual(column: pa.Array | pa.ChunkedArray) -> tuple[Hashes, NDArray[np.bool_]]:
    """Give perceptual hashes as unsigned numbers, and which say something: neither null nor of a blank picture."""
    hashes = column.fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64)
    ones = np.bitwise_count(hashes)
    return hashes, (ones >= _BLANK_ONES) & (ones <= 64 - _BLANK_ONES)


def _short_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def guard(cfg: GuardConfig, source: Path | Place, out: Path, index: EvaluationIndex, run_id: str = "") -> Manifest:
    """Write a finished directory of images or labels anew with the rows to be kept out rejected.

    A condemned row keeps address, caption and hashes, and loses image and boxes. Its status is `schema.REJECTED`, in a
    directory of images too.

    Raises:
        ValueError: the source is unfinished, or ``out`` holds something else.
    """
    config = {**asdict(cfg), "eval_images": index.fingerprint}
    plan = Rewrite(stage=STAGE, config=config, erase=dict.fromkeys(LABEL_COLUMNS))
    return rewrite(source, out, plan, lambda: judge(source, cfg, index), run_id)


def guard_alone(cfg: GuardJob) -> str:
    """Guard one directory, as a run of its own.

    Raises:
        ValueError: the source is unfinished, ``out`` holds something else, or an evaluation folder no picture.
    """
    source = require_manifest(cfg.source)  # before a run is opened and pictures are hashed
    with open_run(cfg.out.parent, STAGE, config_hash(asdict(cfg)), asdict(cfg)) as run:
        run.inputs([Input.of(cfg.source, source.content_hash, cfg.source.name)])
        index = load_index(cfg.guard, cfg.out.parent / "evaluation_index.parquet")
        manifest = guard(cfg.guard, cfg.source, cfg.out, index, run.run_id)
        record_stage(run, manifest, cfg.out)
    kept_out = {r: n for r, n in manifest.rejects.items() if r.startswith((LEAKS, SAME_BYTES, LOOKS_ALIKE))}
    lines = [f"{count:>10,}  {reason}" for reason, count in kept_out.items()] or ["nothing had to be kept out"]
    return "\n".join([f"{manifest.rows_out:,} of {manifest.rows_in:,} rows stay in {cfg.out}", *lines])
