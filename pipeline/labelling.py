"""Rows of images to rows of labels: noun phrases of the caption, a teacher, boxes tied to characters.

Every row given comes out: labelled, or rejected with a reason. Boxes are stored from a low score up (``min_score``), so
that training can choose (`pipeline.selection`) without labelling again.
"""

import io
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa
from PIL import Image

from glipv2.image import UNREADABLE, to_rgb
from glipv2.text.phrases import PhraseConfig, caption_reason, clean_caption, make_parser, number_entities
from glipv2.text.tokenizer import CharSpan
from pipeline import schema
from pipeline.selection import overlap
from pipeline.teachers import Found, TeacherConfig, load_teacher


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """How captions become boxes."""

    source: str = "captions"
    """Name of the data set in every row's ``sample_id``."""
    phrases: PhraseConfig = field(default_factory=PhraseConfig)
    """How phrases are found, and which are one entity."""
    min_score: float = 0.3
    """Boxes below it are not stored."""
    nms_iou: float = 0.6
    """Of two boxes of one entity overlapping more than this only the better one is stored."""
    cross_nms_iou: float | None = None
    """The same for boxes of different entities; None stores an object under every name it answers to."""
    max_boxes: int = 100
    """Boxes stored per image, best first."""
    batch_size: int = 16
    """Images per forward pass at most; fewer where images of one padded size run out."""
    threads: int = 1
    """CPU threads of the teacher's network."""
    num_gpus: float = 0.0
    """GPUs per teacher, or the share of one; 0 labels on the CPU."""
    bf16: bool | None = None
    """Run the teacher's network in bfloat16; None does so on a GPU only."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("min_score", "nms_iou", "cross_nms_iou"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; give a number between 0 and 1")
        for name in ("max_boxes", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.num_gpus < 0:
            raise ValueError(f"num_gpus is {self.num_gpus}; give 0 for the CPU, a share of a GPU, or a count")

    @property
    def teacher(self) -> TeacherConfig:
        """How the teacher runs."""
        return TeacherConfig(
            device="cuda" if self.num_gpus else "cpu",
            bf16=self.num_gpus > 0 if self.bf16 is None else self.bf16,
            batch_size=self.batch_size,
            min_score=self.min_score,
            nms_iou=self.nms_iou,
            max_boxes=self.max_boxes,
        )


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A row that waits for the teacher."""

    row: dict[str, Any]
    size: tuple[int, int]
    """Width and height of its image, px."""
    entities: list[list[CharSpan]]
    """Mentions of each entity."""


class Labeller:
    """A teacher with a phrase parser, alive for the whole job.

    Several threads may call it, each with rows of its own: while the network runs for one, the others parse captions
    and decode images.
    """

    def __init__(self, cfg: LabelConfig, teacher_ref: str, provenance: dict[str, str]) -> None:
        """Load parser and teacher.

        Args:
            cfg: how captions become boxes.
            teacher_ref: the teacher (`pipeline.teachers.load_teacher`).
            provenance: columns recorded in every row, as ``run_id``. Where it holds ``teacher_sha256``, those are the
                weights the run began with.

        Raises:
            ValueError: the teacher or the parser cannot be loaded, or the weights are other ones than given.
        """
        import torch

        torch.set_num_threads(cfg.threads)
        self.cfg = cfg
        self.parser = make_parser(cfg.phrases)
        self.teacher = load_teacher(teacher_ref, cfg.teacher)
        if (wanted := provenance.get("teacher_sha256", self.teacher.sha256)) != self.teacher.sha256:
            raise ValueError(
                f"the weights of {teacher_ref} have sha256 {self.teacher.sha256[:12]} here, but the run began with "
                f"{wanted[:12]}; give every machine the same folder, or owner/name@revision"
            )
        self._parsing = threading.Lock()
        self._common = {
            "teacher": self.teacher.name,
            "teacher_sha256": self.teacher.sha256,
            **provenance,
            "source": cfg.source,
            "split": "train",
            "kind": schema.CAPTION,
            "parser": self.parser.name,
            "parser_version": self.parser.version,
            "score_threshold": cfg.min_score,
            "nms_iou": cfg.nms_iou,
            "cross_nms_iou": cfg.cross_nms_iou,
            "schema_version": schema.SCHEMA_VERSION,
        }

    def __call__(self, images: pa.Table) -> pa.Table:
        """Label a table of images of any length; as many rows go out as came in, in their order."""
        rows = [self._begin(image) for image in images.to_pylist()]
        tasks = [task for row in rows if row["status"] == schema.LABELLED and (task := self._open(row))]
        for batch in self._batches(tasks):
            self._label(batch)
        table = schema.to_table(rows, schema.GROUNDING)
        return table.append_column(schema.OUTCOME, table["status"])

    def _begin(self, image: dict[str, Any]) -> dict[str, Any]:
        """Start the row of an image; it is labelled until something speaks against it."""
        row = {
            **self._common,
            "sample_id": f"{self.cfg.source}/train/{image['key']}",
            "image_uri": image["url"] or image["stored"],
            "text": clean_caption(image["caption"]),
            "image_sha256": image["sha256"],
            "status": schema.LABELLED,
            **{name: image[name] for name in ("key", "image", "width", "height", "source_sha256", "phash")},
        }
        if image["status"] != schema.SUCCESS:
            refused = image["status"] == schema.REJECTED  # as it is, by a guard; else the image failed before
            return _reject(row, image["reason"] if refused else f"{image['status']}:{image['reason']}")
        if (reason := caption_reason(row["text"], self.cfg.phrases)) is not None:
            return _reject(row, reason)
        with self._parsing:  # textblob reads its lexicon at the first call, and spaCy promises nothing to threads
            phrases = self.parser(row["text"])
        row["phrases"] = [(phrase.begin, phrase.end) for phrase in phrases]
        row["entity"] = number_entities(phrases, self.cfg.phrases)
        return row if phrases else _reject(row, "no_phrase")

    def _open(self, row: dict[str, Any]) -> _Task | None:
        """Read an image's head; its pixels wait for their batch, so that few are in memory at once."""
        entities: list[list[CharSpan]] = [[] for _ in range(max(row["entity"]) + 1)]
        for number, span in zip(row["entity"], row["phrases"], strict=True):
            entities[number].append(span)
        try:
            with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
                return _Task(row=row, size=image.size, entities=entities)
        except UNREADABLE:
            _reject(row, "unreadable_image")
            return None

    def _batches(self, tasks: Sequence[_Task]) -> Iterator[list[_Task]]:
        """Put together what shares a forward pass with the least padding: images of one size, then texts of a length.

        What is found in an image does not depend on its company, so this only decides how fast.
        """

        def size(task: _Task) -> tuple[int, int]:
            return self.teacher.padded_size(task.size)

        for _, group in groupby(sorted(tasks, key=lambda task: (size(task), len(task.row["text"]))), size):
            together = list(group)
            for start in range(0, len(together), self.cfg.batch_size):
                yield together[start : start + self.cfg.batch_size]

    def _label(self, batch: list[_Task]) -> None:
        pictures = {i: picture for i, task in enumerate(batch) if (picture := _decode(task)) is not None}
        tasks = [batch[i] for i in pictures]
        captions, entities = [task.row["text"] for task in tasks], [task.entities for task in tasks]
        answers = self.teacher.ground(list(pictures.values()), captions, entities)
        for task, found in zip(tasks, answers, strict=True):
            if not _is_finite(found):
                _reject(task.row, "teacher_not_finite")
            elif not (keep := self._choose(found)):
                _reject(task.row, "no_box")
            else:
                task.row.update(_columns(task, found, keep))

    def _choose(self, found: Found) -> list[int]:
        """Choose the boxes to store, best first."""
        keep: list[int] = []
        for i, score in enumerate(found.scores):
            if score >= self.cfg.min_score and not self._is_hidden(i, keep, found):
                keep.append(i)
        return keep[: self.cfg.max_boxes]

    def _is_hidden(self, box: int, better: Sequence[int], found: Found) -> bool:
        """Tell whether a better box of another entity covers the same object."""
        limit = self.cfg.cross_nms_iou
        return limit is not None and any(
            found.entities[other] != found.entities[box]
            and overlap(found.boxes_xyxy[other], found.boxes_xyxy[box]) > limit
            for other in better
        )


def _decode(task: _Task) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(task.row["image"]["bytes"])) as image:
            return to_rgb(image)
    except UNREADABLE:
        _reject(task.row, "unreadable_image")
        return None


def _is_finite(found: Found) -> bool:
    values = (value for box in (*found.boxes_xyxy, found.scores) for value in box)
    return found.finite and all(map(math.isfinite, values))


def _columns(task: _Task, found: Found, keep: Sequence[int]) -> dict[str, Any]:
    owners = [found.entities[i] for i in keep]
    width, height = task.size
    return {
        "width": width,
        "height": height,
        "boxes": [_clip(found.boxes_xyxy[i], width, height) for i in keep],
        "score": [found.scores[i] for i in keep],
        "phrase_index": [task.row["entity"].index(owner) for owner in owners],
        "tokens_positive": [task.entities[owner] for owner in owners],
        "category_id": [-1] * len(keep),
        "category": [""] * len(keep),
        "iscrowd": [False] * len(keep),
    }


def _reject(row: dict[str, Any], reason: str) -> dict[str, Any]:
    """End a row here. Its image is not stored again."""
    row |= {"status": schema.REJECTED, "reason": reason, "image": None}
    return row


def _clip(box: Sequence[float], width: int, height: int) -> list[float]:
    x1, y1, x2, y2 = box
    return [max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)]
