"""Look at one's own pictures: boxes as a list and drawn, found by a model in one process without Ray."""

import io
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps

from glipv2.image import UNREADABLE, to_rgb
from glipv2.inference.postprocess import PostprocessConfig
from glipv2.inference.predictor import Prediction, Predictor
from glipv2.text.tokenizer import CharSpan
from pipeline.paths import NOT_GIVEN, require
from pipeline.report import Picture
from pipeline.report.pictures import draw, phrase_colours
from pipeline.report.tables import unique
from pipeline.shards import write_atomically

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Endings of the files taken from a folder."""
PREDICTIONS, PICTURES = "predictions.json", "pictures"
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """One model on some pictures."""

    images: tuple[Path, ...] = ()
    """Pictures, and folders of pictures (without their subfolders); on the command line they come first, without this
    flag."""
    checkpoint: Path = NOT_GIVEN
    """Model folder, absolute."""
    text: str = ""
    """A sentence whose noun phrases are looked for in every picture; or names divided by full stops, those after the
    first in small letters: ``cat. remote control``."""
    categories: tuple[str, ...] = ()
    """Names to look for, any number of them. Either these or a text."""
    out: Path = NOT_GIVEN
    """Folder for ``predictions.json`` and the drawn pictures, absolute."""
    min_score: float = 0.3
    """Boxes below it are left out."""
    max_detections: int = 100
    """Most boxes per picture."""
    batch_size: int = 8
    """Pictures in memory, and at most in a forward pass, at a time."""
    device: Device = "auto"
    """Where the model runs; auto takes the GPU if there is one."""
    bf16: bool = False
    """Run the network in bfloat16: faster on a GPU, scores differ in the second digit."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score is {self.min_score}; give a number between 0 and 1")
        for name in ("batch_size", "max_detections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        if not self.images:
            raise ValueError("no picture is given; give pictures or folders of pictures before all flags")
        for path in self.images:
            require(images=path)
        require(checkpoint=self.checkpoint, out=self.out)
        if bool(self.categories) == bool(self.text.strip()):
            given = "both are given" if self.categories else "neither is given"
            raise ValueError(f"--text or --categories: {given}; give one of the two")


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What is looked for: names, or phrases of a sentence."""

    names: tuple[str, ...] = ()
    sentence: str = ""
    spans: tuple[CharSpan, ...] = ()

    @property
    def phrases(self) -> list[str]:
        return unique(self.names or (self.sentence[slice(*span)] for span in self.spans))


def predict(cfg: PredictJob) -> str:
    """Find boxes in all pictures, write and draw them, and say in one line what came of it.

    EXIF orientation is applied first: boxes belong to the picture as viewers show it.

    Raises:
        ValueError: there is no picture that can be read, two have one name, or the model is none.
    """
    files = list_pictures(cfg.images)
    limits = PostprocessConfig(max_detections=cfg.max_detections)
    device = choose_device(cfg.device)
    predictor = Predictor.load(cfg.checkpoint, device, limits, bf16=cfg.bf16, batch_size=cfg.batch_size)
    wanted = _understand(cfg, predictor)
    logger.info("looking for %s", ", ".join(map(repr, wanted.phrases)))
    (cfg.out / PICTURES).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    seen = 0
    for first in range(0, len(files), cfg.batch_size):
        batch = files[first : first + cfg.batch_size]
        opened = {file: image for file in batch if (image := open_picture(file)) is not None}
        seen += len(opened)
        for (file, image), found in zip(opened.items(), _find(predictor, wanted, [*opened.values()]), strict=True):
            best = [i for i, score in enumerate(found.scores) if score >= cfg.min_score]
            rows += [_row(file, found, i) for i in best]
            (cfg.out / PICTURES / f"{file.name}.jpg").write_bytes(_draw(wanted, file, image, found, best))
    if not seen:
        raise ValueError(f"none of the {len(files)} pictures can be read; give others")
    write_atomically(cfg.out / PREDICTIONS, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    unread = f", {len(files) - seen} could not be read" if seen < len(files) else ""
    return f"{len(rows)} boxes in {seen} pictures{unread}: {cfg.out / PREDICTIONS}, drawn in {cfg.out / PICTURES}"


def choose_device(wanted: Device) -> str:
    """Choose where a model runs, and say so.

    Raises:
        ValueError: a GPU is wanted and there is none.
    """
    usable = torch.cuda.is_available()
    if wanted == "cuda" and not usable:
        raise ValueError("--device is cuda, but there is no usable GPU; give --device cpu")
    device = "cuda" if usable and wanted != "cpu" else "cpu"
    logger.info("the model runs on the %s", torch.cuda.get_device_name() if device == "cuda" else "CPU")
    return device


def list_pictures(images: Sequence[Path]) -> list[Path]:
    """List the pictures that paths stand for, those of a folder by name.

    Raises:
        ValueError: there is none, or two have the same name.
    """
    files = [file for path in images for file in _pictures_of(path)]
    by_name: dict[str, Path] = {}
    for file in files:
        if (other := by_name.setdefault(file.name, file)) != file:
            raise ValueError(f"{other} and {file} have one name, and so would their results; give them one by one")
    return list(by_name.values())


def names_in(text: str) -> tuple[str, ...]:
    """Read a text as names divided by full stops; none if it is a sentence, or several."""
    pieces = [piece.strip() for piece in re.split(r"\.(?:\s+|$)", text.strip()) if piece.strip()]
    return tuple(pieces) if len(pieces) > 1 and all(piece[0].islower() for piece in pieces[1:]) else ()


def open_picture(file: Path) -> Image.Image | None:
    """Open a picture upright and in colour; one that cannot be read is told and left out."""
    try:
        with Image.open(file) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except UNREADABLE as error:
        logger.warning("%s is left out: %s", file.name, error)
        return None


def _pictures_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist; give pictures or folders of pictures")
    found = sorted(inner for inner in path.iterdir() if inner.suffix.lower() in SUFFIXES and inner.is_file())
    if not found:
        raise ValueError(f"{path} holds no picture; files ending in {' '.join(sorted(SUFFIXES))} are looked for")
    return found


def _understand(cfg: PredictJob, predictor: Predictor) -> _Wanted:
    """Take names as given; of a sentence its noun phrases, and if it has none, the whole as one name."""
    if names := cfg.categories or names_in(cfg.text):
        return _Wanted(names=names)
    spans = tuple((phrase.begin, phrase.end) for phrase in predictor.parser(cfg.text))
    return _Wanted(sentence=cfg.text, spans=spans) if spans else _Wanted(names=(cfg.text.strip(" ."),))


def _find(predictor: Predictor, wanted: _Wanted, images: Sequence[Image.Image]) -> list[Prediction]:
    if wanted.names:
        return predictor.detect(images, wanted.names)
    return predictor.ground(images, [wanted.sentence] * len(images), [wanted.spans] * len(images))


def _row(file: Path, found: Prediction, i: int) -> dict[str, Any]:
    x1, y1, x2, y2 = found.boxes_xyxy[i].tolist()
    return {
        "file": file.name,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": found.scores[i],
        "label": found.labels[i],
        "phrase": found.phrases[i],
        "span": found.spans[i] if found.spans else None,
    }


def _draw(wanted: _Wanted, file: Path, image: Image.Image, found: Prediction, best: Sequence[int]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "BMP")
    picture = Picture(
        image=stream.getvalue(),
        title=file.name,
        boxes=found.boxes_xyxy[list(best)].tolist(),
        phrases=[found.phrases[i] for i in best],
        scores=[found.scores[i] for i in best],
        group="Predictions",
    )
    return draw(picture, phrase_colours(wanted.phrases))
