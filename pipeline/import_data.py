"""Human-labelled data of any known format as finished shards, by one command.

Reading, writing and the accounts are `pipeline.sources`; here inputs are pinned by their hashes, and told is what came
of them.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.dataset as pads

from pipeline import schema
from pipeline.paths import NOT_GIVEN, require
from pipeline.progress import Progress
from pipeline.shards import Manifest, config_hash, file_sha256, open_rows
from pipeline.sources.formats import FORMATS
from pipeline.sources.store import store_source

Item = TypeVar("Item")
NUM_EXAMPLES = 3
"""Rejected rows named per reason."""


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """One data set to be made shards of."""

    format: str
    """Key of `pipeline.sources.formats.FORMATS`; the recipe's name."""
    data: Any
    """Where the data lie and what they are called: the source of the format."""
    out: Path = NOT_GIVEN
    """Folder to write, absolute."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        check_format(self.format, self.data, {name: chosen.blank for name, chosen in FORMATS.items()})
        check_source(self.data)
        require(out=self.out)


def check_format(name: str, data: object, blanks: Mapping[str, object]) -> None:
    """Refuse a format that is not known, or the source of another one.

    Args:
        name: Of the format.
        data: Its source.
        blanks: By name of every format, a source of it.

    Raises:
        ValueError: one line with what is allowed.
    """
    if name not in blanks:
        raise ValueError(f"--format is {name!r}; give one of {', '.join(blanks)}")
    if type(data) is not (kind := type(blanks[name])):
        raise ValueError(f"--format is {name!r}, which reads {kind.__name__}; choose the recipe of that name instead")


def check_source(data: Any) -> None:
    """Refuse a source whose paths are missing, relative or lead nowhere, or whose names would spoil a ``sample_id``.

    Raises:
        ValueError: one line naming the flag, what was given and what to give.
    """
    for flag, path, needed in _paths(data):
        if needed or path != NOT_GIVEN:
            require(**{flag: path})
            if not path.exists():
                raise ValueError(f"--{flag.replace('_', '-')} is {path}, which does not exist; give a path that does")
    for name in ("source", "split"):
        value = getattr(data, name, "-")
        if not value or "/" in value:
            raise ValueError(f"--data.{name} is {value!r}; give a name without a slash")


def import_data(cfg: ImportJob) -> str:
    """Write a data set as shards and tell what came of its rows; a finished directory of the same inputs is only read.

    Raises:
        ValueError: a file is not of the format, or ``out`` holds something else.
    """
    chosen = FORMATS[cfg.format]
    names = chosen.categories(cfg.data) if chosen.categories else None
    inputs = pin_inputs(cfg.data) | {"format": cfg.format}
    rows = told(chosen.read(cfg.data), f"import {cfg.format}")
    manifest = store_source(rows, cfg.out, name=cfg.data.source, inputs=inputs, categories=names)
    return "\n".join([_kept(manifest, cfg.out), *_rejected(manifest, cfg.out)])


def pin_inputs(data: Any) -> dict[str, str]:
    """Hash what decides the rows of a source; a folder of images by the names and sizes of its files."""
    pins = {flag: _pin(path, wholly=flag != "data.images") for flag, path, _ in _paths(data) if path != NOT_GIVEN}
    options = {f.name: value for f in fields(data) if not _as_paths(value := getattr(data, f.name))}
    return pins | {"options": config_hash(options)}


def told(items: Iterable[Item], stage: str) -> Iterator[Item]:
    """Pass items on, and log now and then how many there were."""
    progress, done = _Count(stage), 0
    for item in items:
        yield item
        done += 1
        progress(done, done + 1)
    progress(done, done)


class _Count(Progress):
    """Progress towards an end that nobody knows before the last row is read."""

    def line(self, done: int, total: int, note: str = "") -> str:
        """Write the line: ``import coco   1200 rows  143.0 rows/s``."""
        rate = done / max(time.monotonic() - self._started, 1e-9)
        return f"{self._stage:<14}{done} {self._unit}  {rate:.1f} {self._unit}/s  {note}".rstrip()


def _paths(data: Any) -> Iterator[tuple[str, Path, bool]]:
    """List the paths of a source: name of the flag, path, and whether it must be given."""
    for one in fields(data):
        needed = one.default is MISSING and one.default_factory is MISSING
        paths = _as_paths(getattr(data, one.name))
        for number, path in enumerate(paths):
            yield f"data.{one.name}" + (f".{number}" if len(paths) > 1 else ""), path, needed


def _as_paths(value: object) -> list[Path]:
    values = value if isinstance(value, tuple) else (value,)
    return [item for item in values if isinstance(item, Path)]


def _pin(path: Path, *, wholly: bool) -> str:
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        what = file_sha256(file) if wholly else file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}\0{what}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _kept(manifest: Manifest, out: Path) -> str:
    return f"{manifest.rows_out:,} of {manifest.rows_in:,} rows in {out}"


def _rejected(manifest: Manifest, out: Path) -> list[str]:
    """Tell how many rows were rejected, why, and which the first of them are."""
    if not manifest.rejects:
        return ["rejected: none"]
    columns = ["sample_id", "image_uri", "reason"]
    examples: dict[str, list[str]] = {reason: [] for reason in manifest.rejects}
    for batch in open_rows(out).to_batches(columns=columns, filter=pads.field("status") == schema.REJECTED):
        for row in batch.to_pylist():
            if len(shown := examples[row["reason"]]) < NUM_EXAMPLES:
                shown.append(f"{row['sample_id']} ({row['image_uri']})")
    return [
        f"rejected: {count:,} {reason}: {', '.join(examples[reason])}{', …' if count > NUM_EXAMPLES else ''}"
        for reason, count in sorted(manifest.rejects.items(), key=lambda reject: -reject[1])
    ]
