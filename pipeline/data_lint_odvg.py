"""ODVG as raw rows, line by line, whatever they hold."""

from collections.abc import Iterator

from pipeline.data_lint_checks import CategoryTable, RawBox, RawRow, numbers, show
from pipeline.data_lint_json import load_json, opener, parse_json
from pipeline.data_lint_report import Findings
from pipeline.sources.coco import CocoSource, Record
from pipeline.sources.odvg import OdvgSource

_FIELDS = {"filename": str, "width": int, "height": int}


def odvg_rows(source: CocoSource, findings: Findings, categories: CategoryTable) -> Iterator[RawRow]:
    """Give the lines of an ODVG file."""
    if isinstance(source, OdvgSource):
        named = load_json(source.label_map, findings)
        for key, name in named.items() if isinstance(named, dict) else ():
            if key.isdecimal():
                categories.add(int(key), name)
            else:
                findings.add("entry_malformed", f"{source.label_map.name}: id is {show(key)}")
    try:
        with source.annotations.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield from _rows(f"line {number}", parse_json(line), source, findings, categories)
    except OSError as error:
        findings.add("file_unreadable", f"{source.annotations.name}: {error.strerror}")


def _rows(
    where: str, record: object, source: CocoSource, findings: Findings, categories: CategoryTable
) -> Iterator[RawRow]:
    """Give the row of a line, or none and a finding."""
    if not isinstance(record, dict):
        findings.add("entry_malformed", f"{where}: {show(record)}, no object")
        return
    if wrong := [name for name, kind in _FIELDS.items() if not isinstance(record.get(name), kind)]:
        findings.add("entry_malformed", f"{where}: {wrong[0]} is {show(record.get(wrong[0]))}")
        return
    grounding = "grounding" in record
    labels = record.get("grounding" if grounding else "detection")
    entries = labels.get("regions" if grounding else "instances") if isinstance(labels, dict) else None
    if not isinstance(labels, dict) or not isinstance(entries, list):
        findings.add("entry_malformed", f"{where}: no list of regions in grounding, or of instances in detection")
        return
    boxes: list[RawBox] = []
    for at, entry in enumerate(entries):
        if not isinstance(entry, dict):
            findings.add("entry_malformed", f"{where}, box {at}: {show(entry)}")
            continue
        key = entry.get("label")
        if not grounding and isinstance(key, int) and (key in categories or not isinstance(source, OdvgSource)):
            categories.add(key, entry.get("category"))
        boxes += _boxes(f"box {at}", entry)
    yield RawRow(
        where=where,
        name=record["filename"],
        open=opener({"id": where, "file_name": record["filename"]}, source),
        width=record["width"],
        height=record["height"],
        grounding=grounding,
        caption=labels.get("caption"),
        boxes=boxes,
    )


def _boxes(where: str, entry: Record) -> Iterator[RawBox]:
    """Give the boxes of a region or instance, which may have several; a single span may stand without its list."""
    given, spans = entry.get("bbox"), entry.get("tokens_positive")
    if isinstance(spans, list) and spans and not isinstance(spans[0], list):
        spans = [spans]
    for box in given if isinstance(given, list) and given and isinstance(given[0], list) else [given]:
        yield RawBox(where=where, corners=numbers(box, 4), category=entry.get("label"), spans=spans)
