"""Detection annotations in COCO json, and what every reader of that container shares: images, boxes, clear errors.

Each image becomes one row of `schema.GROUNDING`, an unusable one included: it is rejected with the reason.
"""

import json
import logging
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from pipeline import schema

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""One row of `schema.GROUNDING` by column; a column that is absent is null."""
Record = dict[str, Any]
"""One entry of a json list, as it was parsed."""

MISSING_IMAGE, UNREADABLE_IMAGE, SIZE_MISMATCH = "missing_image", "unreadable_image", "size_mismatch"
"""Why a row is rejected: no such file, no whole picture in it, or boxes given for a picture of another size."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_ORIENTATION, _TURNED = 0x0112, range(2, 9)
_QUALITY = 95


@dataclass(frozen=True, kw_only=True)
class CocoSource:
    """A json in COCO's container and the images it speaks of."""

    annotations: Path
    """The json file."""
    images: Path
    """Folder that every ``file_name`` is relative to."""
    source: str
    """Name of the data set; first part of every ``sample_id``."""
    split: str
    """Name of the split; second part of every ``sample_id``."""


@dataclass(frozen=True, kw_only=True)
class Container:
    """The checked content of a COCO json."""

    images: list[Record]
    """Image entries in the order of the file, each with a unique ``id``."""
    annotations: dict[int, list[Record]]
    """Annotations by image id, in the order of the file; an empty list for an image without any."""
    categories: dict[int, str]
    """Category names by ascending id; ids need neither start at 1 nor be contiguous."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as a row stores it: upright."""

    encoded: bytes
    """The file as it was, or encoded anew if its orientation tag had to be obeyed."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""


def read_coco(source: CocoSource, only: Collection[int] | None = None) -> Iterator[Row]:
    """Read rows of kind `schema.DETECTION`, in the order of the file.

    Boxes are clamped to the image; those without an area are left out and counted in the log. Images without boxes
    are rows too. Crowds keep their flag.

    Args:
        source: What to read.
        only: Ids of the images to read; all if None.

    Raises:
        ValueError: The json is not COCO's.
    """
    container = load_container(source.annotations)
    check_categories(container, source.annotations)
    lost = 0
    for image in container.images:
        if only is not None and image["id"] not in only:
            continue
        row = start_row(image, source, schema.DETECTION)
        if row["status"] == schema.LABELLED:
            found = container.annotations[image["id"]]
            boxes = [clamp_box(annotation["bbox"], row["width"], row["height"]) for annotation in found]
            kept = [(annotation, box) for annotation, box in zip(found, boxes, strict=True) if box is not None]
            lost += len(found) - len(kept)
            row |= _detection_columns(kept, container.categories)
            row["neg_category_ids"] = image.get("neg_category_ids")
            row["not_exhaustive_ids"] = image.get("not_exhaustive_category_ids")
        yield row
    if lost:
        logger.warning("%s: left out %d boxes without an area", source.annotations, lost)


def categories(path: Path) -> dict[int, str]:
    """Read the category names of a COCO json by ascending id."""
    return load_container(path).categories


def load_container(path: Path) -> Container:
    """Parse and check a COCO json.

    Raises:
        ValueError: The file is absent, no json, or its entries lack what every reader needs.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as json: {error}; expected a COCO annotation file") from error
    images, annotations, named = (_records(content, key, path) for key in ("images", "annotations", "categories"))
    by_image: dict[int, list[Record]] = {image["id"]: [] for image in images}
    if len(by_image) < len(images):
        raise ValueError(f"{path}: {len(images) - len(by_image)} image ids occur twice; expected unique ids")
    for annotation in annotations:
        if annotation.get("image_id") not in by_image:
            what = (
                f"annotation {annotation['id']} is for image {annotation.get('image_id')!r}, which is not in 'images'"
            )
            raise ValueError(f"{path}: {what}; expected the id of a listed image")
        if not _is_box(annotation.get("bbox")):
            what = f"annotation {annotation['id']} has bbox {annotation.get('bbox')!r}"
            raise ValueError(f"{path}: {what}; expected [x, y, width, height] in pixels")
        by_image[annotation["image_id"]].append(annotation)
    names = {record["id"]: str(record.get("name", "")) for record in sorted(named, key=lambda record: record["id"])}
    return Container(images=images, annotations=by_image, categories=names)


def check_categories(container: Container, path: Path) -> None:
    """Refuse annotations of a category without a name."""
    for annotation in (annotation for found in container.annotations.values() for annotation in found):
        if not container.categories.get(annotation.get("category_id", -1)):
            what = f"annotation {annotation['id']} has category_id {annotation.get('category_id')!r}"
            raise ValueError(f"{path}: {what}; expected the id of a named entry of 'categories'")


def start_row(image: Record, source: CocoSource, kind: str, folder: Path | None = None) -> Row:
    """Begin a row with its image, or with the reason why there is none; the boxes are the caller's.

    Args:
        image: Entry of ``images``.
        source: Where it comes from.
        kind: Kind of the row.
        folder: Where the image file lies; ``source.images`` if None.
    """
    name = file_name(image)
    row: Row = {
        "sample_id": f"{source.source}/{source.split}/{image['id']}",
        "source": source.source,
        "split": source.split,
        "image_uri": name,
        "kind": kind,
        "status": schema.REJECTED,
        "schema_version": schema.SCHEMA_VERSION,
    }
    try:
        picture = load_picture((folder or source.images) / name)
    except FileNotFoundError:
        return row | {"reason": MISSING_IMAGE}
    except _DECODE_ERRORS:
        return row | {"reason": UNREADABLE_IMAGE}
    stated = image.get("width"), image.get("height")
    if all(stated) and stated != (picture.width, picture.height):
        return row | {"reason": SIZE_MISMATCH}
    size = {"width": picture.width, "height": picture.height}
    return row | size | {"image": {"bytes": picture.encoded, "path": None}, "status": schema.LABELLED}


def file_name(image: Record) -> str:
    """Give an image's file name; LVIS has only an address, of which the last folder and the file count."""
    return str(image.get("file_name") or "/".join(str(image.get("coco_url")).split("/")[-2:]))


def load_picture(path: Path) -> Picture:
    """Read and wholly decode an image file, obeying its orientation tag.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: Or another of Pillow's errors: it holds no whole image of a usual web format.
    """
    encoded = path.read_bytes()
    with Image.open(BytesIO(encoded), formats=_FORMATS) as image:
        image.load()
        if image.getexif().get(_ORIENTATION) not in _TURNED:
            return Picture(encoded=encoded, width=image.width, height=image.height)
        upright, target = ImageOps.exif_transpose(image), BytesIO()
        upright.save(target, format="JPEG" if image.format in {"JPEG", "MPO"} else "PNG", quality=_QUALITY)
    return Picture(encoded=target.getvalue(), width=upright.width, height=upright.height)


def clamp_box(xywh: Sequence[float], width: int, height: int) -> list[float] | None:
    """Convert a COCO box to xyxy (``x2``, ``y2`` exclusive) inside the image; None if no area is left."""
    x, y, w, h = xywh
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    return [x1, y1, x2, y2] if x2 > x1 and y2 > y1 else None


def _detection_columns(kept: list[tuple[Record, list[float]]], names: dict[int, str]) -> Row:
    return {
        "boxes": [box for _, box in kept],
        "phrase_index": [-1] * len(kept),
        "category_id": [annotation["category_id"] for annotation, _ in kept],
        "category": [names[annotation["category_id"]] for annotation, _ in kept],
        "score": [1.0] * len(kept),
        "iscrowd": [bool(annotation.get("iscrowd", 0)) for annotation, _ in kept],
    }


def _records(content: object, key: str, path: Path) -> list[Record]:
    """Take one list of a COCO json, each entry an object with an integer ``id``."""
    records = content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise ValueError(f"{path} has no list '{key}'; expected a COCO json with images, annotations and categories")
    for position, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("id"), int):
            raise ValueError(f"{path}: entry {position} of '{key}' has no integer id; expected an object with one")
    return records


def _is_box(bbox: object) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(value, int | float) for value in bbox)
