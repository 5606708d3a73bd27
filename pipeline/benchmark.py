"""Measure a model on a benchmark: zero-shot, any vocabulary, on the whole cluster, killed and gone on with at will.

```
<out>/<data set>/predictions.json   what was found, as ``jobs.score`` and ``jobs.analyse`` read it
      scores.json                   all numbers, and what they are numbers of
      asked-*.parquet               the images
      found.parquet/                rows of those done: a killed evaluation goes on after them
```
Predictions are COCO results, best first in each image, the images in the order of their file; for a data set judged as
voc or flickr30k they are what that metric reads.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from glipv2.checkpoint import weights_sha256
from pipeline import schema
from pipeline.benchmark_scores import Result, judge, mean_of, table
from pipeline.benchmark_truth import Truth, asked_rows, read_truth
from pipeline.benchmark_worker import ASKED, FOUND, Asker, Plan, RunConfig
from pipeline.engine import Source, Step, Work, carry_out
from pipeline.lineage import MODEL, WEIGHTS_SHA256
from pipeline.paths import NOT_GIVEN, require
from pipeline.pins import PINS, check_pins, files_hash, pictures_hash
from pipeline.protocol import NO_MEAN, Files, Protocol, ProtocolDataset, read_protocol
from pipeline.shards import config_hash, open_rows, write_atomically, write_table
from pipeline.storage import Place
from pipeline.summary import Outcome, ui_command
from pipeline.tracking import Input, Run, open_run

SCORES, FOUND_ROWS = "scores.json", "found.parquet"


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """One model on one benchmark."""

    checkpoint: Path = NOT_GIVEN
    """Model folder, absolute."""
    out: Path = NOT_GIVEN
    """Folder for predictions and scores, absolute."""
    pins: Path = NOT_GIVEN
    """File of hashes that the data are compared with, absolute; if not given ``pins.json`` beside the data, or in
    ``out`` where that cannot be written."""
    run: RunConfig = field(default_factory=RunConfig)
    """How, and on how much of the cluster."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        require(checkpoint=self.checkpoint, out=self.out)
        if self.pins != NOT_GIVEN:
            require(pins=self.pins)


@dataclass(frozen=True, kw_only=True)
class BenchmarkJob(EvaluationJob):
    """One model on a benchmark that has a protocol."""

    benchmark: str
    """Name of the protocol (`pipeline.protocol`), or the path of a yaml file of one's own."""
    data: Path = NOT_GIVEN
    """Root of the data, absolute; the protocol says what lies where in it."""
    datasets: tuple[str, ...] = ()
    """Data sets to measure; empty takes all. Without all of them there is no mean."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        super().check()
        require(data=self.data)
        if not self.benchmark:
            raise ValueError("--benchmark is missing; give the path of a yaml file, or the name of a protocol")

    def evaluation(self) -> "Evaluation":
        """Read the protocol."""
        protocol = read_protocol(self.benchmark)
        chosen = tuple(map(protocol.dataset, self.datasets)) or protocol.datasets
        return Evaluation(protocol=protocol, chosen=chosen, root=self.data, pins=self.data / PINS)


@dataclass(frozen=True, kw_only=True)
class FolderJob(EvaluationJob):
    """One model on a data set of one's own."""

    annotations: Path = NOT_GIVEN
    """COCO json, absolute."""
    images: Path = NOT_GIVEN
    """Folder its file names are relative to, absolute."""
    metric: Literal["coco-bbox", "lvis", "lvis-fixed"] = "coco-bbox"
    """How it is judged; the latter two need an LVIS json."""
    max_detections: int = 100
    """Boxes kept per image."""
    max_categories: int | None = None
    """Names in a prompt at most; by default as many as fit."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        super().check()
        require(annotations=self.annotations, images=self.images)

    def evaluation(self) -> "Evaluation":
        """Make a protocol of what is given. Its data may be changed at will: they are pinned in the output only."""
        dataset = ProtocolDataset(
            name=self.annotations.stem,
            files={"given": Files(annotations=str(self.annotations), images=str(self.images))},
            split="given",
            metrics=(self.metric,),
            score="AP",
            max_detections=self.max_detections,
            max_categories=self.max_categories,
        )
        title = f"{self.annotations.name}, {self.metric}"
        protocol = Protocol(name="folder", title=title, source="", prompts="raw", average=NO_MEAN, datasets=(dataset,))
        return Evaluation(protocol=protocol, chosen=(dataset,), root=self.annotations.parent, pins=self.out / PINS)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, and on what."""

    protocol: Protocol
    """The benchmark."""
    chosen: tuple[ProtocolDataset, ...]
    """Those of its data sets that are measured."""
    root: Path
    """Folder that the protocol's files are relative to."""
    pins: Path
    """Where their hashes lie, if nothing else is said."""


def evaluate_benchmark(cfg: BenchmarkJob | FolderJob) -> Outcome:
    """Measure a model and set its numbers beside the paper's; what is finished is only read.

    Raises:
        ValueError: the data are missing, changed, or not what the protocol speaks of; or ``out`` was begun otherwise.
    """
    evaluation = cfg.evaluation()
    protocol = evaluation.protocol
    truths = [read_truth(dataset, evaluation.root) for dataset in evaluation.chosen]
    pins = _hashes(truths)
    check_pins(pins, [evaluation.pins, cfg.out / PINS] if cfg.pins == NOT_GIVEN else [cfg.pins])
    identity: dict[str, object] = {
        "protocol": protocol.hash,
        "datasets": [dataset.name for dataset in evaluation.chosen],
        "pins": pins,
        "weights": weights_sha256(cfg.checkpoint),
        "bf16": cfg.run.bf16,
    }
    with open_run(cfg.out, "evaluate", config_hash(identity), asdict(cfg)) as run:
        run.tags({"protocol": protocol.name, "protocol_hash": protocol.hash, "pins": config_hash(pins)})
        run.inputs([Input.of(cfg.checkpoint, str(identity["weights"]), MODEL)])
        run.inputs(Input.of(evaluation.root / name, pins[name], "test") for name in map(_annotations, truths))
        run.tags({MODEL: str(cfg.checkpoint), WEIGHTS_SHA256: str(identity["weights"])})
        results = _read_scores(cfg.out, config_hash(identity))
        if results is None:
            _ask_all(cfg, protocol, truths, identity)
            results = _judge_all(truths, cfg.out, protocol)
            saved = {"key": config_hash(identity), "benchmark": protocol.name, **identity}
            saved["scores"] = [asdict(result) for result in results]
            write_atomically(cfg.out / SCORES, json.dumps(saved, indent=1))
        run.metrics(_metrics(protocol, results))
        run.artifact(cfg.out / SCORES)
        return Outcome(text=_text(cfg, protocol, results, run))


def _hashes(truths: Sequence[Truth]) -> dict[str, str]:
    """Hash what is measured on, by its path from the root of the data."""
    pins: dict[str, str] = {}
    for truth in truths:
        pins[_annotations(truth)] = files_hash(truth.sources)
        if (pictures := pictures_hash([asked.file for asked in truth.images])) is not None:
            pins[f"images of {_annotations(truth)}"] = pictures
    return pins


def _annotations(truth: Truth) -> str:
    return truth.dataset.files[truth.dataset.split].annotations


def _ask_all(cfg: EvaluationJob, protocol: Protocol, truths: Sequence[Truth], identity: Mapping[str, object]) -> None:
    """Ask every image; what an earlier run has done is kept."""
    asked = cfg.out / f"asked-{config_hash(identity)}.parquet"
    rows = [row for truth in truths for row in asked_rows(truth)]
    write_table(schema.to_table([{"key": key, **row} for key, row in enumerate(rows)], ASKED), asked)
    plans = {t.dataset.name: Plan(dataset=t.dataset, names=t.names, prompts=protocol.prompts) for t in truths}
    step = Step(
        make=Asker,
        arguments={"cfg": cfg.run, "model": str(cfg.checkpoint), "sha256": identity["weights"], "plans": plans},
        num_actors=cfg.run.num_workers,
        num_gpus=cfg.run.num_gpus,
        calls_at_once=2,  # one opens its images while the network runs for the other
        node_resource=cfg.run.node_resource,
    )
    source = Source(
        places=[Place.of(asked)],
        columns=ASKED.names,
        num_rows=len(rows),
        identity=dict(identity),
        inputs={"weights": str(identity["weights"]), "protocol": protocol.hash},
        steps=[step],
    )
    work = Work(
        stage="evaluate",
        source=source,
        table=FOUND,
        good=schema.LABELLED,
        apart=False,
        crashed=_crashed,
        rows_per_block=cfg.run.rows_per_block,
        config=asdict(cfg.run),
    )
    carry_out(work, Place.of(cfg.out / FOUND_ROWS))


def _crashed(row: Mapping[str, Any]) -> dict[str, object]:
    return {"status": schema.REJECTED, "reason": "worker_crash"}


def _judge_all(truths: Sequence[Truth], out: Path, protocol: Protocol) -> list[Result]:
    """Measure data set by data set: only one's answers are in memory."""
    results, first = [], 0
    for truth in truths:
        key, end = pc.field("key"), first + len(truth.images)
        found = open_rows(out / FOUND_ROWS).to_table(filter=(key >= first) & (key < end)).sort_by("key")
        results.append(judge(truth, found, out, protocol))
        first = end
    return results


def _read_scores(out: Path, key: str) -> list[Result] | None:
    """Read the scores of an evaluation that is finished."""
    path = out / SCORES
    if not path.exists() or (saved := json.loads(path.read_text(encoding="utf-8")))["key"] != key:
        return None
    return [Result(**result) for result in saved["scores"]]


def _metrics(protocol: Protocol, results: Sequence[Result]) -> dict[str, float]:
    """Name for MLflow what is shown and its mean, in percent, and every number of every metric."""
    values = {f"score/{result.dataset}": result.value for result in results}
    if (average := mean_of(results, protocol)) is not None:
        values["score/mean"] = average
    for result in results:
        values[f"{result.dataset}/unread"] = sum(result.unread.values())
        for metric, numbers in result.metrics.items():
            values |= {f"{result.dataset}/{metric}/{name}": value for name, value in numbers.items()}
    return {re.sub(r"[^\w./ -]", "_", name): value for name, value in values.items()}  # what MLflow takes


def _text(cfg: EvaluationJob, protocol: Protocol, results: Sequence[Result], run: Run) -> str:
    places = f"scores     {cfg.out / SCORES}\nMLflow UI  {ui_command(run.uri)}"
    return f"{table(protocol, results)}\n\n{places}"
