"""Visual Genome's objects: boxes with names as people typed them, merged into a vocabulary."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.sources.coco import Record, Row, add_boxes, first_file, load_json, open_text, report_lost, start_row

_FOLDERS = ("", "VG_100K/", "VG_100K_2/")
"""Where the images lie: all together, or as the two archives unpack."""
_BOX = ("x", "y", "w", "h")


@dataclass(frozen=True, kw_only=True)
class VisualGenomeSource:
    """Visual Genome as it is published."""

    objects: Path
    """``objects.json``: per image its boxes and their names."""
    image_data: Path
    """``image_data.json``: the size of each image."""
    images: Path
    """Folder of ``<image_id>.jpg``, or of the folders ``VG_100K`` and ``VG_100K_2``."""
    source: str
    """Name of the data set; first part of every ``sample_id``."""
    split: str
    """Name of the split; second part of every ``sample_id``."""
    aliases: Path | None = None
    """``object_alias.txt``: per line names of one thing, separated by commas; the first one replaces the others."""
    min_count: int = 1
    """Boxes a name needs, in the whole file, to be in the vocabulary; boxes of rarer names are left out."""

    def __post_init__(self) -> None:
        """Check the count."""
        if self.min_count < 1:
            raise ValueError(f"min_count is {self.min_count}; give 1 to keep every name, or more")


def read_visual_genome(source: VisualGenomeSource) -> Iterator[Row]:
    """Read rows of kind `schema.DETECTION`, one per image, in the order of ``objects.json``.

    Names are compared in lower case, without needless blanks, after aliases. Boxes without an area, without a name or
    with a rare one are left out and counted in the log.

    Raises:
        ValueError: a file is not Visual Genome's.
    """
    images, aliases = _load_objects(source.objects), _read_aliases(source.aliases)
    names = _vocabulary(images, aliases, source.min_count)
    numbers = {name: number for number, name in names.items()}
    sizes = _load_sizes(source.image_data)
    lost: Counter[str] = Counter()
    for image in images:
        number = image["image_id"]
        file = image_name(source.images, number)
        row = start_row({**sizes.get(number, {}), "id": number, "file_name": file}, source, schema.DETECTION)
        if row["status"] == schema.LABELLED:
            named = [(thing, numbers.get(_name(thing, aliases))) for thing in image["objects"]]
            found = [{"bbox": [t[side] for side in _BOX], "category_id": n} for t, n in named if n is not None]
            lost["boxes without a name or with a rare one"] += len(named) - len(found)
            add_boxes(row, found, names, lost)
        yield row
    report_lost(source.objects, lost)


def visual_genome_categories(source: VisualGenomeSource) -> dict[int, str]:
    """Merge the names into a vocabulary, the most frequent first; ids count from 0."""
    return _vocabulary(_load_objects(source.objects), _read_aliases(source.aliases), source.min_count)


def image_name(images: Path, number: int) -> str:
    """Give the file of an image below the folder of images."""
    return first_file(images, [f"{folder}{number}.jpg" for folder in _FOLDERS])


def _vocabulary(images: list[Record], aliases: dict[str, str], min_count: int) -> dict[int, str]:
    counts = Counter(_name(thing, aliases) for image in images for thing in image["objects"])
    del counts[""]
    # By name where counts are equal, so that ids do not depend on the order of the images.
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {number: name for number, (name, count) in enumerate(ordered) if count >= min_count}


def _name(thing: Record, aliases: dict[str, str]) -> str:
    """Give the first name of an object that is not blank; "" if it has none."""
    name = next(filter(None, map(_clean, thing["names"])), "")
    return aliases.get(name, name)


def _clean(name: object) -> str:
    return " ".join(str(name).lower().split())


def _read_aliases(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    with open_text(path, "object_alias.txt of Visual Genome") as lines:
        groups = [[_clean(name) for name in line.split(",")] for line in lines]
    return {name: names[0] for names in groups for name in names if name and names[0]}


def _load_sizes(path: Path) -> dict[int, Record]:
    entries = _load_list(path, "image_data.json of Visual Genome: [{image_id, width, height, ...}, ...]")
    return {entry["image_id"]: {"width": entry.get("width"), "height": entry.get("height")} for entry in entries}


def _load_objects(path: Path) -> list[Record]:
    expected = "objects.json of Visual Genome: [{image_id, objects: [{x, y, w, h, names: [...]}, ...]}, ...]"
    images = _load_list(path, expected)
    for image in images:
        things = image.get("objects")
        if not isinstance(things, list) or not all(map(_is_object, things)):
            raise ValueError(f"{path}: image {image['image_id']} has no objects or odd ones; expected {expected}")
    return images


def _load_list(path: Path, expected: str) -> list[Record]:
    content: Any = load_json(path, expected)
    if not isinstance(content, list):
        raise ValueError(f"{path} holds no list; expected {expected}")
    for position, entry in enumerate(content):
        if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), int):
            raise ValueError(f"{path}: entry {position} has no image_id; expected {expected}")
    return content


def _is_object(thing: object) -> bool:
    if not isinstance(thing, dict) or not isinstance(thing.get("names"), list):
        return False
    return all(isinstance(thing.get(side), int | float) for side in _BOX)
