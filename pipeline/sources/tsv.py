"""GLIP's family of TSV files: pictures in base64, and beside them boxes of categories or of captions.

A set is ``*.img.tsv``, ``*.label.tsv`` and a label map, perhaps ``*.hw.tsv``, ``*.linelist.tsv`` and ``*.lineidx``; the
yaml that names them is not needed. How the files fit together: `tsv_files`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import schema
from pipeline.sources.coco import Record, Row, clamp_box, knows, load_json, open_text, report_lost
from pipeline.sources.mdetr import EMPTY_CAPTION, box_columns, spans_inside
from pipeline.sources.tsv_files import Entry, TsvFiles, read_rows

_BACKGROUND = "__background__"
"""The reference's name for nothing, which some label maps list; no category."""

Spans = tuple[tuple[int, int], ...]
"""All mentions of one entity."""


@dataclass(frozen=True, kw_only=True)
class TsvDetectionSource(TsvFiles):
    """A set whose labels are boxes of categories."""

    label_map: Path
    """Category ids: a json ``{name: id}`` (perhaps below ``label_to_idx``), or a ``.tsv`` with a name per line, from
    1. Sets that share the file share their vocabulary."""


@dataclass(frozen=True, kw_only=True)
class TsvCaptionSource(TsvFiles):
    """A set whose labels are captions, and boxes that a model found for their phrases."""


def tsv_categories(source: TsvDetectionSource) -> dict[int, str]:
    """Read the category names by ascending id; of several names of one id the last counts.

    Raises:
        ValueError: The label map is absent or none.
    """
    numbers = _read_label_map(source.label_map)
    return {numbers[name]: name for name in sorted(numbers, key=lambda name: numbers[name])}


def read_tsv_detection(source: TsvDetectionSource) -> Iterator[Row]:
    """Read rows of kind `schema.DETECTION`, one per line of the labels, in their order.

    A label is a list of ``{"rect": [x1, y1, x2, y2], "class": name}``, or an object that has it as ``objects``.
    ``conf`` becomes the score and ``IsGroupOf`` marks a crowd; masks and attributes are not read. Boxes are clamped
    to the image; those without an area are left out and counted in the log. ``sample_id`` ends with the key.

    Raises:
        ValueError: A file is not of the format, or a class is not in the label map.
    """
    numbers, names = _read_label_map(source.label_map), tsv_categories(source)
    lost: Counter[str] = Counter()
    for entry, row in read_rows(source, schema.DETECTION, lambda entry: {"id": entry.key}):
        if row["status"] == schema.LABELLED:
            row |= _detection_columns(_read_objects(entry, numbers), row, names, lost)
        yield row
    report_lost(source.labels, lost)


def read_tsv_captions(source: TsvCaptionSource) -> Iterator[Row]:
    """Read rows of kind `schema.CAPTION`, one per line of the labels, in their order.

    A label has ``caption``, perhaps ``img_h`` and ``img_w``, and as lists of equal length ``bboxes``, ``scores`` and
    ``tokens_positive``: per box (v1), or per entity with several boxes or none (v2). Spans with nothing but blanks
    between them are joined, as each word has one of its own there; what results are the ``phrases``. Boxes of equal
    spans belong to one entity. Boxes without an area or a span are left out and counted in the log. ``sample_id`` ends
    with the key and the number of the line, from 0, as an image may have several captions.

    Raises:
        ValueError: A file is not of the format.
    """
    lost: Counter[str] = Counter()
    for entry, row in read_rows(source, schema.CAPTION, _describe_caption):
        row["text"] = entry.label["caption"]
        if not row["text"].strip():
            row |= {"status": schema.REJECTED, "reason": EMPTY_CAPTION}
        if row["status"] == schema.LABELLED:
            row |= _caption_columns(entry, row, lost)
        yield row
    report_lost(source.labels, lost)


def _read_label_map(path: Path) -> dict[str, int]:
    expected = "a label map: a json {name: id}, or a .tsv with a name per line"
    if path.suffix == ".tsv":
        with open_text(path, expected) as lines:
            return {line.strip(): number for number, line in enumerate(lines, start=1) if line.strip()}
    content = load_json(path, expected)
    numbers = content.get("label_to_idx", content) if isinstance(content, dict) else None
    if not isinstance(numbers, dict) or not all(isinstance(number, int) for number in numbers.values()):
        raise ValueError(f"{path} is something else; expected {expected}")
    return {name: number for name, number in numbers.items() if name != _BACKGROUND}


def _read_objects(entry: Entry, numbers: dict[str, int]) -> list[Record]:
    """Check the objects of a label, and give each its ``category_id``."""
    objects = entry.label.get("objects") if isinstance(entry.label, dict) else entry.label
    if not isinstance(objects, list):
        raise ValueError(f"{entry.where} has no list of objects; expected each with rect and class")
    for found in objects:
        if not isinstance(found, dict) or not _is_box(found.get("rect")):
            raise ValueError(f"{entry.where} has {found!r}; expected an object with rect [x1, y1, x2, y2] and class")
        if not knows(numbers, found.get("class")):
            raise ValueError(f"{entry.where} has class {found.get('class')!r}; expected a name of the label map")
    return [{**found, "category_id": numbers[found["class"]]} for found in objects]


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(number, int | float) for number in value)


def _clamp(xyxy: list[float], row: Row) -> list[float] | None:
    x1, y1, x2, y2 = xyxy
    return clamp_box((x1, y1, x2 - x1, y2 - y1), row["width"], row["height"])


def _detection_columns(objects: list[Record], row: Row, names: dict[int, str], lost: Counter[str]) -> Row:
    placed = [(_clamp(found["rect"], row), found) for found in objects]
    kept = [(box, found) for box, found in placed if box is not None]
    lost["boxes without an area"] += len(placed) - len(kept)
    return {
        "boxes": [box for box, _ in kept],
        "phrase_index": [-1] * len(kept),
        "category_id": [found["category_id"] for _, found in kept],
        "category": [names[found["category_id"]] for _, found in kept],
        "score": [float(found.get("conf", 1.0)) for _, found in kept],
        "iscrowd": [bool(found.get("IsGroupOf", 0)) for _, found in kept],
    }


def _describe_caption(entry: Entry) -> Record:
    """Check the label of a caption as far as its boxes are not concerned."""
    label = entry.label if isinstance(entry.label, dict) else {}
    lists = [label.get(name) for name in ("bboxes", "scores", "tokens_positive")]
    lengths = {len(values) if isinstance(values, list) else None for values in lists}
    if not isinstance(label.get("caption"), str) or None in lengths or len(lengths) > 1:
        wanted = "caption, and bboxes, scores and tokens_positive of equal length"
        raise ValueError(f"{entry.where} is no caption with boxes; expected an object with {wanted}")
    size = {side: label[name] for side, name in (("height", "img_h"), ("width", "img_w")) if name in label}
    return {"id": f"{entry.key}_{entry.number}", **size}


def _caption_columns(entry: Entry, row: Row, lost: Counter[str]) -> Row:
    text, given = row["text"], entry.label["tokens_positive"]
    entities = [_join(spans_inside(spans, len(text), entry.where), text) for spans in given]
    placed = [(_clamp(box, row), score, entities[number]) for box, score, number in _flatten(entry)]
    kept = [(box, score, spans) for box, score, spans in placed if box is not None and spans]
    lost["boxes without an area or a span"] += len(placed) - len(kept)
    owners: dict[tuple[int, int], Spans] = {}
    # Entities with a box come first: a phrase that others claim too would else pass for one without.
    for spans in [*(spans for _, _, spans in kept), *entities]:
        for span in spans:
            owners.setdefault(span, spans)
    phrases, numbers = sorted(owners), dict[Spans, int]()
    return {
        "phrases": [list(phrase) for phrase in phrases],
        "entity": [numbers.setdefault(owners[phrase], len(numbers)) for phrase in phrases],
        **box_columns(
            [(box, [list(span) for span in spans]) for box, _, spans in kept],
            [_first_own(spans, owners, phrases) for _, _, spans in kept],
            [score for _, score, _ in kept],
        ),
    }


def _flatten(entry: Entry) -> Iterator[tuple[list[float], float, int]]:
    """Give every box with its score and the number of its spans."""
    for number, (boxes, scores) in enumerate(zip(entry.label["bboxes"], entry.label["scores"], strict=True)):
        listed, scored = (boxes, scores) if isinstance(scores, list) else ([boxes], [scores])
        numeric = all(isinstance(score, int | float) for score in scored)
        if not numeric or not isinstance(listed, list) or len(listed) != len(scored) or not all(map(_is_box, listed)):
            raise ValueError(f"{entry.where} has bboxes {boxes!r}, scores {scores!r}; expected a score per xyxy box")
        yield from ((box, float(score), number) for box, score in zip(listed, scored, strict=True))


def _join(spans: list[list[int]], text: str) -> Spans:
    """Join spans with nothing but blanks between them."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if joined and not text[joined[-1][1] : begin].strip():
            first, last = joined.pop()
            joined.append((first, max(last, end)))
        else:
            joined.append((begin, end))
    return tuple(joined)


def _first_own(spans: Spans, owners: dict[tuple[int, int], Spans], phrases: list[tuple[int, int]]) -> int:
    """Find the phrase of a box: the first of its spans, if there is one no other entity claims."""
    return phrases.index(next((span for span in spans if owners[span] == spans), spans[0]))
