"""Captions to boxes: noun phrases, a GLIP teacher, and grounding shards (GLIPv2 section 4, "pseudo-labelling").

Every row given ends in the output: labelled, or rejected with a reason. Boxes are stored from a low score up
(``min_score``), so that training can choose (`pipeline.selection`) without labelling again.
"""

import io
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
from PIL import Image
from ray.data import ActorPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from glipv2.text.phrases import PhraseConfig, caption_reason, clean_caption, make_parser
from pipeline import schema
from pipeline.progress import Progress, quiet_ray_data, track_dataset
from pipeline.shards import (
    Manifest,
    begin,
    config_hash,
    count_rejects,
    describe_files,
    number_files,
    parquet_options,
    read_manifest,
    write_manifest,
)

STAGE = "pseudo_label"
OUTCOME = "outcome"
"""Folder name of the output, ``outcome=labelled`` and ``outcome=rejected``: readers of labels need not open rejects."""

_MACHINERY = ("num_teachers", "num_gpus", "threads_per_teacher", "rows_per_block")
"""Fields that decide how fast the rows come, not which: they may differ when a finished output is reused."""


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """How captions become boxes."""

    source: str = "captions"
    """Name of the data set in every row's ``sample_id``."""
    phrases: PhraseConfig = field(default_factory=PhraseConfig)
    """How phrases are found."""
    min_score: float = 0.3
    """Boxes below it are not stored."""
    batch_size: int = 32
    """Images per forward pass."""
    num_teachers: int = 1
    """Teachers working side by side."""
    num_gpus: float = 0.0
    """GPUs per teacher; 0 labels on the CPU."""
    threads_per_teacher: int = 1
    """CPU threads per teacher."""
    rows_per_block: int = 128
    """Rows that travel together, and rows of a shard, labelled and rejected ones counted together."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score is {self.min_score}; give a number between 0 and 1")
        for name in ("batch_size", "num_teachers", "rows_per_block", "threads_per_teacher"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")


def pseudo_label(cfg: PseudoLabelConfig, teacher: Path, images: Path, out: Path, run_id: str = "") -> Manifest:
    """Label a directory of downloaded images into ``out``; a finished one is only read.

    Args:
        cfg: how captions become boxes.
        teacher: model folder (`glipv2.checkpoint`).
        images: finished directory of downloaded images.
        out: directory to write.
        run_id: MLflow run, recorded in every row.

    Raises:
        ValueError: the images are unfinished, the teacher is no model, or ``out`` was made otherwise.
    """
    from glipv2.checkpoint import weights_sha256

    given = read_manifest(images)
    if given is None:
        raise ValueError(f"{images} holds no finished download (no manifest.json); run the download first")
    teacher_sha256 = weights_sha256(teacher)
    settings = asdict(cfg)
    deciding = {name: value for name, value in settings.items() if name not in _MACHINERY}
    wanted = config_hash([STAGE, deciding, teacher_sha256, given.content_hash, schema.SCHEMA_VERSION])
    if (done := begin(out, wanted)) is not None:
        return done
    started = time.perf_counter()
    provenance = {"teacher": teacher.parent.name, "teacher_sha256": teacher_sha256, "run_id": run_id}
    dataset = _plan(cfg, teacher, images, provenance)
    rows = given.rows_in
    with track_dataset(dataset, Progress(STAGE), rows):
        dataset.write_parquet(str(out), partition_cols=[OUTCOME], **parquet_options(schema.GROUNDING))
    for folder in out.glob(f"{OUTCOME}=*"):
        number_files(folder, "key")
    kept, rejects = count_rejects(out, schema.LABELLED)
    manifest = Manifest(
        stage=STAGE,
        config_hash=wanted,
        rows_in=rows,
        rows_out=kept,
        rejects=rejects,
        files=describe_files(out),
        inputs={"images": given.content_hash, "teacher": teacher_sha256},
        config=settings,
        run_id=run_id,
        seconds=time.perf_counter() - started,
    )
    write_manifest(out, manifest)
    return manifest


def _plan(cfg: PseudoLabelConfig, teacher: Path, images: Path, provenance: dict[str, str]) -> ray.data.Dataset:
    quiet_ray_data()
    with warnings.catch_warnings():
        # Ray 2.60 wants named options instead of **ray_remote_args, but has no name for the two that bound restarts.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = (
            ray.data.read_parquet(str(images))
            .repartition(target_num_rows_per_block=cfg.rows_per_block)
            .map_batches(
                Teacher,
                fn_constructor_kwargs={"cfg": cfg, "teacher": teacher, "provenance": provenance},
                batch_size=cfg.batch_size,
                batch_format="pyarrow",
                num_cpus=0 if cfg.num_gpus else 1,
                num_gpus=cfg.num_gpus or None,
                compute=ActorPoolStrategy(size=cfg.num_teachers),
                max_restarts=2,
                max_task_retries=2,
            )
            .repartition(target_num_rows_per_block=cfg.rows_per_block)
        )
    # The same inputs give the same files, row for row, whichever teacher is done first.
    dataset.context.execution_options.preserve_order = True
    return dataset


class Teacher:
    """A GLIP teacher with a phrase parser, alive for the whole job."""

    def __init__(self, cfg: PseudoLabelConfig, teacher: Path, provenance: dict[str, str]) -> None:
        """Load the model onto this actor's GPU, or the CPU."""
        import torch

        from glipv2.inference.predictor import Predictor

        torch.set_num_threads(cfg.threads_per_teacher)
        device = "cuda" if cfg.num_gpus else "cpu"
        self.predictor = Predictor.load(teacher, device, batch_size=cfg.batch_size)
        self.parser = make_parser(cfg.phrases)
        self.cfg = cfg
        self.common = {
            **provenance,
            "source": cfg.source,
            "split": "train",
            "kind": schema.CAPTION,
            "parser": self.parser.name,
            "parser_version": self.parser.version,
            "score_threshold": cfg.min_score,
            "schema_version": schema.SCHEMA_VERSION,
        }

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Label a batch of images; as many rows go out as came in."""
        rows = [self._parse(row) for row in batch.to_pylist()]
        waiting = [row for row in rows if row["status"] == schema.LABELLED]
        if waiting:
            self._label(waiting)
        table = schema.to_table(rows, schema.GROUNDING)
        return table.append_column(OUTCOME, table["status"])

    def _parse(self, image: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {
            **self.common,
            "sample_id": f"{self.cfg.source}/train/{image['key']}",
            "key": image["key"],
            "image_uri": image["url"],
            "text": clean_caption(image["caption"] or ""),
            "status": schema.LABELLED,
        }
        if image["status"] != schema.SUCCESS:
            return _reject(row, f"{image['status']}:{image['reason']}")
        if (reason := caption_reason(row["text"], self.cfg.phrases)) is not None:
            return _reject(row, reason)
        phrases = [[phrase.begin, phrase.end] for phrase in self.parser(row["text"])]
        row |= {"phrases": phrases, "image_sha256": image["sha256"]}
        if not phrases:
            return _reject(row, "no_phrase")
        return row | {key: image[key] for key in ("image", "width", "height")}

    def _label(self, rows: list[dict[str, Any]]) -> None:
        pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
        predictions = self.predictor.ground(pictures, [row["text"] for row in rows], [row["phrases"] for row in rows])
        for row, found in zip(rows, predictions, strict=True):
            keep = [i for i, score in enumerate(found.scores) if score >= self.cfg.min_score]
            if not keep:
                _reject(row, "no_box")
                continue
            owners = [found.labels[i] for i in keep]
            boxes = found.boxes_xyxy[keep].tolist()
            row |= {
                "boxes": [_clip(box, row["width"], row["height"]) for box in boxes],
                "score": [found.scores[i] for i in keep],
                "phrase_index": owners,
                "tokens_positive": [[row["phrases"][owner]] for owner in owners],
                "category_id": [-1] * len(keep),
                "category": [""] * len(keep),
                "iscrowd": [False] * len(keep),
            }


def _reject(row: dict[str, Any], reason: str) -> dict[str, Any]:
    """End a row here. Its image stays where the download put it."""
    row |= {"status": schema.REJECTED, "reason": reason, "image": None}
    return row


def _clip(box: Sequence[float], width: int, height: int) -> list[float]:
    x1, y1, x2, y2 = box
    return [max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)]
