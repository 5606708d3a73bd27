"""One XML file per image in the form of PASCAL VOC: VOC itself, ImageNet's boxes, exports of labelling tools."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import NoReturn
from xml.etree import ElementTree

from pipeline import schema
from pipeline.sources.coco import Record, Row, add_boxes, first_file, open_text, report_lost, start_row

logger = logging.getLogger(__name__)

UNREADABLE_ANNOTATION = "unreadable_annotation"
"""Reason of a row whose XML is not well formed, declares a document type, or is no annotation."""

_ENDINGS = (".jpg", ".JPEG", ".jpeg", ".png", ".JPG", ".PNG", ".bmp", ".webp")
_PIECE_BYTES = 256
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, kw_only=True)
class VocSource:
    """A folder of XML files and the images they speak of."""

    annotations: Path
    """Folder of the XML files, which may lie in sub-folders."""
    images: Path
    """Folder of the images: laid out like the XML files, or flat; an image has its XML's name or the one it states."""
    source: str
    """Name of the data set; first part of every ``sample_id``."""
    split: str
    """Name of the split; second part of every ``sample_id``."""
    names: Path | None = None
    """What ids mean, per line ``id name, other name`` (``LOC_synset_mapping.txt``, ``words.txt``): the first counts."""
    subset: Path | None = None
    """Files to read, per line a name without ending (``ImageSets/Main/train.txt``); all if None."""
    keep_difficult: bool = True
    """Keep boxes marked as difficult as ordinary ones; else they are left out."""
    one_based: bool = False
    """Pixels count from 1 and a box includes its last, as in VOC's own files; few other tools keep to it."""


class _PlainTreeBuilder(ElementTree.TreeBuilder):
    """Builds no document that declares a type: without one there are no entities to expand or to fetch."""

    def doctype(self, *_: object) -> NoReturn:
        raise ValueError("it declares a document type, which no annotation needs")


def read_voc(source: VocSource) -> Iterator[Row]:
    """Read rows of kind `schema.DETECTION`, one per XML file, in the order of the names or of the subset.

    The image's own size counts where the file states none, or 0. Boxes without an area are left out and counted in
    the log. A file that cannot be read is a rejected row, and a line in the log.

    Raises:
        ValueError: there is no XML file, or ``names`` or ``subset`` does not fit.
    """
    spoken = _read_names(source)
    names = voc_categories(source)
    numbers = {name: number for number, name in names.items()}
    lost: Counter[str] = Counter()
    for path in _listed(source):
        try:
            labels = _parse(path)
        except ValueError as error:
            logger.warning("%s cannot be read: %s", path, error)
            yield _start(path, {}, source) | {"status": schema.REJECTED, "reason": UNREADABLE_ANNOTATION}
            continue
        row = _start(path, labels, source)
        if row["status"] == schema.LABELLED:
            things = [thing for thing in labels["objects"] if source.keep_difficult or not thing["difficult"]]
            lost["difficult boxes"] += len(labels["objects"]) - len(things)
            found = [_annotation(thing, numbers[spoken.get(thing["name"], thing["name"])], source) for thing in things]
            add_boxes(row, found, names, lost)
        yield row
    report_lost(source.annotations, lost)


def read_image_list(folder: Path, split: str) -> tuple[Path, list[str]] | None:
    """Read which images are in a split of VOC or Flickr30k Entities, by their names without ending.

    Returns:
        The list, ``<folder>/<split>.txt`` or else ``<folder>/ImageSets/Main/<split>.txt``, and the names in it; None if
        there is neither.
    """
    for path in (folder / f"{split}.txt", folder / "ImageSets" / "Main" / f"{split}.txt"):
        if path.is_file():
            with open_text(path, "an image per line") as lines:
                return path, [line.split()[0] for line in lines if line.strip()]
    return None


def voc_categories(source: VocSource) -> dict[int, str]:
    """Collect the names of all XML files of the folder, whatever the subset; ids count from 0 in alphabetical order.

    Raises:
        ValueError: there is no XML file, or ``names`` lacks an id.
    """
    spoken, found = _read_names(source), set[str]()
    for path in _files(source):
        with suppress(ValueError):  # told when the rows are read
            found.update(thing["name"] for thing in _parse(path)["objects"])
    if source.names is not None and (unknown := sorted(found - spoken.keys())):
        what = f"has no line for {unknown[0]!r}, one of {len(unknown)} names missing"
        raise ValueError(f"{source.names} {what}; expected 'id name, other name' for each id in {source.annotations}")
    return dict(enumerate(sorted({spoken.get(name, name) for name in found})))


def _files(source: VocSource) -> list[Path]:
    if not (paths := sorted(source.annotations.rglob("*.xml"))):
        raise ValueError(f"{source.annotations} holds no .xml file; expected one per image, in the form of PASCAL VOC")
    return paths


def _listed(source: VocSource) -> list[Path]:
    if source.subset is None:
        return _files(source)
    with open_text(source.subset, "one name per line") as lines:
        # The lists of single classes have a second column.
        paths = [source.annotations / f"{line.split()[0]}.xml" for line in lines if line.strip()]
    if absent := [path for path in paths if not path.is_file()]:
        what = f"lists {absent[0].stem} and {len(absent) - 1} others that are not there"
        raise ValueError(f"{source.subset} {what}; expected names of files such as {absent[0]}")
    return paths


def _read_names(source: VocSource) -> dict[str, str]:
    """Read what each id means."""
    if source.names is None:
        return {}
    expected = "lines of an id, a blank or tab, and names separated by commas"
    with open_text(source.names, expected) as lines:
        pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    if bad := next((pair for pair in pairs if len(pair) == 1), None):
        raise ValueError(f"{source.names} has the line {bad[0]!r}; expected {expected}")
    return {number: names.split(",")[0].strip() for number, names in pairs}


def _start(path: Path, labels: Record, source: VocSource) -> Row:
    name = path.relative_to(source.annotations).with_suffix("")
    stems = [name.as_posix(), name.name]
    stated = PureWindowsPath(labels.get("filename", "")).name
    further = [(name.parent / stated).as_posix(), stated] if stated else []
    files = [f"{stem}{ending}" for stem in stems for ending in _ENDINGS] + further
    image = {"id": name.as_posix(), "file_name": first_file(source.images, files)}
    return start_row(image | {side: labels.get(side) for side in ("width", "height")}, source, schema.DETECTION)


def _parse(path: Path) -> Record:
    """Read an XML file.

    Raises:
        ValueError: it is no annotation.
    """
    try:
        root = _parse_xml(path.read_bytes())
        size = {side: int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height")}
    except (ElementTree.ParseError, LookupError, OverflowError) as error:
        raise ValueError(str(error)) from error
    if root.tag != "annotation":
        raise ValueError(f"its root is {root.tag!r}; expected 'annotation'")
    return {**size, "filename": root.findtext("filename", ""), "objects": list(map(_object, root.iterfind("object")))}


def _parse_xml(content: bytes) -> ElementTree.Element:
    """Parse in small pieces: an error stops the parser only between two of them, and till then it expands entities."""
    parser = ElementTree.XMLParser(target=_PlainTreeBuilder())
    for begin in range(0, len(content), _PIECE_BYTES):
        parser.feed(content[begin : begin + _PIECE_BYTES])
    root: ElementTree.Element = parser.close()
    return root


def _object(found: ElementTree.Element) -> Record:
    name = found.findtext("name", "").strip()
    corners = [found.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    try:
        box = [float(corner or "") for corner in corners]
    except ValueError as error:
        raise ValueError(f"object {name!r} has bndbox {corners}; expected numbers for {', '.join(_CORNERS)}") from error
    if not name:
        raise ValueError(f"the object at {box} has no name")
    return {"name": name, "box": box, "difficult": found.findtext("difficult", "").strip() == "1"}


def _annotation(thing: Record, category: int, source: VocSource) -> Record:
    """Give a box as COCO would."""
    x1, y1, x2, y2 = thing["box"]
    x1, y1 = x1 - source.one_based, y1 - source.one_based
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": category}
