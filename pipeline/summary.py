"""What a run came to: reads manifests, records and the MLflow history back into the report's inputs."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.dataset as pads

from glipv2.inference.predictor import Prediction, Predictor
from pipeline import schema
from pipeline.evaluate import Benchmark, category_names, open_image, read_annotations
from pipeline.mlflow_client import shown
from pipeline.pretrain import TrainingRecord
from pipeline.quality import measure_labels
from pipeline.report import (
    LabelQuality,
    Picture,
    ReportInputs,
    ReportPaths,
    Stage,
    Training,
    summary_table,
    write_report,
)
from pipeline.selection import SelectionConfig, select
from pipeline.shards import Manifest, open_rows, plain
from pipeline.storage import Place
from pipeline.tracking import Run, git_commit
from pipeline.trainer import HISTORY


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job has to show."""

    text: str
    """For the person who waits: the summary and where everything is."""
    report: ReportPaths | None = None
    """Where the report is, if the job writes one."""

    def __str__(self) -> str:
        """Give the text."""
        return self.text


SHOWN_SCORE = 0.3
"""Detections below it are not drawn."""


def header(title: str, run: Run, config: Mapping[str, object]) -> dict[str, Any]:
    """Say what the run was: the fields every report begins with."""
    return {
        "title": title,
        "created": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "run_id": run.run_id,
        "git_commit": git_commit(),
        "hardware": hardware(),
        "config_json": json.dumps(config, default=plain),
        "mlflow_uri": shown(run.uri),
    }


def hardware() -> str:
    """Describe this machine in a line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return f"{cores}, {memory:.0f} GiB memory, Python {platform.python_version()}"


def stage(manifest: Manifest, run: Run) -> Stage:
    """Tell a stage's account; reused if another run made the directory.

    Failed downloads travel on to the labels, so that one place holds every row. They are told once: by the download, if
    there was one before.
    """
    failed = (f"{schema.FAILED_TO_DOWNLOAD}:", f"{schema.FAILED_TO_RESIZE}:")
    told = "images" in manifest.inputs
    carried = {reason: n for reason, n in manifest.rejects.items() if told and reason.startswith(failed)}
    return Stage(
        name=manifest.stage,
        rows_in=manifest.rows_in - sum(carried.values()),
        rows_out=manifest.rows_out,
        rejects={reason: count for reason, count in manifest.rejects.items() if reason not in carried},
        seconds=manifest.seconds,
        reused=bool(manifest.run_id) and manifest.run_id != run.run_id,
    )


def training(record: TrainingRecord, uri: str) -> Training:
    """Tell how a model was trained, with its history from MLflow."""
    return Training(
        model=record.name,
        steps=record.num_steps,
        images_seen=record.images_seen,
        train_images=record.train_images,
        seconds=record.seconds,
        workers=record.num_workers,
        data_wait=record.data_wait,
        history=Run(uri, record.run_id).history(HISTORY),
    )


def label_quality(labels: Path, truth: Path, selection: SelectionConfig) -> list[LabelQuality]:
    """Measure stored and selected labels against what was drawn, base and novel nouns apart."""
    rows: list[LabelQuality] = []
    for name, rule in (("as stored", None), ("as used for training", selection)):
        measured = measure_labels(labels, truth, selection=rule)
        for group in ("base", "novel", "all"):
            suffix = "" if group == "all" else f"_{group}"
            counted = ("base", "novel", "other") if group == "all" else (group,)
            rows.append(
                LabelQuality(
                    precision=100 * float(measured[f"precision{suffix}"]),
                    recall=100 * float(measured[f"recall{suffix}"]),
                    num_labels=sum(int(measured[f"labels_{g}"]) for g in counted),
                    group=group,
                    selection=name,
                )
            )
    return rows


def label_pictures(labels: Place | Path, selection: SelectionConfig, count: int) -> list[Picture]:
    """Choose labelled images, spread over the shards, with the boxes training uses."""
    condition = pads.field("status") == schema.LABELLED
    total = open_rows(labels).count_rows(filter=condition)
    wanted = {round(i * total / count) for i in range(count)}
    pictures, position = [], 0
    for batch in open_rows(labels).to_batches(filter=condition, batch_size=64):
        for offset in sorted(i - position for i in wanted if position <= i < position + len(batch)):
            pictures.append(_label_picture(batch.slice(offset, 1).to_pylist()[0], selection))
        position += len(batch)
    return pictures


def detection_pictures(models: Mapping[str, Path], benchmark: Benchmark, count: int) -> list[Picture]:
    """Draw truth and every model's detections over the first images of a benchmark."""
    content = read_annotations(benchmark.annotations)
    names = category_names(content["categories"])
    images = content["images"][:count]
    files = [benchmark.images / image["file_name"] for image in images]
    pictures = []
    for image, file in zip(images, files, strict=True):
        boxes = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (b["bbox"] for b in boxes)]
        labels = [names[b["category_id"]] for b in boxes]
        pictures.append(
            Picture(image=file.read_bytes(), title=file.stem, boxes=corners, phrases=labels, scores=[], group="Truth")
        )
    for model, folder in models.items():
        found = Predictor.load(folder).detect([open_image(f) for f in files], names)
        pictures += [_detection_picture(f, p, model) for f, p in zip(files, found, strict=True)]
    return pictures


def _detection_picture(file: Path, found: Prediction, model: str) -> Picture:
    keep = [i for i, score in enumerate(found.scores) if score >= SHOWN_SCORE]
    return Picture(
        image=file.read_bytes(),
        title=file.stem,
        boxes=found.boxes_xyxy[keep].tolist(),
        phrases=[found.phrases[i] for i in keep],
        scores=[found.scores[i] for i in keep],
        group=model.capitalize(),
    )


def _label_picture(row: dict[str, Any], selection: SelectionConfig) -> Picture:
    keep = select(row["boxes"], row["score"], row["phrase_index"], selection)
    spans = [row["phrases"][row["phrase_index"][i]] for i in keep]
    return Picture(
        image=row["image"]["bytes"],
        title=Path(row["image_uri"]).name,
        boxes=[row["boxes"][i] for i in keep],
        phrases=[row["text"][begin:end] for begin, end in spans],
        scores=[row["score"][i] for i in keep],
        group="Pseudo-labels",
        caption=row["text"],
    )


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).stem


def publish(inputs: ReportInputs, out: Place | Path, run: Run) -> Outcome:
    """Write the report and store it with the run."""
    place = Place.of(out) / "report"
    with TemporaryDirectory() as folder:
        paths = write_report(inputs, place.local if place.is_local else Path(folder))
        run.artifact(paths.html.parent, "report")
        if not place.is_local:
            for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                (place / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())
    shown = place / paths.html.name
    return Outcome(
        text=f"{summary_table(inputs)}\n\nreport     {shown}\nMLflow UI  {ui_command(run.uri)}", report=paths
    )


def ui_command(uri: str) -> str:
    """Tell how to look at the runs."""
    return f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite") else shown(uri)
