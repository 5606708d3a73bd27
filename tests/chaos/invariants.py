"""What must hold of an output after any fault (the contracts of DESIGN, section 4): one function for all stages.

An output is compared with what the same command made undisturbed. `check` reads both as anybody would who knows
nothing of the fault: from the files under their names, and from MLflow.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from glipv2.losses.criterion import LOSSES
from pipeline import schema
from pipeline.shards import MANIFEST_NAME, Manifest, file_sha256, read_manifest
from tests.chaos.follower import hidden

Row = tuple[object, ...]
"""Its id, two parts long, and then what must not change."""
Rows = Counter[Row]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What MLflow knows of a run."""

    status: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    """Losses by step."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """The output of a command and the runs it left."""

    folder: Path
    runs: Sequence[Recorded]


@dataclass
class Verdict:
    """What came of the comparison."""

    lost: int = 0
    """Rows of the undisturbed output that are not there."""
    doubled: int = 0
    """Rows that are there more than once."""
    broken: list[str] = field(default_factory=list)
    """What else does not hold, a line each."""

    @property
    def holds(self) -> bool:
        return not (self.lost or self.doubled or self.broken)


def check(stage: str, made: Made, undisturbed: Made, *, kept: Mapping[str, bytes] | None = None) -> Verdict:
    """Compare what a disturbed and a repeated command made with what an undisturbed one did.

    Args:
        stage: of `tests.chaos.matrix.STAGES`.
        made: what is looked at.
        undisturbed: what it is compared with.
        kept: files that were finished when the fault came, by path, which nobody may have written again.
    """
    verdict = Verdict()
    read, folders = _READERS[stage]
    for name in folders:
        verdict.broken += check_folder(made.folder / name)
    found, expected = read(made), read(undisturbed)
    there, ids = Counter(row[:2] for row in found.elements()), {row[:2] for row in expected}
    verdict.lost = len(ids - there.keys())
    verdict.doubled = sum(count - 1 for count in there.values() if count > 1)
    verdict.broken += [f"{row[:2]} was never given" for row in found if row[:2] not in ids]
    verdict.broken += [f"{row[:2]} has changed" for row in found if row[:2] in ids and row not in expected]
    for path, before in (kept or {}).items():
        if (made.folder / path).read_bytes() != before:
            verdict.broken.append(f"{path} was finished and is written anew")
    verdict.broken += _check_runs(made, folders)
    return verdict


def check_folder(folder: Path) -> list[str]:
    """Say what is wrong with a directory of shards by itself: files, hashes, account."""
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{folder.name} has no manifest, although the command ended well"]
    listed = {str(entry["path"]): entry for entry in manifest.files}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    there = {name for name in there if not hidden(name)} - {MANIFEST_NAME}
    broken = [f"{folder.name}/{name} is a stray file" for name in sorted(there - listed.keys())]
    broken += [f"{folder.name}/{name} is missing" for name in sorted(listed.keys() - there)]
    for name in sorted(listed.keys() & there):
        entry, path = listed[name], folder / name
        true = {"path": name, "rows": _num_rows(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        broken += [f"{folder.name}/{name}: {key} is not as listed" for key in true if true[key] != entry[key]]
    if not broken:
        broken += _check_account(folder, manifest)
    if (folder.parent / f"{folder.name}.ledger" / "writer.json").exists():
        broken.append(f"{folder.name}: somebody seems to be writing")
    return broken


def _num_rows(path: Path) -> int:
    try:
        return int(pq.ParquetFile(path).metadata.num_rows)
    except pa.ArrowInvalid:
        return -1


def _check_account(folder: Path, manifest: Manifest) -> list[str]:
    """Count the rows again: in, out, and rejected by reason."""
    rejects: Counter[str] = Counter()
    good = 0
    for row in _table(folder, ["status", "reason"]):
        if row["status"] in (schema.LABELLED, schema.SUCCESS):
            good += 1
        elif row["status"] == schema.REJECTED:
            rejects[str(row["reason"])] += 1
        else:
            rejects[f"{row['status']}:{row['reason']}"] += 1
    counted = {"rows_in": good + rejects.total(), "rows_out": good, "rejects": dict(rejects)}
    told = {"rows_in": manifest.rows_in, "rows_out": manifest.rows_out, "rejects": manifest.rejects}
    return [f"{folder.name}: {key} is {told[key]}, counted {counted[key]}" for key in told if told[key] != counted[key]]


def _check_runs(made: Made, folders: Sequence[str]) -> list[str]:
    """No run is left open, one is finished, and MLflow carries both sides of every account."""
    open_ones = sum(run.status == "RUNNING" for run in made.runs)
    broken = [f"{open_ones} MLflow runs are still RUNNING"] if open_ones else []
    if not any(run.status == "FINISHED" for run in made.runs):
        broken.append("no MLflow run is FINISHED")
    metrics = {name: value for run in made.runs for name, value in run.metrics.items()}
    for name in folders:
        manifest = read_manifest(made.folder / name)
        if manifest is None or manifest.stage == "evaluate":  # whose rows are a means to scores
            continue
        told = {side: metrics.get(f"{manifest.stage}/{side}") for side in ("rows_in", "rows_out")}
        if told != {"rows_in": manifest.rows_in, "rows_out": manifest.rows_out}:
            broken.append(f"{name}: MLflow has {told}, the manifest {manifest.rows_in} in and {manifest.rows_out} out")
    return broken


def _labels(made: Made) -> Rows:
    columns = ["key", "boxes", "score", "status", "reason", "text"]
    return Counter(("label", row.pop("key"), repr(row)) for row in _table(made.folder / "labels", columns))


def _images(made: Made) -> Rows:
    columns = ["key", "status", "reason", "sha256"]
    found = Counter(("image", row.pop("key"), repr(row)) for row in _table(made.folder / "images", columns))
    return found + _labels(made)


def _training(made: Made) -> Rows:
    """Take the losses of every step and the weights: of bits, not of tolerances."""
    weights = made.folder / "model" / "model" / "model.safetensors"
    history = max((run.history for run in made.runs), key=len, default=())
    steps: Rows = Counter(("step", step["step"], *(step.get(name) for name in ("loss", *LOSSES))) for step in history)
    return steps + Counter([("weights", "model", file_sha256(weights) if weights.exists() else "")])


def _trials(made: Made) -> Rows:
    rows: Rows = Counter()
    for path in sorted((made.folder / "trials").glob("*.json")):
        rows["trial", path.stem, _without_time(json.loads(path.read_text()))] += 1
    for name, table in json.loads((made.folder / "sweep.json").read_text()).items():
        rows["table", name, _without_time(table)] += 1
    return rows


def _answers(made: Made) -> Rows:
    rows: Rows = Counter()
    for row in _table(made.folder / "found.parquet", ["key", "boxes", "score", "label", "status"]):
        rows["answer", row.pop("key"), repr(row)] += 1
    for path in sorted(made.folder.glob("*/predictions.json")):
        rows["predictions", path.parent.name, hashlib.sha256(path.read_bytes()).hexdigest()] += 1
    for score in json.loads((made.folder / "scores.json").read_text())["scores"]:
        rows["score", score["dataset"], repr(score)] += 1
    return rows


def _table(folder: Path, columns: list[str]) -> list[dict[str, Any]]:
    """Read all shards that a reader sees, listed or not."""
    visible = [path for path in sorted(folder.rglob("*.parquet")) if not hidden(path.relative_to(folder).as_posix())]
    return [row for path in visible for row in pq.ParquetFile(path).read(columns).to_pylist()]


def _without_time(value: Any) -> str:
    """Write JSON without what may differ from run to run: time, and memory of the process."""
    if isinstance(value, Mapping):
        kept = {key: _without_time(part) for key, part in sorted(value.items()) if key not in _CLOCKED}
        return json.dumps(kept)
    if isinstance(value, list):
        return json.dumps([_without_time(part) for part in value])
    return json.dumps(value)


_CLOCKED = ("seconds", "trial_seconds", "gpu_seconds", "cache_mib")

_READERS: dict[str, tuple[Callable[[Made], Rows], tuple[str, ...]]] = {
    "labels": (_labels, ("labels",)),
    "download": (_images, ("images", "labels")),
    "pretrain": (_training, ()),
    "sweep": (_trials, ()),
    "evaluate": (_answers, ("found.parquet",)),
}
