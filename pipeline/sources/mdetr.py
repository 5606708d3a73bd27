"""Phrase grounding in MDETR's json: COCO's container with one image entry per caption and spans on every box.

Reads GoldG as its authors publish it: ``final_flickr_separateGT_*.json`` and ``final_flickr_mergedGT_*.json``,
``final_mixed_*.json`` and ``final_mixed_train_no_coco.json``. Their ``tokens_negative`` (words of no box) and
``tokens_positive_eval`` (phrases with a box) are not read: training needs neither, evaluation opens the json itself.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.sources.coco import (
    CocoSource,
    Record,
    Row,
    clamp_box,
    file_name,
    load_container,
    report_lost,
    start_row,
)

EMPTY_CAPTION, COCO_IMAGE = "empty_caption", "coco_image"
"""Why a row is rejected: no text to ground, or an image of COCO that was to be left out."""

_COCO = "coco"
"""The mixed set's word for an image of COCO, in ``data_source``."""

GroundedBox = tuple[list[float], list[list[int]]]
"""A box inside its image, and its spans."""


@dataclass(frozen=True, kw_only=True)
class MdetrSource(CocoSource):
    """A json of GoldG and the images it speaks of."""

    without_coco: bool = False
    """Reject the mixed set's rows on images of COCO; with them, scores on COCO and LVIS are not zero-shot."""


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
    without_coco = isinstance(source, MdetrSource) and source.without_coco
    lost: Counter[str] = Counter()
    for image in container.images:
        text = _caption(image, source.annotations)
        if without_coco and image.get("data_source") == _COCO:
            yield _leave_out(image, source) | {"text": text}
            continue
        row = start_row(_with_sizes(image, source.annotations), source, schema.GROUND, _folder(image, source.images))
        row["text"] = text
        if not text.strip():
            row |= {"status": schema.REJECTED, "reason": EMPTY_CAPTION}
        if row["status"] == schema.LABELLED:
            found = container.annotations[image["id"]]
            kept = _grounded(found, row, source.annotations)
            lost["crowds and boxes without an area or a span"] += len(found) - len(kept)
            row |= _ground_columns(kept)
        yield row
    report_lost(source.annotations, lost)


def spans_inside(given: Any, length: int, where: str) -> list[list[int]]:
    """Take the spans that lie inside a text and are not empty.

    Args:
        given: ``tokens_positive`` of one box, as it was parsed.
        length: Characters of the text.
        where: File and entry, for the message.

    Raises:
        ValueError: It is no list of pairs of integers.
    """
    listed = given if isinstance(given, list) else [given]
    if not all(
        isinstance(span, list) and len(span) == 2 and all(isinstance(at, int) for at in span) for span in listed
    ):
        raise ValueError(f"{where} has tokens_positive {given!r}; expected a list of [begin, end) pairs of characters")
    return [[begin, end] for begin, end in listed if 0 <= begin < end <= length]


def box_columns(kept: Sequence[GroundedBox], phrase_index: list[int], scores: list[float] | None = None) -> Row:
    """Give the columns of a row whose boxes belong to phrases; without scores they are human ones."""
    return {
        "boxes": [box for box, _ in kept],
        "tokens_positive": [spans for _, spans in kept],
        "phrase_index": phrase_index,
        "category_id": [-1] * len(kept),
        "category": [""] * len(kept),
        "score": [1.0] * len(kept) if scores is None else scores,
        "iscrowd": [False] * len(kept),
    }


def _leave_out(image: Record, source: CocoSource) -> Row:
    """Make the row of an image that is not even looked for."""
    return {
        "sample_id": f"{source.source}/{source.split}/{image['id']}",
        "source": source.source,
        "split": source.split,
        "image_uri": file_name(image),
        "kind": schema.GROUND,
        "status": schema.REJECTED,
        "reason": COCO_IMAGE,
        "schema_version": schema.SCHEMA_VERSION,
    }


def _with_sizes(image: Record, path: Path) -> Record:
    """Give an image entry with sizes that are numbers: Flickr's part of GoldG has them in quotes."""
    try:
        return image | {side: int(image[side]) for side in ("width", "height") if image.get(side) is not None}
    except (TypeError, ValueError) as error:
        what = f"image {image['id']} has width {image.get('width')!r} and height {image.get('height')!r}"
        raise ValueError(f"{path}: {what}; expected pixels") from error


def _caption(image: Record, path: Path) -> str:
    caption = image.get("caption")
    if not isinstance(caption, str):
        what = f"image {image['id']} has caption {caption!r}"
        raise ValueError(f"{path}: {what}; expected a text, as MDETR's json has one per image entry")
    return caption


def _folder(image: Record, images: Path) -> Path:
    own = images / str(image.get("data_source", ""))
    return own if own.is_dir() else images


def _grounded(found: list[Record], row: Row, path: Path) -> list[GroundedBox]:
    """Pair each usable box with its spans inside the caption."""
    kept = []
    for annotation in found:
        where = f"{path}: annotation {annotation['id']}"
        spans = spans_inside(annotation.get("tokens_positive"), len(row["text"]), where)
        box = clamp_box(annotation["bbox"], row["width"], row["height"])
        if box is not None and spans and not annotation.get("iscrowd", 0):
            kept.append((box, spans))
    return kept


def _ground_columns(kept: list[GroundedBox]) -> Row:
    phrases = sorted({(begin, end) for _, spans in kept for begin, end in spans})
    first = [phrases.index((spans[0][0], spans[0][1])) for _, spans in kept]
    return {"phrases": [list(phrase) for phrase in phrases], **box_columns(kept, first)}
