"""A miniature LVIS: hundreds of compositional names in a long tail, labelled in LVIS's federated way, LVIS v1 json.

Federated: each picture tells which names were looked for. Those with boxes are there, ``neg_category_ids`` are not,
``not_exhaustive_category_ids`` have boxes and perhaps more than these; about any other name nothing is known.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from random import Random

from pipeline.miniature.annotations import Json, coco_box
from pipeline.miniature.draw import Picture, Style
from pipeline.miniature.grammar import COLOURS, TEXTURES, Look, Thing

FOLDER = "val2017"
"""Folder of the pictures; LVIS json knows a picture by its address, of which the last folder and the file count."""

_NOUNS = (
    "star", "heart", "circle", "square", "house", "ring", "triangle", "fish",
    "moon", "cross", "drop", "mushroom", "bolt", "diamond", "flower", "arrow",
)  # fmt: skip
"""From frequent to rare; novel nouns are spread over the ranks, so that rare does not mean novel."""
_TRAIN_PICTURES, _MEAN_OBJECTS = 3000, 5
"""Size of the training split that the counts of the categories speak of; it is not drawn, the counts are expected."""
_MOST_RARE, _MOST_COMMON = 10, 100
"""LVIS's bounds: a name is rare in up to 10 training images, common in up to 100, else frequent."""
_UNLABELLED, _INCOMPLETE = 0.3, 0.3
"""Probabilities that nobody looked for a frequent name, and that of several boxes of a name one is missing."""
_NUM_CLOSE, _NUM_OTHER = 12, 12
"""Names found absent, per picture: at most so many close to what is there, and so many of all others."""

_Kind = tuple[str, str, str]
"""Texture, colour and noun."""


def _tail(words: Sequence[str]) -> tuple[str, ...]:
    """Repeat each word as often as Zipf's law has it, the first most often."""
    return tuple(word for rank, word in enumerate(words, start=1) for _ in range(-(-len(words) // rank)))


STYLE = Style(nouns=_tail(_NOUNS), colours=_tail(COLOURS), num_objects=(3, 8), size=(0.14, 0.34))
"""How the pictures look: what is drawn follows the long tail."""
_KINDS: tuple[_Kind, ...] = tuple(sorted(product(TEXTURES, COLOURS, _NOUNS)))
_IDS: Mapping[_Kind, int] = {kind: number for number, kind in enumerate(_KINDS, start=1)}


def lvis_json(files: Sequence[tuple[str, Picture]], seed: str) -> Json:
    """Write LVIS v1 json: per picture the names looked for, and boxes of those found."""
    categories = [_category(kind) for kind in _KINDS]
    frequent = {number for kind, number in _IDS.items() if _frequency(kind) == "f"}
    images: list[Json] = []
    annotations: list[Json] = []
    for image_id, (name, picture) in enumerate(files, start=1):
        rng = Random(f"{seed}/{image_id}")
        found = _found(picture)
        negative = _negative(rng, found)
        labelled = {c: boxes for c, boxes in found.items() if c not in frequent or rng.random() >= _UNLABELLED}
        incomplete = [c for c, boxes in labelled.items() if len(boxes) > 1 and rng.random() < _INCOMPLETE]
        images.append(_image(image_id, name, picture) | _looked_for(negative, incomplete))
        for category, things in labelled.items():
            for thing in things[: -1 if category in incomplete else None]:
                head = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "segmentation": []}
                box = coco_box(thing)
                annotations.append(head | {"bbox": box["bbox"], "area": box["area"]})
    return {
        "info": {"description": "miniature LVIS", "version": "v1"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _kind(look: Look) -> _Kind:
    return look.texture, look.colour, look.noun


def _found(picture: Picture) -> dict[int, list[Thing]]:
    found: dict[int, list[Thing]] = {}
    for thing in picture.things:
        found.setdefault(_IDS[_kind(thing.look)], []).append(thing)
    return dict(sorted(found.items()))


def _negative(rng: Random, found: Mapping[int, object]) -> list[int]:
    """Choose names that are not in the picture: some that differ in one word from what is there, some of all others."""
    absent = [kind for kind in _KINDS if _IDS[kind] not in found]
    present = [_KINDS[number - 1] for number in found]
    close = [kind for kind in absent if any(_differing(kind, other) == 1 for other in present)]
    chosen = rng.sample(close, min(_NUM_CLOSE, len(close)))
    others = sorted(set(absent).difference(chosen))
    return sorted(_IDS[kind] for kind in [*chosen, *rng.sample(others, _NUM_OTHER)])


def _differing(one: _Kind, other: _Kind) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def _looked_for(negative: list[int], incomplete: list[int]) -> Json:
    return {"neg_category_ids": negative, "not_exhaustive_category_ids": incomplete}


def _image(image_id: int, name: str, picture: Picture) -> Json:
    return {
        "id": image_id,
        "width": picture.width,
        "height": picture.height,
        "license": 0,
        "date_captured": "",
        "coco_url": f"http://miniature.invalid/{FOLDER}/{name}",
        "flickr_url": "",
    }


def _category(kind: _Kind) -> Json:
    texture, colour, noun = kind
    name = f"{texture}_{colour}_{noun}"
    return {
        "id": _IDS[kind],
        "name": name,
        "synset": f"{name}.n.01",
        "synonyms": [name, f"{colour}_{texture}_{noun}"],
        "def": f"a {noun} that is {texture} and {colour}",
        "frequency": _frequency(kind),
        "image_count": _image_count(kind),
        "instance_count": max(1, round(_TRAIN_PICTURES * _MEAN_OBJECTS * _probability(kind))),
    }


def _frequency(kind: _Kind) -> str:
    count = _image_count(kind)
    return "r" if count <= _MOST_RARE else "c" if count <= _MOST_COMMON else "f"


def _image_count(kind: _Kind) -> int:
    return max(1, round(_TRAIN_PICTURES * (1 - (1 - _probability(kind)) ** _MEAN_OBJECTS)))


def _probability(kind: _Kind) -> float:
    """Tell how likely an object of the style is of a kind."""
    texture, colour, noun = kind
    of_texture = 0.5 if texture == TEXTURES[0] else 0.5 / (len(TEXTURES) - 1)
    of_colour = STYLE.colours.count(colour) / len(STYLE.colours)
    return of_texture * of_colour * STYLE.nouns.count(noun) / len(STYLE.nouns)
