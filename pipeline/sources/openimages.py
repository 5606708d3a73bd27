"""Open Images V4 to V7: a csv of boxes relative to the image's size, names in another, and what people verified."""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from pipeline import schema
from pipeline.sources.coco import Record, Row, add_boxes, open_text, report_lost, start_row

_HEADER = ["LabelName", "DisplayName"]
"""V7 has it, the versions before begin with the first class."""
_SIDES = ("XMin", "XMax", "YMin", "YMax")
_BOX_COLUMNS = ("ImageID", "LabelName", *_SIDES, "IsGroupOf")
_VERIFIED_COLUMNS = ("ImageID", "LabelName", "Confidence")

Line = dict[str, str]
"""One line of a csv by column."""


@dataclass(frozen=True, kw_only=True)
class OpenImagesSource:
    """One split of Open Images as it is published."""

    boxes: Path
    """Csv of boxes, ordered by ``ImageID`` (``oidv6-train-annotations-bbox.csv``)."""
    classes: Path
    """Csv of label and name (``class-descriptions-boxable.csv``); a class's position is its id, from 0."""
    images: Path
    """Folder of ``<ImageID>.jpg``."""
    source: str
    """Name of the data set; first part of every ``sample_id``."""
    split: str
    """Name of the split; second part of every ``sample_id``."""
    verified: Path | None = None
    """Csv of labels that people verified, ordered by ``ImageID`` (``…-annotations-human-imagelabels-boxable.csv``).

    Without it every class that has no box in an image counts as absent from it, which is often wrong.
    """


def read_openimages(source: OpenImagesSource) -> Iterator[Row]:
    """Read rows of kind `schema.DETECTION`, one per image that has boxes, in the order of the file.

    The boxes of groups are crowds. Of the verified labels, those seen to be absent become ``neg_category_ids``, those
    present without a box ``not_exhaustive_ids``; labels that no class of the list has are passed over. Nothing but the
    lines of one image is held in memory.

    Raises:
        ValueError: a file is not of Open Images, or not ordered.
    """
    classes = _classes(source.classes)
    names = dict(enumerate(name for _, name in classes))
    numbers = {label: number for number, (label, _) in enumerate(classes)}
    verified = _Verified(source.verified, numbers) if source.verified else None
    lost: Counter[str] = Counter()
    for image_id, lines in _images(source.boxes, _BOX_COLUMNS):
        row = start_row({"id": image_id, "file_name": f"{image_id}.jpg"}, source, schema.DETECTION)
        if row["status"] == schema.LABELLED:
            add_boxes(row, [_annotation(line, row, numbers, source.boxes) for line in lines], names, lost)
            if verified is not None:
                row |= verified.columns(image_id, boxed=set(row["category_id"]))
        yield row
    report_lost(source.boxes, lost)


def openimages_categories(source: OpenImagesSource) -> dict[int, str]:
    """Read the names of the classes by ascending id."""
    return dict(enumerate(name for _, name in _classes(source.classes)))


class _Verified:
    """What people said of whole images, read along with the boxes: both files have the same order."""

    def __init__(self, path: Path, numbers: dict[str, int]) -> None:
        self._path, self._numbers = path, numbers
        self._images = _images(path, _VERIFIED_COLUMNS)
        self._next = next(self._images, None)

    def columns(self, image_id: str, boxed: set[int]) -> Row:
        """Give the federated columns of an image; images must be asked for in ascending order."""
        while self._next is not None and self._next[0] < image_id:
            self._next = next(self._images, None)
        lines = self._next[1] if self._next is not None and self._next[0] == image_id else []
        said: dict[bool, set[int]] = {True: set(), False: set()}
        for line in lines:
            if (number := self._numbers.get(line["LabelName"])) is not None:
                said[self._is_present(line)].add(number)
        return {
            "neg_category_ids": sorted(said[False] - said[True] - boxed),
            "not_exhaustive_ids": sorted(said[True] - boxed),
        }

    def _is_present(self, line: Line) -> bool:
        try:
            return {0.0: False, 1.0: True}[float(line["Confidence"])]
        except (KeyError, TypeError, ValueError) as error:
            what = f"image {line['ImageID']} has {line['LabelName']} with Confidence {line['Confidence']!r}"
            raise ValueError(
                f"{self._path}: {what}; expected 0 or 1: give the labels verified by people, not those of machines"
            ) from error


def _classes(path: Path) -> list[tuple[str, str]]:
    expected = "a csv of LabelName and DisplayName, as class-descriptions-boxable.csv"
    with open_text(path, expected) as stream:
        lines = [line for line in csv.reader(stream) if line and line != _HEADER]
    if bad := next((line for line in lines if len(line) != len(_HEADER)), None):
        raise ValueError(f"{path} has the line {bad}; expected {expected}")
    return [(label, name) for label, name in lines]


def _images(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, list[Line]]]:
    """Give the lines of one image after the other."""
    last = ""
    with open_text(path, f"a csv with the columns {', '.join(columns)}") as stream:
        lines = csv.DictReader(stream)
        if missing := [name for name in columns if name not in (lines.fieldnames or ())]:
            raise ValueError(f"{path} has no column {missing[0]}; expected a csv of Open Images, with its header")
        for image_id, group in groupby(lines, itemgetter("ImageID")):
            if image_id < last:
                what = f"line {lines.line_num}: image {image_id} comes after {last}; expected the order of ImageID"
                raise ValueError(f"{path}, {what}: sort all lines but the header with LC_ALL=C sort")
            last = image_id
            yield image_id, list(group)


def _annotation(line: Line, row: Row, numbers: dict[str, int], path: Path) -> Record:
    """Give a box as COCO would."""
    try:
        x1, x2, y1, y2 = (float(line[side]) for side in _SIDES)
        category = numbers[line["LabelName"]]
    except (KeyError, TypeError, ValueError) as error:
        given = [line[name] for name in ("LabelName", *_SIDES)]
        what = f"image {line['ImageID']} has a box of {given}"
        raise ValueError(f"{path}: {what}; expected a label of the class list and {', '.join(_SIDES)}") from error
    width, height = row["width"], row["height"]
    bbox = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
    return {"bbox": bbox, "category_id": category, "iscrowd": line["IsGroupOf"] == "1"}
