"""How good pseudo labels are, measured against what was drawn.

The miniature world knows where everything is and which words mean it, so precision and recall can be told, for the
nouns the teacher was trained on (base) and the others (novel) apart.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from pipeline.selection import Box, SelectionConfig, overlap, select

Span = Sequence[int]
"""``[begin, end)`` characters of the caption."""

BASE, NOVEL, OTHER = "base", "novel", "other"
"""Groups: what a noun is, and ``other`` for labels of phrases that mean no drawn object ("paper", "the window")."""

_COLUMNS = ["image_uri", "text", "width", "height", "phrases", "boxes", "tokens_positive", "phrase_index", "score"]


@dataclass(frozen=True, kw_only=True)
class Label:
    """A box that the teacher tied to a phrase."""

    box: Box
    """xyxy, in the pixels of the objects it is compared with."""
    phrases: Sequence[Span]
    """Characters of the caption, of every mention."""
    score: float
    """The teacher's confidence; surer labels choose their object first."""


@dataclass(frozen=True, kw_only=True)
class DrawnObject:
    """What really is in the picture."""

    box: Box
    """xyxy."""
    phrase: Span | None
    """Characters of the caption that mean it; None if it goes unmentioned."""
    novel: bool
    """Whether its noun has no boxes in the training sets."""

    @property
    def group(self) -> str:
        """Group its labels count in."""
        return NOVEL if self.novel else BASE


def measure_labels(
    grounding_dir: Path, truth: Path, *, selection: SelectionConfig | None = None, iou: float = 0.5
) -> dict[str, float | int]:
    """Measure all rows of a labelled directory whose caption was parsed; a rejected one among them found nothing.

    Args:
        grounding_dir: Parquet files of `schema.GROUNDING`.
        truth: Json lines with ``url``, ``caption``, ``width``, ``height`` and ``objects`` as drawn. Stored pictures may
            have another size; boxes are compared at the drawn size.
        selection: Which of the stored labels count; all if None.
        iou: Overlap that makes a label correct.

    Returns:
        ``rows`` measured, ``rows_without_truth`` (a picture that was not drawn, or a caption other than the drawn one,
        so that spans mean nothing), and `rates` of all rows together.
    """
    drawn = _read_truth(truth)
    counts: Counter[str] = Counter()
    for row in _read_labelled(grounding_dir):
        record = drawn.get((row["image_uri"], row["text"]))
        if record is None:
            counts["rows_without_truth"] += 1
            continue
        counts["rows"] += 1
        counts += score_labels(_labels(row, record, selection), record.objects, iou)
    return {"rows": counts["rows"], "rows_without_truth": counts["rows_without_truth"], **rates(counts)}


def score_labels(labels: Sequence[Label], objects: Sequence[DrawnObject], iou: float = 0.5) -> Counter[str]:
    """Compare the labels of one picture with what is drawn.

    A label is correct if its box overlaps an object that no surer label has taken, and its phrase shares characters
    with the object's. A wrong label counts in the group that its phrase means.

    Returns:
        Per group: ``labels_*``, ``correct_*`` and ``objects_*``, the last for objects the caption mentions.
    """
    mentioned = [drawn for drawn in objects if drawn.phrase is not None]
    counts = Counter(f"objects_{drawn.group}" for drawn in mentioned)
    taken: set[int] = set()
    for label in sorted(labels, key=lambda label: -label.score):
        meant = [i for i, drawn in enumerate(mentioned) if _share(label.phrases, drawn.phrase)]
        free = [i for i in meant if i not in taken and overlap(label.box, mentioned[i].box) >= iou]
        if free:
            best = max(free, key=lambda i: overlap(label.box, mentioned[i].box))
            taken.add(best)
            counts[f"correct_{mentioned[best].group}"] += 1
            counts[f"labels_{mentioned[best].group}"] += 1
        else:
            groups = {mentioned[i].group for i in meant}
            counts[f"labels_{next((group for group in (NOVEL, BASE) if group in groups), OTHER)}"] += 1
    return counts


def rates(counts: Counter[str]) -> dict[str, float | int]:
    """Turn summed counts into ``labels_*``, ``precision_*`` and ``recall_*``; a rate of nothing is 0.

    ``precision`` and ``recall`` without a group are over everything, labels that mean no drawn object included.
    """
    result: dict[str, float | int] = {f"labels_{group}": counts[f"labels_{group}"] for group in (BASE, NOVEL, OTHER)}
    for group in (BASE, NOVEL):
        result[f"precision_{group}"] = counts[f"correct_{group}"] / max(counts[f"labels_{group}"], 1)
        result[f"recall_{group}"] = counts[f"correct_{group}"] / max(counts[f"objects_{group}"], 1)
    labels, correct, objects = (
        sum(counts[f"{what}_{group}"] for group in (BASE, NOVEL, OTHER)) for what in ("labels", "correct", "objects")
    )
    return result | {"precision": correct / max(labels, 1), "recall": correct / max(objects, 1)}


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    width: int
    height: int
    objects: list[DrawnObject]


def _read_truth(path: Path) -> dict[tuple[str, str], _Drawing]:
    """Read the drawings by address and caption."""
    drawings = {}
    with path.open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            objects = [DrawnObject(box=o["box"], phrase=o["phrase"], novel=o["novel"]) for o in record["objects"]]
            drawing = _Drawing(width=record["width"], height=record["height"], objects=objects)
            drawings[record["url"], record["caption"]] = drawing
    return drawings


def _read_labelled(directory: Path) -> Iterator[dict[str, Any]]:
    """Read the rows whose caption was cut into phrases, without their pictures."""
    files = sorted(map(str, directory.rglob("*.parquet")))
    if not files:
        raise ValueError(f"{directory} holds no parquet file; give the directory of a finished labelling")
    parsed = pads.field("phrases").is_valid()
    for batch in pads.dataset(files).to_batches(columns=_COLUMNS, filter=parsed):
        yield from batch.to_pylist()


def _labels(row: dict[str, Any], drawing: _Drawing, selection: SelectionConfig | None) -> list[Label]:
    """Take the labels that count of a row, with boxes as large as in the drawing."""
    if not row["boxes"]:
        return []
    boxes, scores, owners = row["boxes"], row["score"], row["phrase_index"]
    chosen = range(len(boxes)) if selection is None else select(boxes, scores, owners, selection)
    x, y = drawing.width / row["width"], drawing.height / row["height"]
    scaled = [(x1 * x, y1 * y, x2 * x, y2 * y) for x1, y1, x2, y2 in boxes]
    return [Label(box=scaled[i], phrases=row["tokens_positive"][i], score=scores[i]) for i in chosen if owners[i] >= 0]


def _share(ours: Sequence[Span], theirs: Span | None) -> bool:
    return theirs is not None and any(begin < theirs[1] and theirs[0] < end for begin, end in ours)
