"""From a label to its source, and from a source to every shard and model that has it.

Forward: where a row's boxes came from. Backward: in which shards an address, host, teacher, image or run is, what was
made of those shards, and, with ``drop``, those directories anew without it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.lineage import Step, Store, descendants, open_stores, stage_step
from pipeline.paths import NOT_GIVEN, require
from pipeline.rewrite import BOX_COLUMNS, require_manifest, scan
from pipeline.search import Hit, Search, Wanted
from pipeline.shards import Manifest, plain, write_atomically
from pipeline.storage import Place

_BACKWARD = "--find.urls, .hosts, .teachers, .images, .pictures or .runs"


@dataclass(frozen=True, kw_only=True)
class TraceJob:
    """What is followed, and where."""

    shards: tuple[Path, ...] = ()
    """Finished directories of labels or images, absolute."""
    key: int = -1
    """Key of a row to be followed to its source."""
    sample: str = ""
    """The same by ``sample_id``."""
    box: int = -1
    """Number of one of its boxes, from 0; -1 tells all."""
    find: Wanted = field(default_factory=Wanted)
    """What is to be found in the shards instead."""
    stores: tuple[Path, ...] = ()
    """Further output folders whose MLflow store is asked; those that hold the shards always are."""
    examples: int = 3
    """Rows named per shard."""
    json: Path = NOT_GIVEN
    """File for everything as JSON, absolute."""
    drop: bool = False
    """Write the directories anew, into ``out``, without the content of the rows found."""
    out: Path = NOT_GIVEN
    """Folder for the directories that ``drop`` writes, each under its own name, absolute."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know, or asks for two things."""
        given = {"json": self.json, "out": self.out}
        named = {name: path for name, path in given.items() if path != NOT_GIVEN or (name == "out" and self.drop)}
        require(**{f"shards.{i}": path for i, path in enumerate(self.shards)}, **named)
        if not self.shards:
            raise ValueError("--shards is missing; give finished directories of labels or images")
        if len({path.name for path in self.shards}) < len(self.shards) and self.drop:
            raise ValueError("two --shards have one name, which --out would have twice; drop from one after the other")
        if self.forward == bool(self.find.kinds):
            raise ValueError(f"give either --key or --sample to follow a row to its source, or {_BACKWARD}")
        if self.drop and self.forward:
            raise ValueError(f"--drop needs {_BACKWARD}")

    @property
    def forward(self) -> bool:
        """Whether a row is followed to its source."""
        return self.key >= 0 or bool(self.sample)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a row is, and all that is known of where it came from."""

    directory: str
    """The finished directory."""
    file: str
    """The shard in it."""
    file_sha256: str
    """Hash of the shard."""
    stage: str
    """What made the directory."""
    inputs: dict[str, str]
    """Hash by name of what it was made of."""
    row: dict[str, Any]
    """The row without image and boxes."""
    boxes: list[dict[str, Any]]
    """Per box: number, box, score, phrases with their spans, category."""
    run: dict[str, str] | None
    """The MLflow run: name, commit, status, store; None if no store knows it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a trace came to."""

    sources: list[Source] = field(default_factory=list)
    """Forward: the row, in every directory that has it."""
    hits: list[Hit] = field(default_factory=list)
    """Backward: shards with what was searched for."""
    made_of_them: list[Step] = field(default_factory=list)
    """Backward: what was made of directories that have usable rows of it."""
    stores: list[str] = field(default_factory=list)
    """MLflow stores that were asked."""
    dropped: dict[str, Manifest] = field(default_factory=dict)
    """Manifests of the directories written, by place."""


def trace(cfg: TraceJob) -> str:
    """Follow what was asked, write the JSON if wanted, and tell it.

    Raises:
        ValueError: a directory is unfinished, or ``out`` holds something else.
    """
    stores = open_stores([*(path.parent for path in cfg.shards), *cfg.stores])
    answer = _follow_forward(cfg, stores) if cfg.forward else _follow_backward(cfg, stores)
    if cfg.json != NOT_GIVEN:
        cfg.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cfg.json, json.dumps(asdict(answer), indent=1, default=plain))
    return "\n".join(_tell_sources(cfg, answer) if cfg.forward else _tell_hits(cfg, answer))


def _follow_forward(cfg: TraceJob, stores: Sequence[Store]) -> Answer:
    found = [source for directory in cfg.shards for source in find_sources(directory, cfg, stores)]
    return Answer(sources=found, stores=[store.uri for store in stores])


def _follow_backward(cfg: TraceJob, stores: Sequence[Store]) -> Answer:
    search = Search(cfg.find)
    hits = {path: search.hits(path, cfg.examples) for path in cfg.shards}
    manifests = {path: require_manifest(path) for path in cfg.shards}
    origins = [manifests[path].content_hash for path, found in hits.items() if any(hit.usable for hit in found)]
    steps = [stage_step(manifests[path], str(path)) for path in cfg.shards]
    steps += [step for store in stores for step in store.steps()] if origins else []
    dropped = {
        str(cfg.out / path.name): search.drop(path, cfg.out / path.name) for path in hits if cfg.drop and hits[path]
    }
    return Answer(
        hits=[hit for found in hits.values() for hit in found],
        made_of_them=descendants(origins, steps),
        stores=[store.uri for store in stores],
        dropped=dropped,
    )


def find_sources(directory: Path | Place, cfg: TraceJob, stores: Sequence[Store]) -> Iterator[Source]:
    """Find the row asked for in a finished directory; it is there once at most.

    Raises:
        ValueError: the directory is unfinished, or the row has no such box.
    """
    manifest = require_manifest(directory)
    column, value = ("sample_id", cfg.sample) if cfg.sample else ("key", cfg.key)
    for file, rows in scan(directory, (column,)):
        if not pc.any(pc.equal(rows[column], value)).as_py():
            continue
        place = Place.of(directory) / file
        with place.open_input() as stream:
            names = [name for name in pq.ParquetFile(stream).schema_arrow.names if name != "image"]
            [row] = pq.read_table(stream, columns=names, filters=pc.field(column) == value).to_pylist()
        boxes = _boxes(row)
        if boxes and cfg.box >= len(boxes):
            raise ValueError(
                f"--box is {cfg.box}, but {column} {value} has {len(boxes)} boxes; give 0 to {len(boxes) - 1}"
            )
        run_id = row.get("run_id") or manifest.run_id
        runs = (store.describe_run(run_id) for store in stores if run_id)
        yield Source(
            directory=str(directory),
            file=file,
            file_sha256=next(str(f["sha256"]) for f in manifest.files if f["path"] == file),
            stage=manifest.stage,
            inputs=manifest.inputs,
            row={"run_id": run_id} | {k: v for k, v in row.items() if k not in BOX_COLUMNS},
            boxes=[box for box in boxes if cfg.box in (-1, box["number"])],
            run=next((run for run in runs if run), None),
        )
        return


def _boxes(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Put together what belongs to each box."""
    boxes = []
    for number, box in enumerate(row.get("boxes") or ()):
        spans = (row["tokens_positive"] or {number: []})[number] if row["tokens_positive"] else []
        boxes.append(
            {
                "number": number,
                "box": box,
                "score": row["score"][number],
                "phrases": [{"span": span, "phrase": row["text"][span[0] : span[1]]} for span in spans],
                "category": row["category"][number],
            }
        )
    return boxes


def _tell_sources(cfg: TraceJob, answer: Answer) -> Iterator[str]:
    asked = f"sample {cfg.sample}" if cfg.sample else f"key {cfg.key}"
    if not answer.sources:
        yield f"{asked} is in none of {', '.join(map(str, cfg.shards))}"
    for source in answer.sources:
        row = source.row
        yield f"{asked} in {source.directory}/{source.file}"
        facts = {
            "shard": f"sha256 {source.file_sha256}, made by {source.stage!r} from {source.inputs}",
            "outcome": " ".join(filter(None, (row["status"], row["reason"]))),
            "address": row.get("image_uri") or row.get("url"),
            "stored at": row.get("stored"),
            "image": row.get("image_sha256") or row.get("sha256"),
            "as it came": row.get("source_sha256"),
            "size": f"{row['width']} x {row['height']} px" if row["width"] else None,
            "caption": row.get("text") or row.get("caption"),
            "teacher": " sha256 ".join(filter(None, (row.get("teacher"), row.get("teacher_sha256")))),
            "parser": " ".join(filter(None, (row.get("parser"), row.get("parser_version")))),
            "thresholds": ", ".join(
                f"{name} {row[name]:.3g}" for name in ("score_threshold", "nms_iou", "cross_nms_iou") if row.get(name)
            ),
            "run": f"{row['run_id']} {source.run or 'known to no MLflow store that was asked'}",
        }
        yield from (f"  {name:11} {fact}" for name, fact in facts.items() if fact)
        for box in source.boxes:
            words = ", ".join(f"{p['phrase']!r} {p['span']}" for p in box["phrases"]) or repr(box["category"])
            yield f"  box {box['number']:<7} {np.round(box['box'], 1).tolist()} score {box['score']:.3f}: {words}"


def _tell_hits(cfg: TraceJob, answer: Answer) -> Iterator[str]:
    asked = "; ".join(f"{kind} {', '.join(what)}" for kind, what in cfg.find.kinds.items())
    if not answer.hits:
        yield f"none of {', '.join(map(str, cfg.shards))} has {asked}"
        return
    yield f"{asked}: {sum(hit.rows for hit in answer.hits):,} rows in {len(answer.hits):,} shards"
    for hit in answer.hits:
        found_by, some = ", ".join(f"{n} by {kind}" for kind, n in hit.kinds.items()), ", ".join(hit.examples)
        yield f"  {hit.directory}/{hit.file}: {hit.rows} rows ({found_by}), {hit.usable} usable, such as {some}"
    asked_stores = ", ".join(answer.stores) or "no MLflow store was found; give output folders as --stores"
    yield f"made of shards with usable rows ({asked_stores}):"
    for step in answer.made_of_them or ():
        yield f"  {step.what:6} {step.name} {step.place} run {step.run_id or '-'} commit {step.git_commit or '-'}"
    if not answer.made_of_them:
        yield "  nothing that is known"
    for place, manifest in answer.dropped.items():
        gone = {reason: count for reason, count in manifest.rejects.items() if reason.startswith("dropped:")}
        yield f"written without them: {place}: {manifest.rows_out:,} of {manifest.rows_in:,} rows stay, {gone}"
    if answer.dropped:
        yield "The old directories, lists of pairs, exports and reports still have them: delete those."
