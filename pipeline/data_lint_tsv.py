"""GLIP's TSV files as raw rows, line by line, whatever they hold."""

import base64
import binascii
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from pipeline import schema
from pipeline.data_lint_checks import CategoryTable, RawBox, RawRow, numbers, show
from pipeline.data_lint_json import parse_json
from pipeline.data_lint_report import Findings
from pipeline.sources.coco import MISSING_IMAGE, Record, Row, start_row
from pipeline.sources.tsv import TsvCaptionSource, TsvDetectionSource
from pipeline.sources.tsv_files import TsvFiles

_BACKGROUND = "__background__"
_KEY_BYTES = 4096
"""Of every line of pictures; a key is shorter."""

Line = tuple[int, str, object, Record]
"""Number of a line of labels from 1, its key, what the json says, and the size that ``hw`` states."""


def tsv_detection_rows(source: TsvDetectionSource, findings: Findings, categories: CategoryTable) -> Iterator[RawRow]:
    """Give the lines of labels with boxes of categories."""
    ids = _label_map(source.label_map, findings, categories)
    with _Pictures(source, findings) as pictures:
        for number, key, label, size in _lines(source, findings):
            where = f"line {number}"
            objects = label.get("objects") if isinstance(label, dict) else label
            if not isinstance(objects, list):
                findings.add("entry_malformed", f"{where}: no list of objects: {show(label)}")
                continue
            boxes = []
            for at, found in enumerate(objects):
                if not isinstance(found, dict):
                    findings.add("entry_malformed", f"{where}, object {at}: {show(found)}")
                    continue
                name = found.get("class")
                boxes.append(
                    RawBox(
                        where=f"object {at}",
                        corners=numbers(found.get("rect"), 4),
                        category=ids.get(name, name) if isinstance(name, str) else name,
                        crowd=bool(found.get("IsGroupOf")),
                    )
                )
            yield RawRow(
                where=where,
                name=key,
                open=pictures.opener(key),
                width=size.get("width"),
                height=size.get("height"),
                states_size=source.sizes is not None,
                boxes=boxes,
            )


def tsv_caption_rows(source: TsvCaptionSource, findings: Findings, categories: CategoryTable) -> Iterator[RawRow]:
    """Give the lines of labels with captions and boxes."""
    with _Pictures(source, findings) as pictures:
        for number, key, label, _ in _lines(source, findings):
            said = label if isinstance(label, dict) else {}
            boxes, scores, spans = (said.get(name) for name in ("bboxes", "scores", "tokens_positive"))
            if not _same_length(boxes, scores, spans):
                what = "bboxes, scores and tokens_positive are not lists of equal length"
                findings.add("entry_malformed", f"line {number}: {what}: {show(label)}")
                continue
            yield RawRow(
                where=f"line {number}",
                name=key,
                open=pictures.opener(key),
                width=said.get("img_w"),
                height=said.get("img_h"),
                grounding=True,
                caption=said.get("caption"),
                boxes=list(_entities(boxes, spans)),
            )


class _Pictures:
    """The pictures of a set by key; a file for one of them at a time, as readers take pictures from files."""

    def __init__(self, source: TsvFiles, findings: Findings) -> None:
        self._source, self._findings, self._opened = source, findings, ExitStack()

    def __enter__(self) -> "_Pictures":
        self._offsets: dict[str, int] = {}
        self._file = Path(self._opened.enter_context(TemporaryDirectory())) / "image"
        self._stream = _open(self._source.images, self._findings, self._opened)
        offset = 0
        for line in self._stream or ():
            key, tab, _ = line[:_KEY_BYTES].partition(b"\t")
            if not tab:
                what = f"{self._source.images.name}, byte {offset}: no key and tab"
                self._findings.add("entry_malformed", what)
            self._offsets.setdefault(key.decode(errors="replace").strip(), offset)
            offset += len(line)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def opener(self, key: str) -> Callable[[], Row]:
        """Begin the row of a picture when asked to."""
        return partial(self._open, key)

    def _open(self, key: str) -> Row:
        if self._stream is None or key not in self._offsets:
            return {"reason": MISSING_IMAGE}
        self._stream.seek(self._offsets[key])
        try:
            encoded = base64.b64decode(self._stream.readline().rpartition(b"\t")[2].strip(), validate=True)
        except binascii.Error:
            encoded = b""
        self._file.write_bytes(encoded)
        image: Record = {"id": key, "file_name": self._file.name}
        return start_row(image, self._source, schema.DETECTION, self._file.parent)


def _open(path: Path, findings: Findings, opened: ExitStack) -> BinaryIO | None:
    try:
        return opened.enter_context(path.open("rb"))
    except OSError as error:
        findings.add("file_unreadable", f"{path.name}: {error.strerror}")
        return None


def _lines(source: TsvFiles, findings: Findings) -> Iterator[Line]:
    """Give the lines of labels that count."""
    with ExitStack() as opened:
        wanted = _line_list(source.line_list, findings, opened) if source.line_list else None
        sizes = _open(source.sizes, findings, opened) if source.sizes else None
        for number, line in enumerate(_open(source.labels, findings, opened) or (), start=1):
            beside = sizes.readline() if sizes else b""
            if not line.strip() or (wanted is not None and number - 1 not in wanted):
                continue
            key, tab, text = line.decode(errors="replace").partition("\t")
            label = parse_json(text.partition("\t")[0])
            if not tab or label is None:
                findings.add("entry_malformed", f"line {number}: no key, tab and json: {show(line)}")
                continue
            yield number, key.strip(), label, _size(beside, key.strip(), number, findings) if sizes else {}


def _line_list(path: Path, findings: Findings, opened: ExitStack) -> set[int]:
    found = set()
    for number, line in enumerate(_open(path, findings, opened) or (), start=1):
        if line.strip().isdigit():
            found.add(int(line))
        elif line.strip():
            findings.add("entry_malformed", f"{path.name}, line {number}: {show(line)}")
    return found


def _size(line: bytes, key: str, number: int, findings: Findings) -> Record:
    """Take the size of an image from its line of ``hw``: a json, or height and width."""
    own, _, text = line.decode(errors="replace").strip().partition("\t")
    words = dict(zip(("height", "width"), text.split(), strict=False))
    given = parse_json(text) if text.startswith(("[", "{")) else words
    first = given[0] if isinstance(given, list) and given else given
    sides = [first.get(side) for side in ("height", "width")] if isinstance(first, dict) else []
    whole = [int(side) for side in sides if isinstance(side, int) or (isinstance(side, str) and side.isdecimal())]
    if own.strip() != key or len(whole) != 2:
        findings.add("entry_malformed", f"sizes, line {number}: {show(line)} for the key {key}")
        return {}
    return {"height": whole[0], "width": whole[1]}


def _label_map(path: Path, findings: Findings, categories: CategoryTable) -> dict[str, int]:
    """Read the label map, a name per line or a json, and list its categories."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        findings.add("file_unreadable", f"{path.name}: {error.strerror}")
        return {}
    if path.suffix == ".tsv":
        numbered = [(line.strip(), at) for at, line in enumerate(text.split("\n"), start=1) if line.strip()]
    else:
        content = parse_json(text)
        given = content.get("label_to_idx", content) if isinstance(content, dict) else None
        if not isinstance(given, dict):
            findings.add("file_unreadable", f"{path.name}: no json of names and ids")
            return {}
        numbered = [(name, at) for name, at in given.items() if name != _BACKGROUND]
    ids = {}
    for name, at in numbered:
        if isinstance(at, int):
            categories.add(at, name)
            ids[name] = at
        else:
            findings.add("entry_malformed", f"{path.name}: id of {name!r} is {show(at)}")
    return ids


def _same_length(*values: object) -> bool:
    """Tell whether all are lists, and of one length."""
    lists = [value for value in values if isinstance(value, list)]
    return len(lists) == len(values) and len(set(map(len, lists))) == 1


def _entities(boxes: Any, spans: Any) -> Iterator[RawBox]:
    """Give the boxes of a caption: an entity has one box, or a list of them."""
    for at, (given, own) in enumerate(zip(boxes, spans, strict=True)):
        several = given if isinstance(given, list) and (not given or isinstance(given[0], list)) else [given]
        for box in several:
            yield RawBox(where=f"box {at}", corners=numbers(box, 4), spans=own)
