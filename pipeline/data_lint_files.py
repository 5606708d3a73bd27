"""PASCAL VOC, Flickr30k Entities and Open Images as raw rows, file by file and line by line, whatever they hold."""

import csv
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NoReturn
from xml.etree import ElementTree

from pipeline.data_lint_checks import CategoryTable, RawBox, RawRow, show
from pipeline.data_lint_json import opener
from pipeline.data_lint_report import Findings
from pipeline.sources.coco import first_file
from pipeline.sources.flickr30k import Flickr30kSource, parse_sentence
from pipeline.sources.openimages import OpenImagesSource
from pipeline.sources.voc import VocSource

_ENDINGS = (".jpg", ".JPEG", ".jpeg", ".png", ".JPG", ".PNG", ".bmp", ".webp")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SIDES = ("XMin", "YMin", "XMax", "YMax")
_MARK, _NO_CHAIN = "[/EN#", "0"


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses document types: with their entities a small file can unfold to gigabytes."""

    def doctype(self, *_: object) -> NoReturn:
        raise ValueError("it declares a document type")


def voc_rows(source: VocSource, findings: Findings, categories: CategoryTable) -> Iterator[RawRow]:
    """Give the XML files of a folder in the form of PASCAL VOC."""
    spoken = dict(_pairs(source.names, findings)) if source.names else None
    if source.subset:
        names = [f"{line.split()[0]}.xml" for line in read_lines(source.subset, findings)]
    else:
        names = sorted(path.relative_to(source.annotations).as_posix() for path in source.annotations.rglob("*.xml"))
    if not names:
        findings.add("file_unreadable", f"{source.annotations}: no .xml file")
    for where in names:
        root = parse_xml(source.annotations / where, where, findings)
        if root is None:
            continue
        for at, found in enumerate(root.iterfind("object")):
            if not found.findtext("name", "").strip():
                findings.add("xml_malformed", f"{where}: object {at} has no name")
        boxes = [
            _voc_box(f"object {at}", found, source, spoken, categories)
            for at, found in enumerate(root.iterfind("object"))
            if source.keep_difficult or found.findtext("difficult", "").strip() != "1"
        ]
        name = first_file(source.images, _voc_names(where, root.findtext("filename", "")))
        yield RawRow(
            where=where,
            name=name,
            open=opener({"id": where, "file_name": name}, source),
            width=_number(root.findtext("size/width")),
            height=_number(root.findtext("size/height")),
            boxes=boxes,
        )


def openimages_rows(source: OpenImagesSource, findings: Findings, categories: CategoryTable) -> Iterator[RawRow]:
    """Give the images of a csv of boxes of Open Images."""
    for number, line in enumerate(_csv_lines(source.classes, findings), start=1):
        if len(line) == 2 and line != ["LabelName", "DisplayName"]:
            categories.add(line[0], line[1])
        elif len(line) != 2:
            findings.add("entry_malformed", f"{source.classes.name}, line {number}: {show(line)}")
    lines = _csv_lines(source.boxes, findings)
    header = next(lines, [])
    if missing := sorted({"ImageID", "LabelName", "IsGroupOf", *_SIDES} - set(header)):
        findings.add("file_unreadable", f"{source.boxes.name}: no column {', '.join(missing)}")
        return
    records = ((at, dict(zip(header, line, strict=False))) for at, line in enumerate(lines, start=2))
    last = ""
    for image, found in groupby(records, lambda numbered: numbered[1].get("ImageID", "")):
        boxes = [_openimages_box(f"line {at}", line) for at, line in found]
        if not image or image < last:
            what = f"image {image} comes after {last}, not in the order of ImageID" if image else "no ImageID"
            findings.add("entry_malformed", f"{source.boxes.name}, {boxes[0].where}: {what}")
        last = image
        name = f"{image}.jpg"
        yield RawRow(
            where=f"image {image}",
            name=name,
            open=opener({"id": image, "file_name": name}, source),
            states_size=False,
            boxes=boxes,
            relative=True,
        )


def flickr30k_rows(source: Flickr30kSource, findings: Findings, categories: CategoryTable) -> Iterator[RawRow]:
    """Give the sentences of a split of Flickr30k Entities."""
    for name in read_lines(source.ids, findings):
        root = parse_xml(source.annotations / "Annotations" / f"{name}.xml", f"image {name}", findings)
        found = [] if root is None else [one for one in root.iterfind("object") if one.find("bndbox") is not None]
        chains = [{str(chain.text).strip() for chain in one.iterfind("name")} - {_NO_CHAIN} for one in found]
        corners = [_corners(one, 1) for one in found]
        hidden = {one.findtext("name", "").strip() for one in ([] if root is None else root.iterfind("object"))}
        for number, line in enumerate(read_lines(source.annotations / "Sentences" / f"{name}.txt", findings)):
            where = f"image {name}, sentence {number}"
            caption, mentions = parse_sentence(line)
            if _MARK in caption:
                findings.add("markup_broken", f"{where}: {caption}")
                continue
            boxes = []
            for at, own in enumerate(chains):
                spans = [span for span, chain in mentions if chain in own]
                if spans:
                    boxes.append(RawBox(where=f"object {at}", corners=corners[at], spans=spans))
            for (begin, end), chain in mentions:
                if chain != _NO_CHAIN and chain not in hidden.union(*chains):
                    findings.add("phrase_without_box", f"{where}: {caption[begin:end]!r}, chain {chain}")
            yield RawRow(
                where=where,
                name=f"{name}.jpg",
                open=opener({"id": name, "file_name": f"{name}.jpg"}, source),
                width=None if root is None else _number(root.findtext("size/width")),
                height=None if root is None else _number(root.findtext("size/height")),
                grounding=True,
                caption=caption,
                boxes=boxes,
            )


def read_lines(path: Path, findings: Findings) -> list[str]:
    """Read the lines of a text file that are not blank, with single blanks between words."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        findings.add("file_unreadable", f"{path.name}: {error}")
        return []
    return [" ".join(line.split()) for line in text.split("\n") if line.strip()]


def parse_xml(path: Path, where: str, findings: Findings) -> ElementTree.Element | None:
    """Parse an XML annotation; None, and a finding, if it is none."""
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    except OSError as error:
        findings.add("file_unreadable", f"{path.parent.name}/{path.name}: {error.strerror}")
        return None
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        findings.add("xml_malformed", f"{where}: {error}")
        return None
    if root.tag != "annotation":
        findings.add("xml_malformed", f"{where}: its root is {root.tag!r}, not 'annotation'")
        return None
    return root


def _voc_names(where: str, stated: str) -> list[str]:
    """List the names that the image of an XML file may have."""
    own = PurePosixPath(where.removesuffix(".xml"))
    last = PureWindowsPath(stated).name
    names = [f"{stem}{ending}" for stem in (own.as_posix(), own.name) for ending in _ENDINGS]
    return names + ([(own.parent / last).as_posix(), last] if last else [])


def _voc_box(
    where: str,
    found: ElementTree.Element,
    source: VocSource,
    spoken: dict[str, str] | None,
    categories: CategoryTable,
) -> RawBox:
    given = found.findtext("name", "").strip()
    name = given if spoken is None else spoken.get(given, "")
    if name:
        categories.add(name, name)
    return RawBox(where=f"{where} {given}", corners=_corners(found, int(source.one_based)), category=name or given)


def _corners(found: ElementTree.Element, first_pixel: int) -> list[float] | None:
    """Take the box of an object; where pixels count from 1, the last is inside it."""
    try:
        x1, y1, x2, y2 = (float(found.findtext(f"bndbox/{corner}", "")) for corner in _CORNERS)
    except ValueError:
        return None
    return [x1 - first_pixel, y1 - first_pixel, x2, y2]


def _number(text: str | None) -> object:
    """Take a number if the text is one, cut to a whole one as the readers do."""
    try:
        return int(float(text or 0))
    except (ValueError, OverflowError):
        return text


def _pairs(path: Path, findings: Findings) -> Iterator[tuple[str, str]]:
    """Read lines of an id, and names separated by commas of which the first counts."""
    for line in read_lines(path, findings):
        key, _, names = line.partition(" ")
        if names:
            yield key, names.split(",")[0].strip()
        else:
            findings.add("entry_malformed", f"{path.name}: {line}")


def _csv_lines(path: Path, findings: Findings) -> Iterator[list[str]]:
    """Give the lines of a csv as far as it can be read."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            yield from (line for line in csv.reader(stream) if line)
    except (OSError, csv.Error) as error:
        findings.add("file_unreadable", f"{path.name}: {error}")


def _openimages_box(where: str, line: dict[str, str]) -> RawBox:
    try:
        corners = [float(line[side]) for side in _SIDES]
    except (KeyError, ValueError):
        return RawBox(where=where, corners=None, category=line.get("LabelName"))
    return RawBox(where=where, corners=corners, category=line.get("LabelName"), crowd=line.get("IsGroupOf") == "1")
