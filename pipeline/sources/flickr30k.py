"""Flickr30k Entities as published: five sentences per image with marked phrases, and boxes per coreference chain.

A chain is everything the sentences of one image say about one thing. ``Sentences/<id>.txt`` mark each mention as
``[/EN#<chain>/<type> a few words]``; ``Annotations/<id>.xml`` give the boxes of the chains in the manner of VOC.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from pipeline import schema
from pipeline.sources.coco import Record, Row, clamp_box, report_lost, start_row
from pipeline.sources.mdetr import EMPTY_CAPTION, box_columns

BROKEN_MARKUP = "broken_markup"
"""Reason of a sentence with a mark that cannot be understood."""

_PHRASE = re.compile(r"\[/EN#(?P<chain>\d+)[^\s\]]* (?P<words>[^\]]+)\]")
_MARK = "/EN#"
_NO_CHAIN = "0"
"""Number of every mention that was not annotated, of a thing that cannot be seen ("there", type ``notvisual``)."""

Mention = tuple[list[int], str]
"""Span of a marked phrase in the sentence without marks, and its chain."""
Boxed = tuple[set[str], list[float]]
"""Chains that a box belongs to, and the box as x, y, width, height."""


@dataclass(frozen=True, kw_only=True)
class Flickr30kSource:
    """A split of Flickr30k Entities."""

    annotations: Path
    """Folder with ``Sentences`` and ``Annotations``."""
    images: Path
    """Folder with ``<id>.jpg``."""
    ids: Path
    """File with an image id per line: the authors' ``train.txt``, ``val.txt`` or ``test.txt``."""
    source: str
    """Name of the data set; first part of every ``sample_id``."""
    split: str
    """Name of the split; second part of every ``sample_id``."""


def read_flickr30k(source: Flickr30kSource) -> Iterator[Row]:
    """Read rows of kind `schema.GROUND`, one per sentence, in the order of the split's list.

    ``phrases`` are all marked phrases, with or without a box, and mentions of a chain share their ``entity``. A box
    belongs to every mention of its chains in the sentence (``phrase_index``: the first); boxes of chains that the
    sentence does not mention are another sentence's. Phrases that cannot be seen (``notvisual``) are kept, each an
    entity of its own. They have no box, as scenery and things out of view have none; the annotators say so, which
    is knowledge and not a gap. The files count pixels from 1 and the last one is inside the box; the rows do as
    `schema` says. Boxes without an area are left out and counted in the log.

    Raises:
        ValueError: A file is absent or not of the format.
    """
    lost: Counter[str] = Counter()
    for name in _read_lines(source.ids):
        size, boxed = _read_boxes(source.annotations / "Annotations" / f"{name}.xml")
        head = start_row({"id": name, "file_name": f"{name}.jpg", **size}, source, schema.GROUND)
        for number, line in enumerate(_read_lines(source.annotations / "Sentences" / f"{name}.txt")):
            text, mentions = parse_sentence(line)
            row = head | {"sample_id": f"{head['sample_id']}_{number}", "text": text}
            if not text or _MARK in text:
                row |= {"status": schema.REJECTED, "reason": BROKEN_MARKUP if text else EMPTY_CAPTION}
            if row["status"] == schema.LABELLED:
                row |= _columns(mentions, boxed, row, lost)
            yield row
    report_lost(source.annotations, lost)


def _read_lines(path: Path) -> list[str]:
    """Read the lines that are not blank, with single blanks between words."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}; expected Flickr30k Entities as published") from error
    return [" ".join(line.split()) for line in text.split("\n") if line.strip()]


def parse_sentence(line: str) -> tuple[str, list[Mention]]:
    """Take the marks out of a sentence."""
    text, at = "", 0
    mentions: list[Mention] = []
    for match in _PHRASE.finditer(line):
        words = match["words"].strip()
        text += line[at : match.start()]
        mentions.append(([len(text), len(text) + len(words)], match["chain"]))
        text += words
        at = match.end()
    return text + line[at:], mentions


def _read_boxes(path: Path) -> tuple[Record, list[Boxed]]:
    """Read the size of an image, and its boxes in the order of the file."""
    try:
        root = _parse_xml(path.read_text(encoding="utf-8"))
        size = {side: int(root.findtext(f"size/{side}", "")) for side in ("width", "height")}
        boxed = [_boxed(found) for found in root.iterfind("object") if found.find("bndbox/xmin") is not None]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"{path} cannot be read: {error}; expected the XML of Flickr30k Entities") from error
    return size, boxed


def _parse_xml(text: str) -> ElementTree.Element:
    """Parse XML that brings no definitions of its own: with them a small file can unfold to gigabytes."""
    if "<!DOCTYPE" in text:
        raise ValueError("it has a DTD, which is refused")
    return ElementTree.fromstring(text)


def _boxed(found: ElementTree.Element) -> Boxed:
    x1, y1, x2, y2 = (float(found.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax"))
    chains = {str(name.text).strip() for name in found.iterfind("name")}
    return chains - {_NO_CHAIN}, [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]


def _columns(mentions: list[Mention], boxed: list[Boxed], row: Row, lost: Counter[str]) -> Row:
    """Give the columns of one sentence."""
    phrases = [span for span, _ in mentions]
    found = [([span for span, chain in mentions if chain in chains], xywh) for chains, xywh in boxed]
    own = [(clamp_box(xywh, row["width"], row["height"]), spans) for spans, xywh in found if spans]
    kept = [(box, spans) for box, spans in own if box is not None]
    lost["boxes without an area"] += len(own) - len(kept)
    columns = box_columns(kept, [phrases.index(spans[0]) for _, spans in kept])
    return {"phrases": phrases, "entity": _number([chain for _, chain in mentions]), **columns}


def _number(chains: list[str]) -> list[int]:
    """Number the chains of a sentence from 0 in the order of their first mention."""
    numbers: dict[str | int, int] = {}
    keys = [position if chain == _NO_CHAIN else chain for position, chain in enumerate(chains)]
    return [numbers.setdefault(key, len(numbers)) for key in keys]
