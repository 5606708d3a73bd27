"""Labels in mmdetection's ODVG format: one json object per line, with either ``detection`` or ``grounding``."""

import json
import logging
from collections.abc import Iterator
from typing import Any

from pipeline import schema
from pipeline.sources.coco import CocoSource, Record, Row, clamp_box, start_row

logger = logging.getLogger(__name__)

Labelled = tuple[list[float], Record]
"""A box inside its image, and what the file says of it."""


def read_odvg(source: CocoSource) -> Iterator[Row]:
    """Read rows, one per line, in the order of the file; ``annotations`` is the jsonl.

    A region may have one box or many. Boxes are clamped to the image; those without an area, and regions none of whose
    spans lies in the caption, are left out and counted in the log. What plain files do not say is read where it is
    given, as our own export does: ``score``, all ``phrases`` with their ``entity``, and the ``kind`` of the row.

    Raises:
        ValueError: a line is no ODVG.
    """
    lost = 0
    with source.annotations.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            record = _parse(line, f"{source.annotations}, line {number}")
            kind = record.get("kind", schema.GROUND if "grounding" in record else schema.DETECTION)
            image = {"id": number, "file_name": record["filename"]}
            row = start_row(image | {side: record.get(side) for side in ("width", "height")}, source, kind)
            if row["status"] == schema.LABELLED:
                columns, left_out = _columns(record, row)
                row |= columns
                lost += left_out
            yield row
    if lost:
        logger.warning("%s: left out %d boxes without an area or a span", source.annotations, lost)


def _parse(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no json: {error}; expected one object per line") from error
    if not isinstance(record, dict) or "filename" not in record or not {"detection", "grounding"} & record.keys():
        raise ValueError(f"{where} lacks filename, or detection and grounding; expected ODVG as mmdetection reads it")
    return record


def _columns(record: Record, row: Row) -> tuple[Row, int]:
    """Give the columns of one line, and how many boxes were left out."""
    if "grounding" not in record:
        given: list[Record] = record["detection"]["instances"]
        kept = [(box, instance) for instance in given for box in _boxes(instance, row)]
        return _common(kept) | _categories(kept), len(given) - len(kept)
    caption = record["grounding"]["caption"]
    regions = [region | {"spans": _spans(region, len(caption))} for region in record["grounding"]["regions"]]
    boxes = [(box, region) for region in regions for box in _boxes(region, row)]
    kept = [(box, region) for box, region in boxes if region["spans"]]
    number = sum(len(_listed(region["bbox"])) for region in regions)
    found = {(begin, end) for _, region in kept for begin, end in region["spans"]}
    phrases = [tuple(span) for span in record["grounding"].get("phrases") or sorted(found)]
    spans = {
        "text": caption,
        "phrases": [list(phrase) for phrase in phrases],
        "entity": record["grounding"].get("entity"),
        "tokens_positive": [region["spans"] for _, region in kept],
        "phrase_index": [_owner(region["spans"], phrases) for _, region in kept],
        "category_id": [-1] * len(kept),
        "category": [""] * len(kept),
    }
    return _common(kept) | spans, number - len(kept)


def _owner(spans: list[list[int]], phrases: list[tuple[int, ...]]) -> int:
    """Find the phrase of a box: the first of its spans that is one."""
    return next((phrases.index(tuple(span)) for span in spans if tuple(span) in phrases), -1)


def _boxes(region: Record, row: Row) -> list[list[float]]:
    boxes = ((x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in _listed(region["bbox"]))
    return [box for xywh in boxes if (box := clamp_box(xywh, row["width"], row["height"])) is not None]


def _listed(bbox: list[Any]) -> list[list[float]]:
    return bbox if bbox and isinstance(bbox[0], list) else [bbox]


def _spans(region: Record, length: int) -> list[list[int]]:
    given = region.get("tokens_positive") or []
    listed = given if given and isinstance(given[0], list) else [given]
    return [[int(s[0]), int(s[1])] for s in listed if len(s) == 2 and 0 <= s[0] < s[1] <= length]


def _categories(kept: list[Labelled]) -> Row:
    return {
        "phrase_index": [-1] * len(kept),
        "category_id": [instance["label"] for _, instance in kept],
        "category": [str(instance["category"]) for _, instance in kept],
    }


def _common(kept: list[Labelled]) -> Row:
    return {
        "boxes": [box for box, _ in kept],
        "score": [float(said.get("score", 1.0)) for _, said in kept],
        "iscrowd": [False] * len(kept),
    }
