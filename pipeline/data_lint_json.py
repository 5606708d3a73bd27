"""COCO and its kin, Visual Genome and PhraseCut as raw rows, entry by entry, whatever the json holds.

The readers of `pipeline.sources` stop at the first entry that is wrong; these tell of each, and go on.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.data_lint_checks import CategoryTable, RawBox, RawRow, corners_of, numbers, show
from pipeline.data_lint_report import Findings
from pipeline.sources.coco import CocoSource, Record, Row, Source, file_name, first_file, start_row
from pipeline.sources.mdetr import MdetrSource
from pipeline.sources.phrasecut import PhraseCutSource
from pipeline.sources.visual_genome import VisualGenomeSource

_VG_FOLDERS = ("", "VG_100K/", "VG_100K_2/")
_MIN_POLYGON = 6


def coco_rows(
    source: CocoSource, findings: Findings, categories: CategoryTable, *, grounding: bool = False
) -> Iterator[RawRow]:
    """Give the images of a COCO json with their boxes; with ``grounding``, MDETR's with captions and spans."""
    content = load_json(source.annotations, findings)
    if content is None:
        return
    for where, record in _listed(content, "categories", findings):
        if not isinstance(key := record.get("id"), int):
            findings.add("entry_malformed", f"{where}: id is {show(key)}")
        elif not grounding:  # captions have one of no meaning
            categories.add(key, record.get("name"), record.get("supercategory"))
    images = list(_with_ids(_listed(content, "images", findings), findings))
    boxes = _boxes_by_image(content, {image["id"] for _, image in images}, findings)
    seen: set[str] = set()
    without_coco = isinstance(source, MdetrSource) and source.without_coco
    for where, image in images:
        if str(image["id"]) in seen:
            findings.add("image_id_twice", where)
        seen.add(str(image["id"]))
        if not all(isinstance(image.get(name), str | None) for name in ("file_name", "coco_url")):
            findings.add("entry_malformed", f"{where}: file_name is {show(image.get('file_name'))}")
            continue
        if without_coco and image.get("data_source") == "coco":
            continue
        yield RawRow(
            where=where,
            name=file_name(image),
            open=opener(image, source, _folder(image, source.images) if grounding else None),
            width=_in_quotes(image.get("width")) if grounding else image.get("width"),
            height=_in_quotes(image.get("height")) if grounding else image.get("height"),
            grounding=grounding,
            caption=image.get("caption"),
            boxes=boxes.get(image["id"], []),
            negative=image.get("neg_category_ids"),
            not_exhaustive=image.get("not_exhaustive_category_ids"),
        )


mdetr_rows = partial(coco_rows, grounding=True)
"""Give the captions of an MDETR json with their boxes."""


def visual_genome_rows(source: VisualGenomeSource, findings: Findings, categories: CategoryTable) -> Iterator[RawRow]:
    """Give the images of Visual Genome's ``objects.json``."""
    sizes = _by_image_id(source.image_data, findings)
    seen: set[int] = set()
    for where, image in _entries(load_json(source.objects, findings), "entry", findings):
        number, things = image.get("image_id"), image.get("objects")
        if not isinstance(number, int) or not isinstance(things, list):
            findings.add("entry_malformed", f"{where}: no image_id, or no list of objects")
            continue
        if number in seen:
            findings.add("image_id_twice", f"image {number}")
        seen.add(number)
        size = sizes.get(number, {})
        named = [_thing(at, f"image {number}", thing, findings, categories) for at, thing in enumerate(things)]
        name = first_file(source.images, [f"{folder}{number}.jpg" for folder in _VG_FOLDERS])
        yield RawRow(
            where=f"image {number}",
            name=name,
            open=opener({"id": number, "file_name": name}, source),
            width=size.get("width"),
            height=size.get("height"),
            boxes=[box for box in named if box],
        )


def phrasecut_rows(source: PhraseCutSource, findings: Findings, categories: CategoryTable) -> Iterator[RawRow]:
    """Give the tasks of PhraseCut's ``refer`` json."""
    sizes = _by_image_id(source.image_data, findings)
    seen: set[str] = set()
    for where, task in _entries(load_json(source.annotations, findings), "entry", findings):
        where = f"task {task['task_id']}" if "task_id" in task else where
        number, phrase, boxes = task.get("image_id"), task.get("phrase"), task.get("instance_boxes")
        if "task_id" not in task or not isinstance(number, int) or not isinstance(boxes, list):
            findings.add("entry_malformed", f"{where}: no task_id or image_id, or no list of instance_boxes")
            continue
        if where in seen:
            findings.add("sample_id_twice", where)
        seen.add(where)
        if number not in sizes:
            findings.add("image_unknown", f"{where}: image {number}")
        _check_instances(task, where, findings)
        name = first_file(source.images, [f"{folder}{number}.jpg" for folder in _VG_FOLDERS])
        spans = [[0, len(phrase)]] if isinstance(phrase, str) else None
        yield RawRow(
            where=where,
            name=name,
            open=opener({"id": number, "file_name": name}, source),
            width=sizes.get(number, {}).get("width"),
            height=sizes.get(number, {}).get("height"),
            grounding=True,
            caption=phrase,
            boxes=[RawBox(where=f"box {at}", corners=corners_of(b), spans=spans) for at, b in enumerate(boxes)],
        )


def opener(image: Record, source: Source, folder: Path | None = None) -> Callable[[], Row]:
    """Begin the row of an image when asked to, as the import does, but whatever size is stated."""
    return partial(start_row, image | {"width": None, "height": None}, source, schema.DETECTION, folder)


def load_json(path: Path, findings: Findings) -> Any:
    """Parse a json file; None, and a finding, if that cannot be done."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        findings.add("file_unreadable", f"{path.name}: {error}")
        return None


def parse_json(text: str) -> Any:
    """Parse a line or cell of json; None if that cannot be done."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _entries(content: object, what: str, findings: Findings) -> Iterator[tuple[str, Record]]:
    """Give the objects of a list, each with its place in it."""
    if not isinstance(content, list):
        if content is not None:
            findings.add("file_unreadable", f"no list where the format has one: {show(content)}")
        return
    for position, record in enumerate(content):
        if isinstance(record, dict):
            yield f"{what} {position}", record
        else:
            findings.add("entry_malformed", f"{what} {position}: {show(record)}")


def _listed(content: object, key: str, findings: Findings) -> Iterator[tuple[str, Record]]:
    """Give the objects of one list of a COCO json."""
    listed = content.get(key) if isinstance(content, dict) else None
    if not isinstance(listed, list):
        findings.add("file_unreadable", f"no list '{key}'")
        return
    yield from _entries(listed, f"'{key}', position", findings)


def _with_ids(entries: Iterator[tuple[str, Record]], findings: Findings) -> Iterator[tuple[str, Record]]:
    for where, image in entries:
        if isinstance(image.get("id"), int | str):
            yield f"image {image['id']}", image
        else:
            findings.add("entry_malformed", f"{where}: id is {show(image.get('id'))}")


def _boxes_by_image(content: object, images: set[int | str], findings: Findings) -> dict[int | str, list[RawBox]]:
    found: dict[int | str, list[RawBox]] = {}
    seen: set[str] = set()
    for position, (where, annotation) in enumerate(_listed(content, "annotations", findings)):
        key = annotation.get("id")
        if key is not None and not isinstance(key, int | str):
            findings.add("entry_malformed", f"{where}: id is {show(key)}")
        where = f"annotation {position if key is None else key}"
        if key == 0:
            findings.add("annotation_id_zero", where)
        if key is not None and str(key) in seen:
            findings.add("annotation_id_twice", where)
        seen.add(str(key))
        image = annotation.get("image_id")
        if not isinstance(image, int | str) or image not in images:
            findings.add("image_unknown", f"{where}: image {show(image)}")
            continue
        _check_mask(annotation.get("segmentation"), where, findings)
        box = RawBox(
            where=where,
            corners=corners_of(annotation.get("bbox")),
            category=annotation.get("category_id"),
            spans=annotation.get("tokens_positive"),
            crowd=bool(annotation.get("iscrowd")),
        )
        found.setdefault(image, []).append(box)
    return found


def _check_mask(mask: object, where: str, findings: Findings) -> None:
    if mask is None or isinstance(mask, dict):
        return
    polygons = mask if isinstance(mask, list) else [mask]
    for polygon in polygons:
        points = numbers(polygon, len(polygon)) if isinstance(polygon, list) else None
        if points is None:
            findings.add("mask_malformed", f"{where}: {show(polygon)}")
        elif len(points) < _MIN_POLYGON or len(points) % 2 or not all(map(math.isfinite, points)):
            findings.add("polygon_without_corners", f"{where}: {points[:_MIN_POLYGON]}")


def _folder(image: Record, images: Path) -> Path | None:
    """Find the folder of a part of the mixed set."""
    part = image.get("data_source")
    own = images / part if isinstance(part, str) else images
    return own if own.is_dir() else None


def _in_quotes(size: object) -> object:
    """Take a number out of quotes, where Flickr's part of GoldG has its sizes."""
    return int(size) if isinstance(size, str) and size.isdecimal() and len(size) < 10 else size


def _by_image_id(path: Path, findings: Findings) -> dict[int, Record]:
    """Read what Visual Genome and PhraseCut know of their images."""
    found = {}
    for where, entry in _entries(load_json(path, findings), f"{path.name}, entry", findings):
        if isinstance(number := entry.get("image_id"), int):
            found[number] = entry
        else:
            findings.add("entry_malformed", f"{where}: image_id is {show(number)}")
    return found


def _thing(at: int, where: str, thing: object, findings: Findings, categories: CategoryTable) -> RawBox | None:
    """Take one object of Visual Genome; None, and a finding, if it is none or has no name."""
    names = thing.get("names") if isinstance(thing, dict) else None
    if not isinstance(thing, dict) or not isinstance(names, list):
        findings.add("entry_malformed", f"{where}, object {at}: {show(thing)}")
        return None
    texts = (" ".join(name.lower().split()) for name in names if isinstance(name, str))
    name = next(filter(None, texts), "")
    if not name:
        findings.add("box_without_name", f"{where}, object {thing.get('object_id', at)}")
        return None
    categories.add(name, name)
    corners = corners_of([thing.get(side) for side in ("x", "y", "w", "h")])
    return RawBox(where=f"object {thing.get('object_id', at)}", corners=corners, category=name)


def _check_instances(task: Record, where: str, findings: Findings) -> None:
    """Look at the polygons of a PhraseCut task: a list for each box, each of lists of points."""
    masks, boxes = task.get("Polygons"), task["instance_boxes"]
    if not isinstance(masks, list) or len(masks) != len(boxes):
        findings.add("mask_malformed", f"{where}: {len(boxes)} boxes, but not as many lists of Polygons")
        return
    for polygons in masks:
        for polygon in polygons if isinstance(polygons, list) else [polygons]:
            points = [numbers(point, 2) for point in polygon] if isinstance(polygon, list) else [None]
            if None in points:
                findings.add("mask_malformed", f"{where}: {show(polygon)}")
            elif len(points) < _MIN_POLYGON // 2:
                findings.add("polygon_without_corners", f"{where}: {show(polygon)}")
