"""PhraseCut as published: phrases about Visual Genome's images, each with boxes and polygons of all it refers to."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pipeline import schema
from pipeline.sources.coco import Record, Row, clamp_box, first_file, knows, load_json, polygons, report_lost, start_row
from pipeline.sources.mdetr import EMPTY_CAPTION, box_columns

_FOLDERS = ("", "VG_100K/", "VG_100K_2/")
"""Where an image may lie below the image folder; Visual Genome's two archives unpack into the last two."""

Instance = tuple[list[float], list[list[float]]]
"""A box as x, y, width, height, and its polygons."""


@dataclass(frozen=True, kw_only=True)
class PhraseCutSource:
    """A split of PhraseCut."""

    annotations: Path
    """``refer_<split>.json``."""
    image_data: Path
    """``image_data_split.json`` (also ``image_data_split3000.json``), which knows the size of every image."""
    images: Path
    """Folder with ``<image_id>.jpg``, directly or in ``VG_100K`` and ``VG_100K_2``."""
    source: str
    """Name of the data set; first part of every ``sample_id``."""
    split: str
    """Name of the split; second part of every ``sample_id``."""


def read_phrasecut(source: PhraseCutSource) -> Iterator[Row]:
    """Read rows of kind `schema.GROUND`, one per task, in the order of the file.

    The whole phrase is the text, its only phrase and the span of every box. ``segmentation`` has all polygons of
    each instance. Boxes without an area and polygons without three corners are left out and counted in the log.

    Raises:
        ValueError: A file is not PhraseCut's.
    """
    sizes = {record["image_id"]: record for record in _load(source.image_data, "image_id", "width", "height")}
    tasks = _load(source.annotations, "task_id", "image_id", "phrase", "instance_boxes", "Polygons")
    lost: Counter[str] = Counter()
    for image_id, of_image in groupby(tasks, key=lambda task: task["image_id"]):
        head = _start(image_id, sizes, source)
        for task in of_image:
            row = head | {"sample_id": f"{source.source}/{source.split}/{task['task_id']}", "text": str(task["phrase"])}
            if not row["text"].strip():
                row |= {"status": schema.REJECTED, "reason": EMPTY_CAPTION}
            if row["status"] == schema.LABELLED:
                row |= _columns(_instances(task, source.annotations), row, lost)
            yield row
    report_lost(source.annotations, lost)


def _load(path: Path, *needed: str) -> list[Record]:
    """Parse a list of objects that all have the fields needed."""
    content = load_json(path, f"PhraseCut's list of {', '.join(needed)}")
    for number, record in enumerate(content if isinstance(content, list) else [None]):
        if not isinstance(record, dict) or not record.keys() >= set(needed):
            raise ValueError(f"{path}: entry {number} is no task or image of PhraseCut; expected {', '.join(needed)}")
    return list(content)


def _start(image_id: int, sizes: dict[int, Record], source: PhraseCutSource) -> Row:
    """Begin the rows of one image, which is read once for all that lie together."""
    if not knows(sizes, image_id):
        raise ValueError(f"{source.annotations} speaks of image {image_id!r}; expected one of {source.image_data}")
    size = {side: sizes[image_id][side] for side in ("width", "height")}
    name = first_file(source.images, [f"{folder}{image_id}.jpg" for folder in _FOLDERS])
    return start_row({"id": image_id, "file_name": name, **size}, source, schema.GROUND)


def _instances(task: Record, path: Path) -> list[Instance]:
    try:
        boxes = [[float(x), float(y), float(w), float(h)] for x, y, w, h in task["instance_boxes"]]
        outlines = [[_flatten(polygon) for polygon in own] for own in task["Polygons"]]
        return list(zip(boxes, outlines, strict=True))
    except (TypeError, ValueError) as error:
        wanted = "expected instance_boxes of [x, y, width, height] and as many Polygons, each of lists of [x, y]"
        raise ValueError(f"{path}: task {task['task_id']}: {error}; {wanted}") from error


def _flatten(polygon: list[list[float]]) -> list[float]:
    return [float(value) for x, y in polygon for value in (x, y)]


def _columns(instances: list[Instance], row: Row, lost: Counter[str]) -> Row:
    clamped = [(clamp_box(xywh, row["width"], row["height"]), outlines) for xywh, outlines in instances]
    kept = [(box, polygons({"segmentation": outlines}, lost)) for box, outlines in clamped if box is not None]
    lost["boxes without an area"] += len(instances) - len(kept)
    span = [0, len(row["text"])]
    masks = [outlines for _, outlines in kept]
    return {
        "phrases": [span],
        "entity": [0],
        "segmentation": masks if any(masks) else None,
        **box_columns([(box, [span]) for box, _ in kept], [0] * len(kept)),
    }
