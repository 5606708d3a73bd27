"""Detection annotations in COCO json, and what every reader of boxes shares: images, boxes, masks, clear errors.

Each image becomes one row of `schema.GROUNDING`, an unusable one included: it is rejected with the reason. The same
container holds LVIS, Objects365 and most exports of labelling tools.
"""

import json
import logging
import math
import re
import reprlib
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol, TextIO

from PIL import Image, ImageOps

from glipv2.image import UNREADABLE
from pipeline import schema

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""One row of `schema.GROUNDING` by column; a column that is absent is null."""
Record = dict[str, Any]
"""One entry of a json list, as it was parsed."""

MISSING_IMAGE, UNREADABLE_IMAGE, SIZE_MISMATCH = "missing_image", "unreadable_image", "size_mismatch"
"""Why a row is rejected: no such file, no whole picture in it, or boxes given for a picture of another size."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_ORIENTATION, _TURNED = 0x0112, range(2, 9)
_QUALITY = 95

_IDS: dict[str, tuple[type, ...]] = {"images": (int, str), "annotations": (int, str), "categories": (int,)}
_ARCHIVE = re.compile(r"images/v\d+/")
"""Objects365 v2 names its files by the archive they came in, which is gone once they are unpacked."""
_MIN_POLYGON = 6
"""Numbers of the least polygon: three corners."""


class Source(Protocol):
    """What the configuration of every reader says of its images and rows; `CocoSource` has the meaning."""

    @property
    def images(self) -> Path:
        """Folder of the images."""

    @property
    def source(self) -> str:
        """Name of the data set."""

    @property
    def split(self) -> str:
        """Name of the split."""


@dataclass(frozen=True, kw_only=True)
class CocoSource:
    """A json in COCO's container and the images it speaks of."""

    annotations: Path
    """The json file."""
    images: Path
    """Folder that every ``file_name`` is relative to, or in which the files lie without their folders."""
    source: str
    """Name of the data set; first part of every ``sample_id``."""
    split: str
    """Name of the split; second part of every ``sample_id``."""


@dataclass(frozen=True, kw_only=True)
class Container:
    """The checked content of a COCO json."""

    images: list[Record]
    """Image entries in the order of the file, each with a unique ``id``."""
    annotations: dict[int | str, list[Record]]
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


def read_coco(source: CocoSource, only: Collection[int | str] | None = None) -> Iterator[Row]:
    """Read rows of kind `schema.DETECTION`, in the order of the file.

    Boxes are clamped to the image; those without an area are left out and counted in the log. Images without boxes
    are rows too. Crowds keep their flag, polygons are kept as they are.

    Args:
        source: What to read.
        only: Ids of the images to read; all if None.

    Raises:
        ValueError: The json is not COCO's.
    """
    container = load_container(source.annotations)
    check_categories(container, source.annotations)
    lost: Counter[str] = Counter()
    for image in container.images:
        if only is not None and image["id"] not in only:
            continue
        row = start_row(image, source, schema.DETECTION)
        if row["status"] == schema.LABELLED:
            add_boxes(row, container.annotations[image["id"]], container.categories, lost)
            row["neg_category_ids"] = image.get("neg_category_ids")
            row["not_exhaustive_ids"] = image.get("not_exhaustive_category_ids")
        yield row
    report_lost(source.annotations, lost)


def categories(path: Path) -> dict[int, str]:
    """Read the category names of a COCO json by ascending id."""
    return load_container(path).categories


def load_container(path: Path) -> Container:
    """Parse and check a COCO json; an annotation without an ``id`` gets its position.

    Raises:
        ValueError: The file is absent, no json, or its entries lack what every reader needs.
    """
    content = load_json(path, "a COCO annotation file")
    images, annotations, named = (_records(content, key, path) for key in ("images", "annotations", "categories"))
    by_image: dict[int | str, list[Record]] = {image["id"]: [] for image in images}
    # As text, because sample_id writes 7 and "7" alike.
    if twice := len(images) - len({str(number) for number in by_image}):
        raise ValueError(f"{path}: {twice} image ids occur twice; expected unique ids")
    for annotation in annotations:
        if not knows(by_image, annotation.get("image_id")):
            what = f"is for image {annotation.get('image_id')!r}, which is not in 'images'; expected the id of one"
        elif not _is_numbers(annotation.get("bbox")) or len(annotation["bbox"]) != 4:
            what = f"has bbox {annotation.get('bbox')!r}; expected [x, y, width, height] in pixels"
        elif not _is_segmentation(annotation.get("segmentation")):
            given = reprlib.repr(annotation["segmentation"])
            what = f"has segmentation {given}; expected polygons [[x1, y1, x2, y2, ...], ...] or an RLE object"
        else:
            by_image[annotation["image_id"]].append(annotation)
            continue
        raise ValueError(f"{path}: annotation {annotation['id']} {what}")
    names = {record["id"]: str(record.get("name", "")) for record in sorted(named, key=lambda record: record["id"])}
    return Container(images=images, annotations=by_image, categories=names)


def check_categories(container: Container, path: Path) -> None:
    """Refuse annotations of a category without a name."""
    named = {number for number, name in container.categories.items() if name}
    for annotation in (annotation for found in container.annotations.values() for annotation in found):
        if not knows(named, annotation.get("category_id")):
            what = f"annotation {annotation['id']} has category_id {annotation.get('category_id')!r}"
            raise ValueError(f"{path}: {what}; expected the id of a named entry of 'categories'")


def knows(keys: Collection[Any], key: object) -> bool:
    """Tell whether a key from a file is among those known; lists and objects, which cannot be, are not."""
    return isinstance(key, Hashable) and key in keys


def load_json(path: Path, expected: str) -> Any:
    """Parse a json file; ``expected`` says in the error what it should have been.

    Raises:
        ValueError: The file is absent or no json.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as json: {error}; expected {expected}") from error


def open_text(path: Path, expected: str) -> TextIO:
    """Open a text file, whose line ends are kept; ``expected`` says in the error what it should have been.

    Raises:
        ValueError: The file cannot be opened.
    """
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; expected {expected}") from error


def start_row(image: Record, source: Source, kind: str, folder: Path | None = None) -> Row:
    """Begin a row with its image, or with the reason why there is none; the boxes are the caller's.

    The file is looked for by its whole name, without the archive's folders of Objects365, and by its last part alone;
    then the same by its address in COCO.

    Args:
        image: Entry of ``images``: an ``id``, a ``file_name`` or ``coco_url``, and perhaps ``width`` and ``height``.
        source: Where it comes from.
        kind: Kind of the row.
        folder: Where the image file lies; ``source.images`` if None.
    """
    row: Row = {
        "sample_id": f"{source.source}/{source.split}/{image['id']}",
        "source": source.source,
        "split": source.split,
        "image_uri": file_name(image),
        "kind": kind,
        "status": schema.REJECTED,
        "schema_version": schema.SCHEMA_VERSION,
    }
    folder = folder or source.images
    ways = [way for name in _names(image) for way in (name, _ARCHIVE.sub("", name, 1), PureWindowsPath(name).name)]
    try:
        picture = load_picture(folder / first_file(folder, ways))
    except FileNotFoundError:
        return row | {"reason": MISSING_IMAGE}
    except UNREADABLE:
        return row | {"reason": UNREADABLE_IMAGE}
    stated = image.get("width"), image.get("height")
    if all(stated) and stated != (picture.width, picture.height):
        return row | {"reason": SIZE_MISMATCH}
    size = {"width": picture.width, "height": picture.height}
    return row | size | {"image": {"bytes": picture.encoded, "path": None}, "status": schema.LABELLED}


def add_boxes(row: Row, found: Iterable[Record], names: dict[int, str], lost: Counter[str]) -> None:
    """Give a labelled row of kind `schema.DETECTION` its boxes.

    Args:
        row: As `start_row` began it.
        found: What COCO calls annotations: ``bbox`` and ``category_id``, perhaps ``iscrowd`` and ``segmentation``.
        names: Category names by id.
        lost: Counts what is left out.
    """
    placed = [(annotation, clamp_box(annotation["bbox"], row["width"], row["height"])) for annotation in found]
    kept = [(annotation, box) for annotation, box in placed if box is not None]
    lost["boxes without an area"] += len(placed) - len(kept)
    masks = [polygons(annotation, lost) for annotation, _ in kept]
    row.update(
        boxes=[box for _, box in kept],
        phrase_index=[-1] * len(kept),
        category_id=[annotation["category_id"] for annotation, _ in kept],
        category=[names[annotation["category_id"]] for annotation, _ in kept],
        score=[1.0] * len(kept),
        iscrowd=[bool(annotation.get("iscrowd", 0)) for annotation, _ in kept],
        segmentation=masks if any(masks) else None,
    )


def polygons(annotation: Record, lost: Counter[str]) -> list[list[float]]:
    """Give an annotation's polygons; none for an RLE, and those that enclose nothing are left out and counted."""
    given = annotation.get("segmentation") or []
    if isinstance(given, dict):
        lost["masks in RLE"] += not annotation.get("iscrowd", 0)  # a crowd's is no loss: nothing learns from it
        return []
    kept = [polygon for polygon in given if _encloses(polygon)]
    lost["polygons without three corners"] += len(given) - len(kept)
    return kept


def report_lost(path: Path, lost: Counter[str]) -> None:
    """Log what a reader left out of a file."""
    if said := ", ".join(f"{number} {what}" for what, number in lost.items() if number):
        logger.warning("%s: left out %s", path, said)


def file_name(image: Record) -> str:
    """Give an image's file name; LVIS has only an address, of which the last folder and the file count."""
    return _names(image)[0]


def first_file(folder: Path, names: Sequence[str]) -> str:
    """Choose the first of these names that is a file in the folder; the first of all if none is."""
    return next((name for name in names if _is_file(folder / name)), names[0])


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


def _names(image: Record) -> list[str]:
    """List the names an entry gives its file: its own and, as LVIS, that of its address; at worst its id."""
    address = "/".join(str(image.get("coco_url") or "").split("/")[-2:])
    return [str(name) for name in (image.get("file_name"), address) if name] or [str(image["id"])]


def _records(content: object, key: str, path: Path) -> list[Record]:
    """Take one list of a COCO json, each entry an object with an ``id``."""
    records = content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise ValueError(f"{path} has no list '{key}'; expected a COCO json with images, annotations and categories")
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"{path}: entry {position} of '{key}' is {record!r}; expected an object")
        if key == "annotations" and record.get("id") is None:
            record["id"] = position
        if not isinstance(record.get("id"), _IDS[key]):
            allowed = " or ".join({int: "an integer", str: "a text"}[kind] for kind in _IDS[key])
            raise ValueError(f"{path}: entry {position} of '{key}' has id {record.get('id')!r}; expected {allowed}")
    return records


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(number, int | float) for number in value)


def _is_segmentation(value: object) -> bool:
    return value is None or isinstance(value, dict) or (isinstance(value, list) and all(map(_is_numbers, value)))


def _encloses(polygon: list[float]) -> bool:
    return len(polygon) >= _MIN_POLYGON and len(polygon) % 2 == 0 and all(map(math.isfinite, polygon))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name no file can have, or a folder nobody may look into: whoever opens it will tell
        return False
