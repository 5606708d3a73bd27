"""Average precision of Pascal VOC, by both of its rules.

The protocol is that of the development kit ("The Pascal Visual Object Classes Challenge", IJCV 2010 and 2015): boxes
include their last pixel; from the highest score down, a detection is compared with the one true box of its class it
overlaps most; it is right if their IoU is at least .5 and the box was not found before; who finds a difficult object
counts as nothing. AP is the area under the falling hull of precision over recall (since 2010), or the mean of its
height at the recalls 0, .1, .. 1 (2007). Of equal scores the first comes first.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from glipv2.evaluation.coco_json import is_box, is_number

logger = logging.getLogger(__name__)

MIN_IOU = 0.5
SIDES = ("xmin", "ymin", "xmax", "ymax")
RESULT = (
    "expected a list of {image_id: name of the XML without its suffix, category: name of the class, bbox "
    "[xmin, ymin, xmax - xmin, ymax - ymin], score}"
)
RESULT_FILE = re.compile(r".*_det_[^_]+_(.+)")
"""Name of a result file of the development kit, as ``comp4_det_test_person.txt``: the class comes last."""

Box = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax as in the XML: both sides included."""


@dataclass(frozen=True, kw_only=True)
class VocObject:
    """An object of an image."""

    name: str
    """Its class."""
    box: Box
    """Where it is."""
    difficult: bool = False
    """Neither to be found nor to be missed."""


class VocDetection(NamedTuple):
    """A box that was found."""

    image: str
    """Name of the image without its suffix."""
    name: str
    """Class."""
    score: float
    """Any scale."""
    box: Box
    """Where."""


def voc_metrics(truth: Mapping[str, Sequence[VocObject]], detections: Iterable[VocDetection]) -> dict[str, float]:
    """Give AP by the area and by the rule of 2007 for each class of the truth, and their means over the classes.

    A class whose objects are all difficult has -1 and no part in the means.

    Args:
        truth: the objects of every image.
        detections: of these images; classes the truth does not have are left out.

    Returns:
        Fractions: mAP and mAP07, then AP_<class> and AP07_<class>.

    Raises:
        ValueError: a detection is of an image the truth does not have.
    """
    names = sorted({item.name for objects in truth.values() for item in objects})
    found: dict[str, list[VocDetection]] = {name: [] for name in names}
    strange = 0
    for detection in detections:
        if detection.image not in truth:
            what = f"the predictions have a box for image {detection.image!r}, which the truth does not have"
            raise ValueError(f"{what}; give predictions of the same images, or name the list of images to score")
        if detection.name in found:
            found[detection.name].append(detection)
        else:
            strange += 1
    if strange:
        logger.warning("left out %d predictions of classes the truth does not have", strange)
    by_rule = {name: _average_precisions(truth, name, found[name]) for name in names}
    report = {}
    for rule, values in (("", [area for area, _ in by_rule.values()]), ("07", [ap for _, ap in by_rule.values()])):
        counted = [value for value in values if value >= 0]
        report[f"mAP{rule}"] = float(np.mean(counted)) if counted else -1.0
        report |= {f"AP{rule}_{name}": value for name, value in zip(names, values, strict=True)}
    return report


def read_objects(folder: Path, images: Sequence[str]) -> dict[str, list[VocObject]]:
    """Read the objects of images from ``<folder>/<image>.xml``.

    Raises:
        ValueError: a file is missing or not of the format.
    """
    truth = {}
    for image in images:
        try:
            objects = ElementTree.parse(folder / f"{image}.xml").getroot().findall("object")
            truth[image] = [_object(item) for item in objects]
        except (OSError, ElementTree.ParseError, ValueError) as error:
            raise ValueError(f"{folder / image}.xml cannot be read as VOC annotation ({error})") from error
    return truth


def read_detections(path: Path) -> list[VocDetection]:
    """Read the development kit's text files of results: one, or all of a folder.

    Raises:
        ValueError: there are none, or one is not of the format.
    """
    files = sorted(path.glob("*_det_*.txt")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} has no results; expected files named as comp4_det_test_person.txt")
    return [detection for file in files for detection in _read_lines(file)]


def detections_of(results: Any) -> list[VocDetection]:
    """Take detections from the content of a json of results.

    Raises:
        ValueError: it is not of the format.
    """
    if not isinstance(results, list):
        raise ValueError(f"the predictions are no list but a {type(results).__name__}; {RESULT}")
    detections = []
    for number, result in enumerate(results):
        name = result.get("category", result.get("category_id")) if isinstance(result, dict) else None
        if not isinstance(name, str) or "image_id" not in result:
            raise ValueError(f"predictions[{number}] is {result!r:.80}; {RESULT}")
        box, score = result.get("bbox"), result.get("score")
        if not is_box(box) or not is_number(score):
            raise ValueError(f"predictions[{number}] has bbox {box!r:.60} and score {score!r:.20}; {RESULT}")
        x, y, width, height = box
        detections.append(VocDetection(str(result["image_id"]), name, score, (x, y, x + width, y + height)))
    return detections


def _object(item: ElementTree.Element) -> VocObject:
    box = [float(item.findtext(f"bndbox/{side}", "")) for side in SIDES]
    difficult = item.findtext("difficult", "0").strip() == "1"
    return VocObject(name=item.findtext("name", "").strip(), box=(box[0], box[1], box[2], box[3]), difficult=difficult)


def _read_lines(file: Path) -> list[VocDetection]:
    match = RESULT_FILE.fullmatch(file.stem)
    if not match:
        raise ValueError(f"{file} does not name a class; expected a name as comp4_det_test_person.txt, or a json")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as text ({error})") from error
    detections = []
    for number, line in enumerate(lines, start=1):
        try:
            image, *values = line.split()
            score, x1, y1, x2, y2 = (float(value) for value in values)
            if not is_box((x1, y1, x2, y2)) or not is_number(score):
                raise ValueError("not finite")
            detections.append(VocDetection(image, match[1], score, (x1, y1, x2, y2)))
        except ValueError as error:
            raise ValueError(f"{file}:{number} is {line!r:.60}; expected: image score xmin ymin xmax ymax") from error
    return detections


def _average_precisions(
    truth: Mapping[str, Sequence[VocObject]], name: str, detections: Sequence[VocDetection]
) -> tuple[float, float]:
    """Give AP of a class by the area and by the rule of 2007."""
    targets = {image: [item for item in objects if item.name == name] for image, objects in truth.items()}
    num_targets = sum(not item.difficult for objects in targets.values() for item in objects)
    if not num_targets:
        return -1.0, -1.0
    right = np.array(_judge(targets, sorted(detections, key=lambda d: -d.score)), np.float64)
    counted = np.cumsum(~np.isnan(right))
    recall = np.nancumsum(right) / num_targets
    precision = np.nancumsum(right) / np.maximum(counted, 1)
    eleven = [precision[recall >= at].max(initial=0) for at in np.arange(11) * 0.1]
    return _area(recall, precision), float(np.mean(eleven))


def _judge(targets: Mapping[str, Sequence[VocObject]], detections: Sequence[VocDetection]) -> list[float]:
    """Tell of each detection whether it is right (1), wrong (0), or counts as nothing (nan)."""
    boxes = {image: np.array([item.box for item in objects]).reshape(-1, 4) for image, objects in targets.items()}
    taken: dict[str, set[int]] = defaultdict(set)
    verdicts = []
    for detection in detections:
        ious = _ious(np.array(detection.box), boxes[detection.image])
        best = int(ious.argmax()) if len(ious) else -1
        if best < 0 or ious[best] < MIN_IOU:
            verdicts.append(0.0)
        elif targets[detection.image][best].difficult:
            verdicts.append(np.nan)
        else:
            verdicts.append(float(best not in taken[detection.image]))
            taken[detection.image].add(best)
    return verdicts


def _ious(box: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + 1
    shared = sides.clip(min=0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(-1) + (box[2:] - box[:2] + 1).prod()
    # The kit compares only where boxes meet; two of them without area would give 0 / 0.
    ious = np.zeros(len(boxes))
    np.divide(shared, areas - shared, out=ious, where=shared > 0)
    return ious


def _area(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    hull = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * hull).sum())
