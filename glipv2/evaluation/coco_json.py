"""COCO's two kinds of json, truth and results: checked, repaired and handed to pycocotools.

Annotations are numbered from 1, because pycocotools reads a match with number 0 as none; ids of images and categories
may be texts, and those of digits alone are the numbers; a missing ``iscrowd`` is 0, a missing ``area`` that of the box.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, Literal

from pycocotools.coco import COCO

logger = logging.getLogger(__name__)

Record = dict[str, Any]
IouType = Literal["bbox", "segm"]

TRUTH = {"images": {"id"}, "categories": {"id"}, "annotations": {"image_id", "category_id", "bbox"}}
"""The lists of a COCO json and what each of their records must have."""
RESULT = "expected COCO results: a list of {image_id, category_id, score, bbox [x, y, width, height] or segmentation}"


def check_truth(truth: Any) -> None:
    """Refuse what is no COCO json.

    Raises:
        ValueError: one line naming the record.
    """
    if not isinstance(truth, dict) or not all(isinstance(truth.get(part), list) for part in TRUTH):
        raise ValueError(f"the truth is no COCO json; expected an object with the lists {', '.join(TRUTH)}")
    for part, needed in TRUTH.items():
        for number, record in enumerate(truth[part]):
            if missing := _missing(record, needed):
                raise ValueError(f"{part}[{number}] of the truth lacks {missing}; give a COCO json")
            for key in record.keys() & EXPECTED.keys():
                sound, expected = EXPECTED[key]
                if not sound(record[key]):
                    what = f"{part}[{number}] of the truth has {key} {record[key]!r:.60}"
                    raise ValueError(f"{what}; expected {expected}")


def check_results(results: Any, iou_type: IouType) -> list[Record]:
    """Take what an evaluation reads of COCO results, and refuse what is none.

    Raises:
        ValueError: one line naming the record.
    """
    if not isinstance(results, list):
        raise ValueError(f"the predictions are no list but a {type(results).__name__}; {RESULT}")
    shapes = _shapes(results[0], iou_type) if results and isinstance(results[0], dict) else ["bbox"]
    wanted = ("image_id", "category_id", "score", *shapes)
    for number, result in enumerate(results):
        if missing := _missing(result, set(wanted)):
            raise ValueError(f"predictions[{number}] lacks {missing}; {RESULT}")
        for key in wanted:
            if not SOUND[key](result[key]):
                raise ValueError(f"predictions[{number}] has {key} {result[key]!r:.60}; {RESULT}")
    return [{key: result[key] for key in wanted} for result in results]


def load_truth(truth: Record, iou_type: IouType = "bbox") -> COCO:
    """Hand a COCO json to pycocotools, numbered and completed as the module says; the content is left as it is.

    Raises:
        ValueError: masks are to be compared, and an annotation has none or its image no size.
    """
    ids = {part: _ids(record["id"] for record in truth[part]) for part in ("images", "categories")}
    known = COCO()
    known.dataset = {"info": {}} | {
        part: [{**record, "id": ids[part][id_text(record["id"])]} for record in truth[part]] for part in ids
    }
    known.dataset["annotations"] = [
        {"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a, "id": number}
        | {"image_id": ids["images"][id_text(a["image_id"])]}
        | {"category_id": ids["categories"][id_text(a["category_id"])]}
        for number, a in enumerate(truth["annotations"], start=1)
        if id_text(a["image_id"]) in ids["images"] and id_text(a["category_id"]) in ids["categories"]
    ]
    if lost := len(truth["annotations"]) - len(known.dataset["annotations"]):
        logger.warning("left out %d annotations of images or categories that are not listed", lost)
    known.createIndex()
    if iou_type == "segm":
        for annotation in known.dataset["annotations"]:
            annotation["segmentation"] = _rle(known, annotation, f"annotations[{annotation['id'] - 1}] of the truth")
    return known


def load_results(truth: COCO, results: Sequence[Record]) -> COCO:
    """Hand COCO results to pycocotools; they are left as they are.

    Raises:
        ValueError: a result is of an image the truth does not have, or its mask needs an image's size.
    """
    images, categories = ({id_text(id_): id_ for id_ in known} for known in (truth.imgs, truth.cats))
    loaded, strange = [], 0
    for number, result in enumerate(results):
        image, category = images.get(id_text(result["image_id"])), categories.get(id_text(result["category_id"]))
        if image is None:
            what = f"predictions[{number}] is of image {result['image_id']!r}, which the truth does not have"
            raise ValueError(f"{what}; give predictions of the same images")
        if category is None:
            strange += 1
            continue
        own = {**result, "image_id": image, "category_id": category}
        if "segmentation" in own:
            own["segmentation"] = _rle(truth, own, f"predictions[{number}]")
        loaded.append(own)
    if strange:
        logger.warning("left out %d predictions of categories the truth does not have", strange)
    return truth.loadRes(loaded) if loaded else _nothing(truth)


def is_number(value: Any) -> bool:
    """Tell whether a value of a file is a number one can compare."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_box(value: Any) -> bool:
    """Tell whether a value of a file is a list of four numbers."""
    return isinstance(value, list | tuple) and len(value) == 4 and all(map(is_number, value))


def _is_mask(value: Any) -> bool:
    """Tell polygons and run lengths, compressed or not, from anything pycocotools would choke on."""
    if isinstance(value, dict):
        return isinstance(value.get("counts"), str | bytes | list) and isinstance(value.get("size"), list | tuple)
    polygons = isinstance(value, list) and bool(value) and all(isinstance(p, list) and len(p) >= 4 for p in value)
    return polygons and all(type(number) in (int, float) for polygon in value for number in polygon)


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return value in (0, 1)


ID = "a number or a text"
EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is_id, ID),
    "image_id": (_is_id, ID),
    "category_id": (_is_id, ID),
    "bbox": (is_box, "[x, y, width, height]"),
    "area": (is_number, "a number, or leave it out"),
    "iscrowd": (_is_flag, "0 or 1, or leave it out"),
}
"""What values of a truth must be, by key."""
SOUND: dict[str, Callable[[Any], bool]] = {
    "image_id": _is_id,
    "category_id": _is_id,
    "score": is_number,
    "bbox": is_box,
    "segmentation": _is_mask,
}
"""The same of results."""


def _shapes(first: Record, iou_type: IouType) -> list[str]:
    """Tell what to read of each result: as in pycocotools, what the first has decides."""
    boxes = ["bbox"] if first.get("bbox") else []
    if iou_type == "segm":
        return [*boxes, "segmentation"]
    return boxes or (["segmentation"] if first.get("segmentation") else ["bbox"])


def _missing(record: Any, needed: set[str]) -> str:
    return ", ".join(sorted(needed - (record.keys() if isinstance(record, dict) else set())))


def _ids(ids: Iterable[Any]) -> dict[str, int | str]:
    """Map the text of every id to the id: a number if all are written as whole numbers, otherwise a text.

    Equal scores stay in the order of the images' ids, so "9" must come before "10", as 9 does.
    """
    texts = [id_text(id_) for id_ in ids]
    whole = all(text.isascii() and text.removeprefix("-").isdigit() and str(int(text)) == text for text in texts)
    return {text: int(text) if whole else text for text in texts}


def id_text(id_: Any) -> str:
    """Write an id so that 7, 7.0 and "7" are the same."""
    return str(int(id_)) if isinstance(id_, float) and id_.is_integer() else str(id_)


def _rle(truth: COCO, record: Record, name: str) -> Record:
    """Give a record's mask as run lengths."""
    if not _is_mask(record.get("segmentation")):
        raise ValueError(f"{name} has no mask; expected segmentation as polygons or run lengths, or compare boxes")
    image = truth.imgs[record["image_id"]]
    if unknown := [side for side in ("height", "width") if not isinstance(image.get(side), int)]:
        what = f"image {record['image_id']!r} of the truth has no {' and no '.join(unknown)} in whole pixels"
        raise ValueError(f"{what}; masks need the size of the image")
    rle: Record = truth.annToRLE(record)
    return rle


def _nothing(truth: COCO) -> COCO:
    empty = COCO()
    empty.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []}
    empty.createIndex()
    return empty
