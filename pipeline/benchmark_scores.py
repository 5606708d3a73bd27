"""From what was found to numbers: predictions as the metrics read them, and a table beside the paper's."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from glipv2.evaluation.coco import coco_metrics
from pipeline.benchmark_truth import Asked, Truth
from pipeline.protocol import MEAN, Protocol, Score, mean
from pipeline.score import ScoreJob, score
from pipeline.shards import write_atomically
from pipeline.sources.coco import load_json

PREDICTIONS = "predictions.json"
SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "R@1", "R@5", "R@10", "mAP", "mAP07")
"""Numbers told to the person who waits, if there are few data sets; ``scores.json`` has all."""
FEW = 4

Record = dict[str, Any]
Box = tuple[list[float], float, int]
"""Corners in px, score, label."""


@dataclass(frozen=True, kw_only=True)
class Result(Score):
    """The numbers of a data set."""

    name: str
    """The one that is shown, by the official name."""
    metrics: Mapping[str, Mapping[str, float]]
    """All numbers by metric and official name: fractions, -1 without truth."""
    num_images: int
    """Images of the split."""
    unread: Mapping[str, int]
    """Images that could not be asked, by reason; nothing was found in them."""
    unseen: int
    """Names, or phrases, that could not be looked for."""


def judge(truth: Truth, found: pa.Table, out: Path, protocol: Protocol) -> Result:
    """Write a data set's predictions to ``<out>/<data set>`` and measure them.

    Args:
        truth: what was asked.
        found: an answer per image, in the order of the truth (`pipeline.benchmark_worker.FOUND`).
        out: folder of the evaluation.
        protocol: the benchmark.

    Raises:
        ValueError: the metric has no number of the name that the protocol gives.
    """
    dataset = truth.dataset
    answers = zip(truth.images, found.to_pylist(), strict=True)
    predictions = [record for asked, row in answers for record in _told(truth, asked, row)]
    path = out / dataset.name / PREDICTIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "[\n" + ",\n".join(map(json.dumps, predictions)) + "\n]\n")
    subset = "" if dataset.kind == "coco" else dataset.split
    jobs = [
        ScoreJob(metric=metric, truth=Path(truth.files.annotations), predictions=path, subset=subset)
        for metric in dataset.metrics
    ]
    metrics: dict[str, dict[str, float]] = {job.metric: json.loads(score(job)) for job in jobs}
    first = metrics[dataset.metrics[0]]
    if dataset.by_supercategory:
        first |= _by_supercategory(truth.sources[0], predictions)
    if dataset.score not in first:
        raise ValueError(f"{dataset.name}: score is {dataset.score!r}, allowed: {', '.join(first)}; mend the protocol")
    return Result(
        dataset=dataset.name,
        split=dataset.split,
        prompts=protocol.prompts,
        protocol=protocol.hash,
        value=100 * first[dataset.score] if first[dataset.score] >= 0 else -1.0,
        name=dataset.score,
        metrics=metrics,
        num_images=len(truth.images),
        unread=dict(Counter(reason for reason in found["reason"].to_pylist() if reason)),
        unseen=_num_unseen(truth, found["unseen"].to_pylist()),
    )


def mean_of(results: Sequence[Result], protocol: Protocol) -> float | None:
    """Give the mean of a benchmark that has one, if all its data sets were measured and have truth."""
    whole = protocol.average == MEAN and len(results) == len(protocol.datasets)
    return mean(results, protocol) if whole and all(result.value >= 0 for result in results) else None


def table(protocol: Protocol, results: Sequence[Result]) -> str:
    """Set the results beside the paper's numbers, in percent, and say what one should know of them."""
    paper = protocol.paper
    positions = {dataset.name: number for number, dataset in enumerate(protocol.datasets)}
    lines = [["", "images", "", "this model", *(row.model for row in paper)]]
    for result in results:
        others = [row.scores[positions[result.dataset]] if row.scores else None for row in paper]
        lines.append([result.dataset, str(result.num_images), result.name, *map(_percent, [result.value, *others])])
    if protocol.average == MEAN:
        known = [mean_of(results, protocol), *(row.mean for row in paper)]
        lines.append(["mean", str(sum(result.num_images for result in results)), "", *map(_percent, known)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([f"{protocol.title} ({protocol.name} {protocol.hash})", *shown, *_notes(protocol, results)])


def _notes(protocol: Protocol, results: Sequence[Result]) -> list[str]:
    notes = [f"{row.model}: {row.note}" for row in protocol.paper if row.note]
    for result in results:
        for metric, numbers in result.metrics.items() if len(protocol.datasets) <= FEW else ():
            told = [f"{n} {_percent(100 * v)}" for n, v in numbers.items() if n in SHOWN or n.startswith("AP50_")]
            notes.append(f"{result.dataset}, {metric}: {', '.join(told)}")
        for reason, count in result.unread.items():
            notes.append(f"{result.dataset}: nothing is found in {count} of {result.num_images} images: {reason}")
        if result.unseen:
            notes.append(f"{result.dataset}: {result.unseen} names or phrases could not be looked for")
    return notes


def _percent(value: float | None) -> str:
    return "–" if value is None or value < 0 else f"{value:.1f}"


def _num_unseen(truth: Truth, unseen: Sequence[list[int] | None]) -> int:
    counts = [len(labels) for labels in unseen if labels is not None]
    return max(counts, default=0) if truth.names else sum(counts)


def _told(truth: Truth, asked: Asked, row: Record) -> list[Record]:
    """Write what was found in an image as the metric reads it."""
    boxes: list[Box] = list(zip(*(row[name] or [] for name in ("boxes", "score", "label")), strict=True))
    if truth.dataset.kind == "flickr30k":
        return _sentences(asked, boxes)
    if truth.dataset.kind == "voc":  # it counts pixels from 1, and the last one is inside
        return [
            {
                "image_id": asked.image_id,
                "category": truth.names[label],
                "bbox": [x1 + 1, y1 + 1, x2 - x1 - 1, y2 - y1 - 1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, label in boxes
        ]
    return [
        {"image_id": asked.image_id, "category_id": id_, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for (x1, y1, x2, y2), score, label in boxes
        for id_ in truth.ids[label]
    ]


def _sentences(asked: Asked, boxes: Sequence[Box]) -> list[Record]:
    """Sort boxes by sentence and phrase; their labels number the phrases of all sentences."""
    own: dict[int, list[Box]] = {}
    for box in boxes:
        own.setdefault(box[2], []).append(box)
    records, first = [], 0
    for sentence in asked.sentences:
        phrases = [own.get(label, []) for label in range(first, first + len(sentence.spans))]
        records.append(
            {
                "image_id": asked.image_id,
                "sentence_id": sentence.number,
                "boxes": [[corners for corners, _, _ in phrase] for phrase in phrases],
                "scores": [[score for _, score, _ in phrase] for phrase in phrases],
            }
        )
        first += len(phrases)
    return records


def _by_supercategory(path: Path, predictions: Sequence[Record]) -> dict[str, float]:
    """Give AP50 of the categories of each supercategory."""
    truth = load_json(path, "a COCO json")
    groups: dict[str, list[Record]] = {}
    for category in truth["categories"]:
        groups.setdefault(str(category.get("supercategory", "")), []).append(category)
    scores = {}
    for name, categories in groups.items():
        ids = {category["id"] for category in categories}
        boxes, found = ([r for r in rs if r["category_id"] in ids] for rs in (truth["annotations"], predictions))
        scores[f"AP50_{name}"] = coco_metrics({**truth, "categories": categories, "annotations": boxes}, found)["AP50"]
    return scores
