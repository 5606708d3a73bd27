"""What a benchmark asks: of each data set the images, and the names or sentences that are looked for in them.

Oddities of COCO json, and what comes of them:

- ids may be numbers from 0 or texts; categories are asked for by ascending id;
- two categories of one name are asked for once, and what is found counts for both;
- an image without boxes is asked like any other; crowds neither help nor harm, and boxes that reach beyond the image
  are compared as they are: both as pycocotools does;
- names beyond a prompt go into the next one; one without a token is not asked for, and counted;
- an image that is missing or cannot be read has nothing found in it, and is counted; if none is there, or there is no
  image, no category or no box at all, that is an error of one line before anything runs.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

from glipv2.evaluation.coco_json import check_truth
from glipv2.text.tokenizer import CharSpan
from pipeline.protocol import Files, ProtocolDataset
from pipeline.sources.coco import file_name, first_file, load_json, open_text
from pipeline.sources.flickr30k import parse_sentence
from pipeline.sources.voc import read_image_list

Id = int | str
ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A caption and its phrases that have boxes."""

    number: int
    """Position among the image's captions, from 0."""
    text: str
    """The caption."""
    spans: tuple[CharSpan, ...]
    """``[begin, end)`` characters of the phrases, in the order of the words."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An image, and what is asked of it alone."""

    image_id: Id
    """As the truth has it."""
    file: Path
    """The image."""
    sentences: tuple[Sentence, ...] = ()
    """Captions to ground; none where names are looked for."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A data set, read."""

    dataset: ProtocolDataset
    """Its protocol."""
    files: Files
    """Where its measured split lies, absolute."""
    sources: tuple[Path, ...]
    """Files that say what is right."""
    images: tuple[Asked, ...]
    """All images, in the order of the file."""
    names: tuple[str, ...] = ()
    """What is looked for in every image."""
    ids: tuple[tuple[Id, ...], ...] = ()
    """The categories of each name."""


def read_truth(dataset: ProtocolDataset, root: Path) -> Truth:
    """Read what a data set asks.

    Raises:
        ValueError: a file is missing or not of the format, is another than the protocol speaks of, or nothing in it can
            be measured.
    """
    files = dataset.place(root)
    truth = {"coco": _read_coco, "voc": _read_voc, "flickr30k": _read_flickr30k}[dataset.kind](dataset, files)
    if not truth.images:
        raise ValueError(f"{truth.sources[0]} lists no image; give a split that has some")
    if not any(asked.file.is_file() for asked in truth.images):
        what = f"none of the {len(truth.images)} images of {dataset.name} is there"
        raise ValueError(f"{what}; expected {truth.images[0].file} and so on")
    return truth


def asked_rows(truth: Truth) -> list[dict[str, object]]:
    """Write the images of a data set as `pipeline.benchmark_worker.Asker` reads them, but for their keys."""
    return [
        {
            "dataset": truth.dataset.name,
            "file": str(asked.file),
            "sentences": None if truth.names else json.dumps([[s.text, s.spans] for s in asked.sentences]),
        }
        for asked in truth.images
    ]


def _read_coco(dataset: ProtocolDataset, files: Files) -> Truth:
    path, folder = Path(files.annotations), Path(files.images)
    content = load_json(path, "a COCO json")
    try:
        check_truth(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if twice := len(content["images"]) - len({str(image["id"]) for image in content["images"]}):
        raise ValueError(f"{path}: {twice} image ids occur twice; expected unique ids")
    if content["images"] and not any(not annotation.get("iscrowd") for annotation in content["annotations"]):
        raise ValueError(f"{path} has no box (crowds do not count): nothing can be measured; give a split with boxes")
    ids = _categories(content["categories"])
    if not ids:
        raise ValueError(f"{path} has no category; expected what its boxes show")
    called = [str(category.get("name", "")) for category in _sorted(content["categories"])]
    if dataset.categories and [*map(str.casefold, called)] != [*map(str.casefold, dataset.categories)]:
        raise ValueError(
            f"{path} has the categories {', '.join(called)!r:.120}, but {dataset.name} has "
            f"{', '.join(dataset.categories)!r:.120}; give the data set of the protocol"
        )
    return Truth(
        dataset=dataset,
        files=files,
        sources=(path,),
        images=tuple(Asked(image_id=image["id"], file=_find(folder, image)) for image in content["images"]),
        names=tuple(ids),
        ids=tuple(map(tuple, ids.values())),
    )


def _read_voc(dataset: ProtocolDataset, files: Files) -> Truth:
    folder, pictures = Path(files.annotations), Path(files.images)
    listed, ids = _read_list(folder, dataset.split)
    return Truth(
        dataset=dataset,
        files=files,
        sources=(listed, *(folder / "Annotations" / f"{id_}.xml" for id_ in ids)),
        images=tuple(Asked(image_id=id_, file=_with_ending(pictures, id_)) for id_ in ids),
        names=dataset.categories,
        ids=tuple((name,) for name in dataset.categories),
    )


def _read_flickr30k(dataset: ProtocolDataset, files: Files) -> Truth:
    folder, pictures = Path(files.annotations), Path(files.images)
    listed, ids = _read_list(folder, dataset.split)
    parts = [folder / part for id_ in ids for part in (f"Annotations/{id_}.xml", f"Sentences/{id_}.txt")]
    return Truth(
        dataset=dataset,
        files=files,
        sources=(listed, *parts),
        images=tuple(
            Asked(image_id=id_, file=_with_ending(pictures, id_), sentences=_read_sentences(folder, id_)) for id_ in ids
        ),
    )


def _read_sentences(folder: Path, image: str) -> tuple[Sentence, ...]:
    """Read an image's captions that have a phrase with a box; a phrase has those of the chain it belongs to."""
    path = folder / "Annotations" / f"{image}.xml"
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected the XML of Flickr30k Entities") from error
    boxed = {str(name.text).strip() for o in objects if o.find("bndbox") is not None for name in o.findall("name")}
    with open_text(folder / "Sentences" / f"{image}.txt", "a sentence per line") as lines:
        parsed = [parse_sentence(" ".join(line.split())) for line in lines if line.strip()]
    spans = [tuple((begin, end) for (begin, end), chain in mentions if chain in boxed) for _, mentions in parsed]
    return tuple(
        Sentence(number=number, text=text, spans=own)
        for number, ((text, _), own) in enumerate(zip(parsed, spans, strict=True))
        if own
    )


def _read_list(folder: Path, split: str) -> tuple[Path, list[str]]:
    """Read which images are in a split."""
    found = read_image_list(folder, split)
    if found is None:
        raise ValueError(
            f"{folder} has no list of the split {split}; expected {split}.txt in it, or in its folder ImageSets/Main"
        )
    return found


def _categories(categories: Sequence[dict[str, Any]]) -> dict[str, list[Id]]:
    """Give the ids of each name, in the order of the first."""
    ids: dict[str, list[Id]] = {}
    for category in _sorted(categories):
        ids.setdefault(str(category.get("name", "")), []).append(category["id"])
    return ids


def _sorted(categories: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(categories, key=lambda category: (isinstance(category["id"], str), category["id"]))


def _find(folder: Path, image: dict[str, Any]) -> Path:
    """Find an image by its file name, by the end of its address (LVIS), or by the last part of either."""
    ways = [file_name(image), file_name({**image, "file_name": None})]
    return folder / first_file(folder, [*ways, *(PureWindowsPath(way).name for way in ways)])


def _with_ending(folder: Path, name: str) -> Path:
    return folder / first_file(folder, [f"{name}{ending}" for ending in ENDINGS])
