"""Labels in mmdetection's ODVG format: one json object per line, with either ``detection`` or ``grounding``."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.sources.coco import CocoSource, Record, Row, clamp_box, load_json, open_text, report_lost, start_row
from pipeline.sources.mdetr import box_columns, spans_inside

Labelled = tuple[list[float], Record]
"""A box inside its image, and what the file says of it."""

_LINE = {"filename": str, "width": int, "height": int}
_DETECTION, _INSTANCE = {"instances": list}, {"bbox": list, "label": int, "category": str}
_GROUNDING, _REGION = {"caption": str, "regions": list}, {"bbox": list, "tokens_positive": list}
"""Fields that each object has to have, and their types."""


@dataclass(frozen=True, kw_only=True)
class OdvgSource(CocoSource):
    """A jsonl of detection, which is the ``annotations``, and the images it speaks of."""

    label_map: Path
    """The json beside it with the name of each ``label``, from "0"."""


def odvg_categories(source: OdvgSource) -> dict[int, str]:
    """Read the category names by ascending label.

    Raises:
        ValueError: The label map is absent or none.
    """
    expected = 'a label map like {"0": "cat", "1": "dog"}'
    names = load_json(source.label_map, expected)
    if not isinstance(names, dict) or not all(n.isdecimal() and isinstance(name, str) for n, name in names.items()):
        raise ValueError(f"{source.label_map} is something else; expected {expected}")
    return {int(number): names[number] for number in sorted(names, key=int)}


def read_odvg(source: CocoSource) -> Iterator[Row]:
    """Read rows, one per line, in the order of the file; ``annotations`` is the jsonl.

    A region may have one box or many. Boxes are clamped to the image; those without an area, and regions none of whose
    spans lies in the caption, are left out and counted in the log. A name with a "/" stays one name; mmdetection draws
    one of its parts when it trains. What plain files do not say is read where it is given, as our own export does:
    ``score``, all ``phrases`` with their ``entity``, and the ``kind`` of the row.

    Raises:
        ValueError: a line is no ODVG.
    """
    lost: Counter[str] = Counter()
    for number, line in _lines(source.annotations):
        where = f"{source.annotations}, line {number}"
        record = _parse(line, where)
        kind = record.get("kind", schema.GROUND if "grounding" in record else schema.DETECTION)
        image = {"id": number, "file_name": record["filename"], "width": record["width"], "height": record["height"]}
        row = start_row(image, source, kind)
        if row["status"] == schema.LABELLED:
            row |= (_grounding if "grounding" in record else _detection)(record, row, lost, where)
        yield row
    report_lost(source.annotations, lost)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number the lines from 1, and leave out those that are blank."""
    with open_text(path, "ODVG, a json object per line") as lines:
        try:
            yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text: {error}; expected ODVG, a json object per line") from error


def _parse(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no json: {error}; expected one object per line") from error
    if not isinstance(record, dict) or not {"detection", "grounding"} & record.keys():
        raise ValueError(f"{where} lacks detection and grounding; expected one of them, as mmdetection does")
    return _require(record, _LINE, where)


def _require(record: object, types: Mapping[str, type], where: str) -> Record:
    """Refuse what is no object with all these fields."""
    if not isinstance(record, dict):
        raise ValueError(f"{where} has {record!r} where ODVG has an object; expected one with {', '.join(types)}")
    for name, wanted in types.items():
        if not isinstance(record.get(name), wanted):
            raise ValueError(f"{where} has {name} {record.get(name)!r}; expected {wanted.__name__}, as in ODVG")
    return record


def _detection(record: Record, row: Row, lost: Counter[str], where: str) -> Row:
    instances = _require(record["detection"], _DETECTION, where)["instances"]
    kept = _place([_require(instance, _INSTANCE, where) for instance in instances], row, lost, where)
    return {
        "boxes": [box for box, _ in kept],
        "phrase_index": [-1] * len(kept),
        "category_id": [instance["label"] for _, instance in kept],
        "category": [instance["category"] for _, instance in kept],
        "score": _scores(kept),
        "iscrowd": [False] * len(kept),
    }


def _grounding(record: Record, row: Row, lost: Counter[str], where: str) -> Row:
    grounding = _require(record["grounding"], _GROUNDING, where)
    caption = grounding["caption"]
    regions = [_require(region, _REGION, where) for region in grounding["regions"]]
    regions = [region | {"spans": _spans(region["tokens_positive"], caption, where)} for region in regions]
    placed = _place(regions, row, lost, where)
    kept = [(box, region) for box, region in placed if region["spans"]]
    lost["boxes without a span"] += len(placed) - len(kept)
    found = {(begin, end) for _, region in kept for begin, end in region["spans"]}
    phrases = [tuple(span) for span in grounding.get("phrases") or sorted(found)]
    owners = [_owner(region["spans"], phrases) for _, region in kept]
    return {
        "text": caption,
        "phrases": [list(phrase) for phrase in phrases],
        "entity": grounding.get("entity"),
        **box_columns([(box, region["spans"]) for box, region in kept], owners, _scores(kept)),
    }


def _spans(given: list[Any], caption: str, where: str) -> list[list[int]]:
    """Take the spans of a region, which may be a single one."""
    single = bool(given) and not isinstance(given[0], list)
    return spans_inside([given] if single else given, len(caption), where)


def _owner(spans: list[list[int]], phrases: list[tuple[int, ...]]) -> int:
    """Find the phrase of a box: the first of its spans that is one."""
    return next((phrases.index(tuple(span)) for span in spans if tuple(span) in phrases), -1)


def _place(given: list[Record], row: Row, lost: Counter[str], where: str) -> list[Labelled]:
    """Give every box inside the image with what is said of it."""
    boxes = [(box, said) for said in given for box in _listed(said["bbox"], where)]
    placed = [(clamp_box((x1, y1, x2 - x1, y2 - y1), row["width"], row["height"]), s) for (x1, y1, x2, y2), s in boxes]
    kept = [(box, said) for box, said in placed if box is not None]
    lost["boxes without an area"] += len(placed) - len(kept)
    return kept


def _listed(bbox: list[Any], where: str) -> list[list[float]]:
    boxes = bbox if bbox and isinstance(bbox[0], list) else [bbox]
    for box in boxes:
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            raise ValueError(f"{where} has bbox {bbox!r}; expected [x1, y1, x2, y2] in pixels, or a list of them")
    return boxes


def _scores(kept: list[Labelled]) -> list[float]:
    return [float(said.get("score", 1.0)) for _, said in kept]
