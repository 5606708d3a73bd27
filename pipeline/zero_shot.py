"""Zero-shot scores on the miniature world: one number per column of the paper's tables, base and novel nouns apart."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glipv2.evaluation.coco import average_precision, mean_of
from glipv2.evaluation.flickr30k import flickr30k_metrics, read_entities
from glipv2.evaluation.lvis import lvis_metrics
from glipv2.inference.postprocess import PostprocessConfig
from glipv2.inference.predictor import Prediction, Predictor
from pipeline import schema
from pipeline.evaluate import Benchmark, category_names, measure, open_image, read_annotations
from pipeline.miniature.world import World
from pipeline.sources.coco import file_name
from pipeline.sources.flickr30k import Flickr30kSource, read_flickr30k
from pipeline.sources.odinw import list_datasets

COLUMNS = {
    "coco": "COCO-like AP",
    "odinw": "ODinW-like AP",
    "lvis": "LVIS-like fixed AP",
    "flickr30k": "Flickr30k-like R@1",
    "base": "base nouns AP50",
    "novel": "novel nouns AP50",
}
"""What is measured, in percent: the paper's four columns, then the test set that holds base and novel nouns apart."""
LVIS_DETECTIONS = 300
SLOW_IMAGES = 60
"""Images of the LVIS-like set, whose 512 names take many prompts, and of the Flickr30k-like one, with five sentences
for each."""
_BATCH = 16


def zero_shot(model: Path, world: World, *, threads: int = 1, device: str = "cpu") -> dict[str, float]:
    """Measure a model on the world's benchmarks, in percent, by the names of `COLUMNS`."""
    torch.set_num_threads(threads)
    predictor = Predictor.load(model, device, batch_size=_BATCH)
    plain = world.objects365_val
    coco, _ = measure(predictor, Benchmark(name="coco", annotations=plain.annotations, images=plain.images), _BATCH)
    base, novel = _by_kind(predictor, world)
    return {
        "coco": coco.ap,
        "odinw": float(np.mean(list(_odinw(predictor, world)))),
        "lvis": _lvis(Predictor.load(model, device, PostprocessConfig(max_detections=LVIS_DETECTIONS)), world),
        "flickr30k": _flickr30k(predictor, world),
        "base": base,
        "novel": novel,
    }


def _by_kind(predictor: Predictor, world: World) -> tuple[float, float]:
    place = world.novel_test
    benchmark = Benchmark(name="novel", annotations=place.annotations, images=place.images)
    result, _ = measure(predictor, benchmark, _BATCH)
    kinds = {c["id"]: c["supercategory"] for c in read_annotations(place.annotations)["categories"]}
    base, novel = (mean_of(result, [id_ for id_, k in kinds.items() if k == kind]) for kind in ("base", "novel"))
    return base or 0.0, novel or 0.0


def _odinw(predictor: Predictor, world: World) -> Iterator[float]:
    """Give the AP of each set, whose plain mean the paper reports."""
    for dataset in list_datasets(world.odinw):
        path = dataset.annotations("test")
        content = read_annotations(path)
        names, images = category_names(content["categories"]), content["images"]
        found = [
            prediction
            for chunk in _chunks(images)
            for prediction in predictor.detect([open_image(path.parent / i["file_name"]) for i in chunk], names)
        ]
        yield average_precision(path, [image["id"] for image in images], found).ap


def _lvis(predictor: Predictor, world: World) -> float:
    truth = json.loads(world.lvis.annotations.read_text(encoding="utf-8"))
    truth["images"] = truth["images"][:SLOW_IMAGES]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [box for box in truth["annotations"] if box["image_id"] in kept]
    names, results = category_names(truth["categories"]), []
    for chunk in _chunks(truth["images"]):
        found = predictor.detect([open_image(world.lvis.images / file_name(image)) for image in chunk], names)
        results += [
            {"image_id": image["id"], "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for image, prediction in zip(chunk, found, strict=True)
            for (x1, y1, x2, y2), score, label in _boxes(prediction)
        ]
    return 100 * lvis_metrics(truth, results, fixed=True)["AP"]


def _flickr30k(predictor: Predictor, world: World) -> float:
    folder = world.flickr30k.annotations
    ids = folder / "test.txt"
    wanted = ids.read_text(encoding="utf-8").split()[:SLOW_IMAGES]
    source = Flickr30kSource(annotations=folder, images=world.flickr30k.images, ids=ids, source="f", split="test")
    predictions = []
    for row in read_flickr30k(source):
        image, _, number = row["sample_id"].rpartition("/")[2].rpartition("_")
        if row["status"] == schema.LABELLED and image in wanted:
            predictions.append({"image_id": image, "sentence_id": int(number), **_ground(predictor, row, world)})
    truth = read_entities(folder, wanted)
    return 100 * flickr30k_metrics(truth, predictions)["R@1"]


def _ground(predictor: Predictor, row: dict[str, Any], world: World) -> dict[str, Any]:
    """Rank the boxes of each phrase of a sentence that has any, in the order of the words."""
    boxed = {tuple(span) for spans in row["tokens_positive"] for span in spans}
    spans = [span for begin, end in row["phrases"] if (span := (begin, end)) in boxed]
    if not spans:
        return {"boxes": []}
    (found,) = predictor.ground([open_image(world.flickr30k.images / row["image_uri"])], [row["text"]], [spans])
    boxes: list[list[list[float]]] = [[] for _ in spans]
    for box, _, label in _boxes(found):  # best first already
        boxes[label].append(list(box))
    return {"boxes": boxes}


def _boxes(found: Prediction) -> Iterator[tuple[tuple[float, float, float, float], float, int]]:
    yield from zip(found.boxes_xyxy.tolist(), found.scores, found.labels, strict=True)


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), _BATCH):
        yield items[first : first + _BATCH]
