"""Recall of phrase grounding on Flickr30k Entities, by the any-box and the merged-box protocol.

The protocol is that of "MDETR" (arXiv 2104.12763), which GLIP took over: for every phrase that has boxes, the ranked
boxes found for it are compared with the true ones; it is a hit at k if one of the first k has an IoU of at least .5.
Any-box compares with each box of the phrase (and is what GLIP and GLIPv2 report), merged-box with the smallest one
around all of them. A phrase is every mention: the same words in two captions are two.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from glipv2.evaluation.coco_json import Record, check_truth, is_box, is_number

logger = logging.getLogger(__name__)

MIN_IOU = 0.5
RANKS: dict[str, int | None] = {"R@1": 1, "R@5": 5, "R@10": 10, "R@all": None}
PREDICTION = (
    "expected a list of {image_id, sentence_id, boxes: for each phrase that has boxes a list of [x1, y1, x2, y2], best "
    "first, or with scores: for each phrase a list of numbers}"
)

Sentence = tuple[str, str]
"""Name of the image without its suffix, and number of the caption, from 0."""


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A phrase of a caption that has boxes."""

    boxes_xyxy: NDArray[np.float64]
    """All its boxes, one or more, in px."""
    types: tuple[str, ...] = ()
    """What it is of: people, clothing, bodyparts, animals, vehicles, instruments, scene, other."""


def flickr30k_metrics(
    truth: Mapping[Sentence, Sequence[Phrase]], predictions: Sequence[Record], *, merged: bool = False
) -> dict[str, float]:
    """Give the recalls over all phrases, and over those of each type.

    Of two predictions for a sentence the first counts; predictions for sentences without a phrase to score are left
    out. Boxes with equal scores keep their order.

    Args:
        truth: per caption its phrases that have boxes, in the order of the words.
        predictions: per caption ``image_id``, ``sentence_id`` and, per phrase as above, ``boxes``, ranked or with
            ``scores``. No box at all is a miss.
        merged: the merged-box protocol instead of the any-box protocol.

    Returns:
        Fractions R@1, R@5, R@10 and R@all, and the number of phrases and sentences; for a type as R@1_people.

    Raises:
        ValueError: predictions are not of the format, or there are none for a sentence.
    """
    found = _check_predictions(predictions)
    if missing := [sentence for sentence in truth if sentence not in found]:
        image, number = missing[0]
        raise ValueError(
            f"the predictions lack {len(missing)} of {len(truth)} sentences, the first being {number} of image "
            f"{image}; give predictions for every sentence, or name the list of images that were predicted"
        )
    if strange := len(found.keys() - truth.keys()):
        logger.warning("left out predictions for %d sentences that have no phrase to score", strange)
    hits: dict[str, list[list[bool]]] = defaultdict(list)
    for sentence, phrases in truth.items():
        ranked = _ranked_boxes(found[sentence], len(phrases))
        for phrase, boxes in zip(phrases, ranked, strict=True):
            hit = _hits(boxes, _around(phrase.boxes_xyxy) if merged else phrase.boxes_xyxy)
            for kind in ("", *phrase.types):
                hits[kind].append(hit)
    return _report(hits, len(truth))


def read_entities(folder: Path, images: Sequence[str]) -> dict[Sentence, list[Phrase]]:
    """Read phrases from a Flickr30k Entities folder: ``Annotations/<image>.xml`` and ``Sentences/<image>.txt``.

    Raises:
        ValueError: a file is missing or not of the format.
    """
    truth = {}
    for image in images:
        annotations, sentences = folder / "Annotations" / f"{image}.xml", folder / "Sentences" / f"{image}.txt"
        try:
            boxes = _boxes(ElementTree.parse(annotations).getroot())
            lines = [line for line in sentences.read_text(encoding="utf-8").split("\n") if line]
        except (OSError, ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: image {image} cannot be read as Flickr30k Entities ({error})") from error
        for number, line in enumerate(lines):
            phrases = [
                Phrase(boxes_xyxy=np.array(boxes[name], np.float64), types=types)
                for name, types in _mentions(line)
                if name in boxes
            ]
            if phrases:
                truth[image, str(number)] = phrases
    return truth


def read_mdetr(content: Record) -> dict[Sentence, list[Phrase]]:
    """Read phrases from MDETR's json, where the spans of ``tokens_positive_eval`` are the phrases of a caption.

    A box belongs to a phrase if their spans meet. MDETR's json holds boxes that overlap almost wholly only once and no
    types, so only the folder gives its numbers to the last digit.

    Raises:
        ValueError: it is not MDETR's json.
    """
    check_truth({**content, "categories": []} if isinstance(content, dict) else content)
    boxes: dict[Any, list[Record]] = defaultdict(list)
    for annotation in content["annotations"]:
        boxes[annotation["image_id"]].append(annotation)
    truth = {}
    for number, image in enumerate(content["images"]):
        try:
            sentence = str(image["original_img_id"]), str(image["sentence_id"])
            targets = [_targets(spans, boxes[image["id"]]) for spans in image["tokens_positive_eval"]]
        except (KeyError, TypeError, ValueError) as error:
            needed = "original_img_id, sentence_id and tokens_positive_eval, and tokens_positive for every box"
            raise ValueError(f"images[{number}] of the truth is not MDETR's ({error!r}); expected {needed}") from error
        if phrases := [Phrase(boxes_xyxy=np.array(found, np.float64)) for found in targets if found]:
            truth[sentence] = phrases
    return truth


def _mentions(line: str) -> list[tuple[str, tuple[str, ...]]]:
    """Find the marked phrases of a caption, ``[/EN#id/type/... words]``: their ids and types."""
    mentions, opened = [], None
    for word in line.split():
        if opened is None and word.startswith("[/EN#"):
            _, name, *types = word.split("/")
            opened = name.removeprefix("EN#"), tuple(types)
        elif opened is not None and word.endswith("]"):
            mentions.append(opened)
            opened = None
    return mentions


def _boxes(root: ElementTree.Element) -> dict[str, list[list[int]]]:
    """Collect the boxes of every id; an object may have several names, but at most one box."""
    boxes: dict[str, list[list[int]]] = defaultdict(list)
    for item in root.findall("object"):
        box = item.find("bndbox")
        for name in item.findall("name"):
            if box is not None:
                boxes[str(name.text)].append([int(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")])
    return boxes


def _targets(spans: Sequence[Sequence[int]], annotations: Sequence[Record]) -> list[list[float]]:
    return [
        [x, y, x + width, y + height]
        for a in annotations
        for x, y, width, height in [a["bbox"]]
        if any(begin < e and b < end for begin, end in spans for b, e in a["tokens_positive"])
    ]


def _check_predictions(predictions: Any) -> dict[Sentence, Record]:
    """Sort the predictions by sentence."""
    if not isinstance(predictions, list):
        raise ValueError(f"the predictions are no list but a {type(predictions).__name__}; {PREDICTION}")
    found: dict[Sentence, Record] = {}
    for number, prediction in enumerate(predictions):
        keys = prediction.keys() if isinstance(prediction, dict) else set()
        if missing := {"image_id", "sentence_id", "boxes"} - keys:
            raise ValueError(f"predictions[{number}] lacks {', '.join(sorted(missing))}; {PREDICTION}")
        sentence = str(prediction["image_id"]), str(prediction["sentence_id"])
        if sentence in found:
            logger.warning("predictions[%d] is a second one for sentence %s of image %s", number, *sentence[::-1])
        found.setdefault(sentence, {**prediction, "number": number})
    return found


def _ranked_boxes(prediction: Record, num_phrases: int) -> list[NDArray[np.float64]]:
    """Check the boxes of a sentence and put the best first."""
    name, boxes = f"predictions[{prediction['number']}]", prediction["boxes"]
    if not isinstance(boxes, list) or not all(isinstance(found, list) and all(map(is_box, found)) for found in boxes):
        raise ValueError(f"{name} has boxes {boxes!r:.60}; {PREDICTION}")
    if len(boxes) != num_phrases:
        what = f"{name} has boxes for {len(boxes)} phrases, but {num_phrases} phrases of the sentence have boxes"
        raise ValueError(f"{what}; give one list, be it empty, for each of these in the order of the words")
    arrays = [np.array(found, np.float64).reshape(-1, 4) for found in boxes]
    if "scores" not in prediction:
        return arrays
    scores = prediction["scores"]
    sound = isinstance(scores, list) and all(isinstance(found, list) and all(map(is_number, found)) for found in scores)
    if not sound or [len(found) for found in scores] != [len(found) for found in boxes]:
        raise ValueError(f"{name} has scores {scores!r:.60}, not one for each box; {PREDICTION}")
    orders = [np.argsort(-np.array(found, np.float64), kind="stable") for found in scores]
    return [found[order] for found, order in zip(arrays, orders, strict=True)]


def _around(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])[None]


def _hits(boxes: NDArray[np.float64], targets: NDArray[np.float64]) -> list[bool]:
    """Tell for each rank whether it is a hit."""
    corners = np.maximum(boxes[:, None, :2], targets[:, :2]), np.minimum(boxes[:, None, 2:], targets[:, 2:])
    shared = (corners[1] - corners[0]).clip(min=0).prod(-1)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, targets)]
    with np.errstate(invalid="ignore", divide="ignore"):  # two boxes without area: a nan, which is a miss
        ious = shared / (areas[0][:, None] + areas[1] - shared)
    return [bool(ious[:rank].max(initial=0) >= MIN_IOU) for rank in RANKS.values()]


def _report(hits: Mapping[str, Sequence[Sequence[bool]]], num_sentences: int) -> dict[str, float]:
    report: dict[str, float] = {}
    for kind in sorted({"", *hits}):
        own, suffix = np.array(hits.get(kind, []), bool).reshape(-1, len(RANKS)), f"_{kind}" if kind else ""
        recalls = own.mean(0).tolist() if len(own) else [-1.0] * len(RANKS)
        report |= {f"{name}{suffix}": recall for name, recall in zip(RANKS, recalls, strict=True)}
        report[f"phrases{suffix}"] = len(own)
        if not kind:
            report["sentences"] = num_sentences
    return report
