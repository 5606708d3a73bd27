"""A small random data set in COCO's formats, with what makes protocols differ: crowds, sizes, ties, many detections."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools import mask

Record = dict[str, Any]
SIDE = 320
CATEGORIES = (2, 5, 9)


@pytest.fixture
def make_data() -> Callable[[int], tuple[Record, list[Record]]]:
    return _make_data


def _make_data(seed: int, num_images: int = 5, noise: int = 40) -> tuple[Record, list[Record]]:
    """Draw a truth and results with boxes and masks."""
    draw = random.Random(seed)
    images = [{"id": 7 * number + 1, "height": SIDE, "width": SIDE} for number in range(num_images)]
    annotations: list[Record] = []
    results: list[Record] = []
    for image in images:
        for _ in range(draw.randint(1, 9)):
            box = _box(draw)
            annotation = {"image_id": image["id"], "category_id": draw.choice(CATEGORIES), "bbox": box}
            crowd = draw.random() < 0.1
            shape = _run_lengths(box) if crowd else [_polygon(box)]
            area = box[2] * box[3] * draw.choice([0.6, 1.0])
            annotation |= {"id": len(annotations) + 1, "iscrowd": int(crowd), "area": area, "segmentation": shape}
            annotations.append(annotation)
            results += [_result(draw, annotation, _near(draw, box)) for _ in range(draw.randint(0, 3))]
        results += [_result(draw, {**annotation, "image_id": image["id"]}, _box(draw)) for _ in range(noise)]
    categories = [{"id": id_, "name": str(id_), "frequency": f} for id_, f in zip(CATEGORIES, "rcf", strict=True)]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def _box(draw: random.Random) -> list[float]:
    width, height = (draw.choice([8, 20, 50, 90, 180]) * draw.uniform(0.7, 1.3) for _ in range(2))
    return [draw.uniform(0, SIDE - width), draw.uniform(0, SIDE - height), width, height]


def _near(draw: random.Random, box: list[float]) -> list[float]:
    x, y, width, height = box
    step = draw.choice([0.01, 0.05, 0.2])
    return [x + draw.uniform(-step, step) * width, y, width * draw.uniform(1 - step, 1 + step), height]


def _result(draw: random.Random, annotation: Record, box: list[float]) -> Record:
    category = annotation["category_id"] if draw.random() < 0.8 else draw.choice(CATEGORIES)
    own = {"image_id": annotation["image_id"], "category_id": category, "bbox": box}
    return own | {"score": round(draw.random(), 2), "segmentation": _compressed(box)}


def _polygon(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height * 0.8, x + width * 0.5, y + height]


def _bitmap(box: list[float]) -> np.ndarray:
    x, y, width, height = (round(value) for value in box)
    bitmap = np.zeros((SIDE, SIDE), np.uint8, order="F")
    bitmap[max(y, 0) : y + height, max(x, 0) : x + width] = 1
    return bitmap


def _compressed(box: list[float]) -> Record:
    rle = mask.encode(_bitmap(box))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _run_lengths(box: list[float]) -> Record:
    flat = _bitmap(box).flatten(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": [SIDE, SIDE], "counts": np.diff([0, *edges, flat.size]).tolist()}
