"""What is known about the pictures, in the formats real data sets use."""

from collections.abc import Callable, Sequence
from random import Random

from pipeline.miniature.draw import Picture
from pipeline.miniature.grammar import NOVEL_NOUNS, Caption, Look, Thing, gold_caption

Json = dict[str, object]


def coco_box(thing: Thing) -> Json:
    """Write a box as COCO does: xywh, its area, no crowd."""
    x1, y1, x2, y2 = thing.box
    width, height = x2 - x1, y2 - y1
    return {"bbox": [x1, y1, width, height], "area": width * height, "iscrowd": 0}


def detection_json(
    files: Sequence[tuple[str, Picture]],
    categories: Sequence[str],
    category_of: Callable[[Look], str],
    *,
    description: str,
    supercategory_of: Callable[[str], str] = lambda _: "none",
) -> Json:
    """Write a COCO json; objects whose category is not listed have no box, as in real single-class sets."""
    ids = {name: number for number, name in enumerate(categories, start=1)}
    annotations: list[Json] = []
    for image_id, (_, picture) in enumerate(files, start=1):
        for thing in picture.things:
            if (category_id := ids.get(category_of(thing.look))) is not None:
                head = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id}
                annotations.append(head | coco_box(thing) | {"segmentation": []})
    return {
        "info": {"description": description},
        "licenses": [],
        "images": [
            {"id": image_id, "file_name": name, "width": picture.width, "height": picture.height}
            for image_id, (name, picture) in enumerate(files, start=1)
        ],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": supercategory_of(name)} for name, number in ids.items()
        ],
    }


def grounding_json(files: Sequence[tuple[str, Picture]], seed: str, generic_share: float = 0.0) -> Json:
    """Write MDETR's json: one image record per caption; every fifth picture has a second caption."""
    images: list[Json] = []
    annotations: list[Json] = []
    for number, (name, picture) in enumerate(files):
        for repeat in range(2 if number % 5 == 4 else 1):
            caption = gold_caption(Random(f"{seed}/{number}/{repeat}"), picture.things, generic_share)
            image_id = len(images) + 1
            images.append(
                {
                    "file_name": name,
                    "height": picture.height,
                    "width": picture.width,
                    "id": image_id,
                    "caption": caption.text,
                    "dataset_name": "mixed",
                    "tokens_negative": _gaps(caption),
                    "data_source": "vg",
                    "original_id": number + 1,
                }
            )
            for index, spans in _spans_by_thing(caption).items():
                head = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "tokens_positive": spans}
                annotations.append(head | coco_box(picture.things[index]))
    categories = [{"id": 1, "name": "object", "supercategory": "object"}]
    return {
        "info": {"description": "miniature GoldG"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def truth_objects(picture: Picture, caption: Caption) -> list[Json]:
    """Tell where everything is, and which words of the caption mean it."""
    spans = _spans_by_thing(caption)
    return [
        {
            "box": list(thing.box),
            "noun": thing.look.noun,
            "novel": thing.look.noun in NOVEL_NOUNS,
            "phrase": spans[index][0] if index in spans else None,
        }
        for index, thing in enumerate(picture.things)
    ]


def _spans_by_thing(caption: Caption) -> dict[int, list[list[int]]]:
    spans: dict[int, list[list[int]]] = {}
    for phrase in caption.phrases:
        for index in phrase.members:
            spans.setdefault(index, []).append([phrase.begin, phrase.end])
    return dict(sorted(spans.items()))


def _gaps(caption: Caption) -> list[list[int]]:
    """List the spans of a caption that mean no object."""
    edges = [0, *(edge for phrase in caption.phrases for edge in (phrase.begin, phrase.end)), len(caption.text)]
    return [[begin, end] for begin, end in zip(edges[::2], edges[1::2], strict=True) if begin < end]
