"""What is checked in every format alike: an image and its boxes, and the categories of all of them.

Values come as the file has them, of whatever type: nothing here may raise because of them.
"""

import hashlib
import math
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from glipv2.text.prompts import clean_name
from glipv2.text.tokenizer import Tokenizer
from pipeline.data_lint_report import Findings
from pipeline.sources.coco import MISSING_IMAGE, Row

_SLIGHT_PX, _TINY_PX = 1.0, 1e-3
"""Boxes end between pixels, so tools disagree by one; less than a thousandth is the noise of float32."""
_NOMINAL_PX = 1000.0
"""Side that shares of an image are scaled by where nobody knows its size."""

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 60

Size = tuple[float, float]


@dataclass(kw_only=True, slots=True)
class RawBox:
    """A box as a file has it."""

    where: str
    """Names the entry for a person: ``annotation 7``."""
    corners: list[float] | None
    """``xyxy`` in pixels, or in shares of the image; None where there are no such numbers."""
    category: object = None
    """Key in the `CategoryTable`; for detection."""
    spans: object = None
    """``[begin, end)`` pairs of characters; for grounding."""
    crowd: bool = False
    """Whether it stands for many."""


@dataclass(kw_only=True, slots=True)
class RawRow:
    """An image, or an image and a caption, as a file has it."""

    where: str
    """Names the entry for a person: ``image 5``."""
    name: str
    """The image as the file names it."""
    open: Callable[[], Row]
    """Begins the row as the import does, with image and its size or a reason, whatever size is stated."""
    width: object = None
    """As stated."""
    height: object = None
    """As stated."""
    states_size: bool = True
    """Whether the format, or this file of it, states sizes at all."""
    grounding: bool = False
    """Whether there is a caption and its spans, instead of categories."""
    caption: object = None
    """Text, for grounding."""
    boxes: list[RawBox] = field(default_factory=list)
    """In the order of the file."""
    relative: bool = False
    """Whether corners are shares of the image."""
    negative: object = None
    """Keys of categories said to be absent."""
    not_exhaustive: object = None
    """Keys of categories said to be not fully boxed."""


class CategoryTable:
    """The categories of a data set, and how many boxes each has."""

    def __init__(self, findings: Findings) -> None:
        """Start without any."""
        self._findings = findings
        self._names: dict[object, str] = {}
        self._parents: set[str] = set()
        self._uses: Counter[object] = Counter()

    def __len__(self) -> int:
        """Count them."""
        return len(self._names)

    def __contains__(self, key: object) -> bool:
        """Tell whether a category is listed; what cannot be a key is not."""
        return isinstance(key, int | str) and key in self._names

    def add(self, key: int | str, name: object, parent: object = None) -> None:
        """List a category; a name that is no text counts as none."""
        text = name if isinstance(name, str) else ""
        if self._names.get(key, text) != text:
            self._findings.add("category_id_twice", f"{key!r}: {self._names[key]!r} and {text!r}")
        self._names[key] = text
        if isinstance(parent, str) and parent != name:
            self._parents.add(parent)

    def use(self, box: RawBox, where: str) -> None:
        """Count a box for its category."""
        if box.category in self and self._names[box.category]:
            self._uses[box.category] += 1
        else:
            self._findings.add("category_unknown", f"{where}, {box.where}: category {show(box.category)}")

    def check(self) -> None:
        """Look at the names and ids as a whole; call it once, after all boxes were counted."""
        first: dict[str, object] = {}
        for key, name in self._names.items():
            said = clean_name(name).lower()
            if not said:
                self._findings.add("category_name_blank", f"category {key!r}: {name!r}")
            elif said in first:
                self._findings.add("category_name_twice", f"{name!r}: categories {first[said]!r} and {key!r}")
            first.setdefault(said, key)
            if not self._uses[key]:
                kind = "category_dummy_parent" if name in self._parents else "category_unused"
                self._findings.add(kind, f"category {key!r}: {name}")
        self._check_ids(sorted(key for key in self._names if isinstance(key, int)))

    def _check_ids(self, ids: Sequence[int]) -> None:
        if ids and ids[0] == 0:
            self._findings.add("category_ids_from_zero", f"category 0: {self._names[0]}")
        if ids and ids[-1] - ids[0] >= len(ids):
            gaps = [f"{a} then {b}" for a, b in pairwise(ids) if b - a > 1]
            what = ", ".join(gaps[:5]) + (", …" if len(gaps) > 5 else "")
            self._findings.add("category_ids_with_gaps", f"{len(ids)} ids from {ids[0]} to {ids[-1]}: {what}")


class RowChecker:
    """Checks rows one after the other, and remembers what was there before."""

    def __init__(
        self,
        findings: Findings,
        categories: CategoryTable,
        *,
        tokenizer: Tokenizer | None = None,
        open_images: bool = True,
    ) -> None:
        """Start without any row.

        Args:
            findings: Where to tell.
            categories: What boxes' categories are looked up in.
            tokenizer: Decides which captions are too long; without one none is.
            open_images: Whether to look for the images and decode them.
        """
        self.counts: Counter[str] = Counter()
        """Rows with categories, rows with captions, and boxes."""
        self._findings, self._categories, self._tokenizer = findings, categories, tokenizer
        self._open_images = open_images
        self._files: dict[str, str] = {}
        self._digests: dict[bytes, str] = {}

    def check(self, row: RawRow) -> None:
        """Look at one row."""
        size = self._check_image(row)
        self.counts["captions" if row.grounding else "images"] += 1
        self.counts["boxes"] += len(row.boxes)
        if not row.boxes:
            self._findings.add("image_without_boxes", f"{row.where}: {row.name}")
        for box in row.boxes:
            self._check_box(row, box, size)
        if row.grounding:
            self._check_caption(row)
            for box in row.boxes:
                self._check_spans(row, box)
        else:
            self._check_categories(row)

    def _check_image(self, row: RawRow) -> Size | None:
        """Look at the image and what is stated of it; give the size its boxes are made for."""
        opened = row.open() if self._open_images else {}
        real = (opened["width"], opened["height"]) if opened.get("width") else None
        if (reason := opened.get("reason")) and real is None:
            kind = "image_missing" if reason == MISSING_IMAGE else "image_unreadable"
            self._findings.add(kind, f"{row.where}: {row.name}")
        self._check_repeated_image(row, opened)
        if not row.states_size:
            return real
        if not row.width or not row.height:
            self._findings.add("image_size_not_stated", f"{row.where}: {show(row.width)} x {show(row.height)}")
        elif real and (row.width, row.height) != real:
            what = f"stated {show(row.width)} x {show(row.height)}, is {real[0]} x {real[1]}"
            self._findings.add("image_size_differs", f"{row.where}: {row.name}, {what}")
        stated = numbers([row.width, row.height], 2)
        return (stated[0], stated[1]) if stated and min(stated) > 0 else real

    def _check_repeated_image(self, row: RawRow, opened: Row) -> None:
        if row.name in self._files:
            if not row.grounding:  # an image has a row for each of its captions
                self._findings.add("image_file_twice", f"{row.name}: {self._files[row.name]} and {row.where}")
            return
        self._files[row.name] = row.where
        if opened.get("image"):
            digest = hashlib.sha256(opened["image"]["bytes"]).digest()[:16]
            if (other := self._digests.setdefault(digest, row.name)) != row.name:
                self._findings.add("image_bytes_twice", f"{other} and {row.name}")

    def _check_caption(self, row: RawRow) -> None:
        if not isinstance(row.caption, str):
            self._findings.add("entry_malformed", f"{row.where}: caption is {show(row.caption)}, not a text")
        elif not row.caption.strip():
            self._findings.add("caption_blank", f"{row.where}: {row.caption!r}")
        elif self._tokenizer is not None and self._tokenizer([_encodable(row.caption)])[0].cut:
            what = f"over {self._tokenizer.max_tokens} tokens, {len(row.caption)} characters"
            self._findings.add("caption_too_long", f"{row.where}: {what}: {row.caption[:40]!r}")

    def _check_categories(self, row: RawRow) -> None:
        boxed: set[object] = set()
        seen: set[tuple[object, ...]] = set()
        for box in row.boxes:
            self._categories.use(box, row.where)
            if box.crowd:
                self._findings.add("box_of_crowd", f"{row.where}, {box.where}")
            if box.corners is None or box.category not in self._categories:
                continue
            boxed.add(box.category)
            if (key := (box.category, *box.corners)) in seen:
                self._findings.add("box_twice", f"{row.where}, {box.where}: category {show(box.category)}")
            seen.add(key)
        for said, keys in (("absent", row.negative), ("not exhaustive", row.not_exhaustive)):
            for key in keys if isinstance(keys, list) else []:
                if key not in self._categories:
                    self._findings.add("negative_unknown", f"{row.where}: category {show(key)}, said to be {said}")
                elif said == "absent" and key in boxed:
                    self._findings.add("negative_boxed", f"{row.where}: category {key!r}")

    def _check_box(self, row: RawRow, box: RawBox, size: Size | None) -> None:
        where = f"{row.where}, {box.where}"
        if box.corners is None:
            self._findings.add("box_malformed", where)
            return
        width, height = size or ((_NOMINAL_PX, _NOMINAL_PX) if row.relative else (math.inf, math.inf))
        scale = (width, height) if row.relative else (1.0, 1.0)
        x1, y1, x2, y2 = (value * scale[i % 2] for i, value in enumerate(box.corners))
        over = max(-x1, -y1, x2 - width, y2 - height)
        shown = f"{where}: {x1:g} {y1:g} to {x2:g} {y2:g}"
        if not all(map(math.isfinite, box.corners)):
            self._findings.add("box_not_finite", shown)
        elif x2 <= x1 or y2 <= y1:
            self._findings.add("box_without_area", shown)
        elif min(x2, y2) <= 0 or x1 >= width or y1 >= height:
            self._findings.add("box_outside", f"{shown} in {width:g} x {height:g}")
        elif over > _TINY_PX:
            kind = "box_over_edge" if over > _SLIGHT_PX else "box_over_edge_slightly"
            self._findings.add(kind, f"{shown} in {width:g} x {height:g}, over by {over:.3g}")

    def _check_spans(self, row: RawRow, box: RawBox) -> None:
        caption = row.caption if isinstance(row.caption, str) else ""
        where = f"{row.where}, {box.where}"
        pairs = span_pairs(box.spans)
        if pairs is None:
            self._findings.add("span_malformed", f"{where}: {show(box.spans)}")
            return
        problems = [_span_problem(begin, end, caption) for begin, end in pairs]
        for (begin, end), problem in zip(pairs, problems, strict=True):
            if problem:
                words = caption[max(begin, 0) : max(end, 0)]
                what = f"[{begin}, {end}) of {len(caption)} characters: {words[:40]!r} in {caption[:60]!r}"
                self._findings.add(problem, f"{where}: {what}")
        if {"span_empty", "span_outside"}.issuperset(problems):
            self._findings.add("box_without_span", where)


def numbers(value: object, count: int) -> list[float] | None:
    """Take a list of ``count`` numbers; None for anything else."""
    if not isinstance(value, list | tuple) or len(value) != count:
        return None
    if not all(isinstance(item, int | float) for item in value):
        return None
    try:
        return [float(item) for item in value]
    except OverflowError:  # an integer of more than 308 digits
        return None


def show(value: object) -> str:
    """Show any value for a person in few characters, however long or deep it is."""
    return _SHOWN.repr(value)


def corners_of(xywh: object) -> list[float] | None:
    """Turn a COCO box into corners; None if it is none."""
    box = numbers(xywh, 4)
    return box and [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def span_pairs(spans: object) -> list[tuple[int, int]] | None:
    """Take a list of pairs of whole numbers; None for anything else."""
    if not isinstance(spans, list | tuple):
        return None
    pairs = [(span[0], span[1]) for span in spans if isinstance(span, list | tuple) and len(span) == 2]
    whole = all(isinstance(at, int) for pair in pairs for at in pair)
    return pairs if whole and len(pairs) == len(spans) else None


def _span_problem(begin: int, end: int, caption: str) -> str:
    if begin >= end:
        return "span_empty"
    if begin < 0 or end > len(caption):
        return "span_outside"
    if not caption[begin:end].strip():
        return "span_blank"
    inside = any(0 < edge < len(caption) and caption[edge - 1 : edge + 1].isalnum() for edge in (begin, end))
    return "span_cuts_word" if inside else ""


def _encodable(text: str) -> str:
    # JSON may hold half of a surrogate pair, which no tokenizer takes.
    return text.encode("utf-8", "replace").decode()
