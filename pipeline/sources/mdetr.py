"""Phrase grounding in MDETR's json: COCO's container with one image entry per caption and spans on every box."""

import logging
from collections.abc import Iterator
from pathlib import Path

from pipeline import schema
from pipeline.sources.coco import CocoSource, Record, Row, clamp_box, load_container, start_row

logger = logging.getLogger(__name__)

EMPTY_CAPTION = "empty_caption"
"""Reason of a row without a text to ground."""


def read_mdetr(source: CocoSource) -> Iterator[Row]:
    """Read rows of kind `schema.GROUND`, one per caption, in the order of the file.

    ``phrases`` are the distinct spans of the row's boxes in the order of the caption; a box's ``phrase_index`` points
    to the first of its spans. Crowds, boxes without an area and boxes none of whose spans lies in the caption are
    left out and counted in the log; captions without boxes are rows too. The mixed set names a ``data_source`` per
    image ("coco", "vg"): where the image folder has a sub-folder of that name, the file is looked for there.

    Raises:
        ValueError: The json is not MDETR's.
    """
    container = load_container(source.annotations)
    lost = 0
    for image in container.images:
        row = start_row(image, source, schema.GROUND, _folder(image, source.images))
        caption = image.get("caption")
        if not isinstance(caption, str):
            what = f"image {image['id']} has caption {caption!r}"
            raise ValueError(f"{source.annotations}: {what}; expected a text, as MDETR's json has one per image entry")
        row["text"] = caption
        if not caption.strip():
            row |= {"status": schema.REJECTED, "reason": EMPTY_CAPTION}
        if row["status"] == schema.LABELLED:
            found = container.annotations[image["id"]]
            kept = _grounded(found, row, source.annotations)
            lost += len(found) - len(kept)
            row |= _ground_columns(kept)
        yield row
    if lost:
        logger.warning("%s: left out %d crowds and boxes without an area or a span", source.annotations, lost)


def _folder(image: Record, images: Path) -> Path:
    own = images / str(image.get("data_source", ""))
    return own if own.is_dir() else images


def _grounded(found: list[Record], row: Row, path: Path) -> list[tuple[list[float], list[list[int]]]]:
    """Pair each usable box with its spans inside the caption."""
    kept = []
    for annotation in found:
        spans = _spans(annotation, len(row["text"]), path)
        box = clamp_box(annotation["bbox"], row["width"], row["height"])
        if box is not None and spans and not annotation.get("iscrowd", 0):
            kept.append((box, spans))
    return kept


def _spans(annotation: Record, length: int, path: Path) -> list[list[int]]:
    """Take the spans of a box that lie inside a caption of ``length`` characters."""
    try:
        spans = [[int(begin), int(end)] for begin, end in annotation["tokens_positive"]]
    except (KeyError, TypeError, ValueError) as error:
        what = f"annotation {annotation['id']} has tokens_positive {annotation.get('tokens_positive')!r}"
        raise ValueError(f"{path}: {what}; expected [begin, end) pairs of characters, as in MDETR's json") from error
    return [[begin, end] for begin, end in spans if 0 <= begin < end <= length]


def _ground_columns(kept: list[tuple[list[float], list[list[int]]]]) -> Row:
    phrases = sorted({(begin, end) for _, spans in kept for begin, end in spans})
    return {
        "phrases": [list(phrase) for phrase in phrases],
        "boxes": [box for box, _ in kept],
        "tokens_positive": [spans for _, spans in kept],
        "phrase_index": [phrases.index((spans[0][0], spans[0][1])) for _, spans in kept],
        "category_id": [-1] * len(kept),
        "category": [""] * len(kept),
        "score": [1.0] * len(kept),
        "iscrowd": [False] * len(kept),
    }
