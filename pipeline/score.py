"""Scores of a file of predictions, as the official tools give them: files in, json out, without Ray."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glipv2.evaluation import flickr30k, voc
from glipv2.evaluation.coco import coco_metrics
from glipv2.evaluation.lvis import lvis_metrics
from pipeline.paths import NOT_GIVEN, require
from pipeline.sources.voc import read_image_list

Metric = Literal["coco-bbox", "coco-segm", "lvis", "lvis-fixed", "flickr30k-any", "flickr30k-merged", "voc"]


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """One metric on one file of predictions."""

    metric: Metric
    """Protocol; see `glipv2.evaluation` for each one's rules."""
    truth: Path = NOT_GIVEN
    """What is right, absolute: a COCO or LVIS json; for flickr30k the folder with ``Annotations`` and ``Sentences``, or
    MDETR's json; for voc the folder with ``Annotations``."""
    predictions: Path = NOT_GIVEN
    """What was found, absolute: a json, or for voc also a result file of the development kit or a folder of these; a
    wrong one is answered with what is expected."""
    subset: str = ""
    """List of the images to score, of a folder as truth: ``<truth>/<subset>.txt`` or
    ``<truth>/ImageSets/Main/<subset>.txt``; if not given ``test`` where there is one, otherwise all."""
    masks: bool = False
    """For lvis: compare masks instead of boxes."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        require(truth=self.truth, predictions=self.predictions)


def score(cfg: ScoreJob) -> str:
    """Compute the metrics of a protocol and write them as json: fractions by the official names, -1 without truth.

    Raises:
        ValueError: truth or predictions cannot be read, or do not belong together.
    """
    return json.dumps(_metrics(cfg), indent=1, allow_nan=False)


def _metrics(cfg: ScoreJob) -> dict[str, float]:
    match cfg.metric:
        case "coco-bbox":
            return coco_metrics(_read_json(cfg.truth), _read_json(cfg.predictions), "bbox")
        case "coco-segm":
            return coco_metrics(_read_json(cfg.truth), _read_json(cfg.predictions), "segm")
        case "lvis" | "lvis-fixed":
            truth, predictions = _read_json(cfg.truth), _read_json(cfg.predictions)
            return lvis_metrics(truth, predictions, "segm" if cfg.masks else "bbox", fixed=cfg.metric == "lvis-fixed")
        case "flickr30k-any" | "flickr30k-merged":
            phrases = (
                flickr30k.read_entities(cfg.truth, _images(cfg))
                if cfg.truth.is_dir()
                else flickr30k.read_mdetr(_read_json(cfg.truth))
            )
            merged = cfg.metric == "flickr30k-merged"
            return flickr30k.flickr30k_metrics(phrases, _read_json(cfg.predictions), merged=merged)
        case "voc":
            objects = voc.read_objects(_annotations(cfg.truth), _images(cfg))
            is_text = cfg.predictions.is_dir() or cfg.predictions.suffix == ".txt"
            found = voc.read_detections(cfg.predictions) if is_text else voc.detections_of(_read_json(cfg.predictions))
            return voc.voc_metrics(objects, found)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as json ({error})") from error


def _annotations(truth: Path) -> Path:
    return truth / "Annotations" if (truth / "Annotations").is_dir() else truth


def _images(cfg: ScoreJob) -> list[str]:
    """List the images to score, by their names without suffix."""
    if found := read_image_list(cfg.truth, cfg.subset or "test"):
        return found[1]
    if cfg.subset:
        name = f"{cfg.subset}.txt"
        raise ValueError(f"{cfg.truth} has neither {name} nor ImageSets/Main/{name}; give another --subset, or none")
    images = sorted(path.stem for path in _annotations(cfg.truth).glob("*.xml"))
    if not images:
        raise ValueError(f"{cfg.truth} has no annotations; expected <image>.xml in it or in its folder Annotations")
    return images
