"""Look at one's own pictures: boxes as a list and drawn, found by a model in one process without Ray."""

import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps

from glipv2.image import to_rgb
from glipv2.inference.postprocess import PostprocessConfig
from glipv2.inference.predictor import Prediction, Predictor
from pipeline.paths import NOT_GIVEN, require
from pipeline.report import Picture
from pipeline.report.pictures import draw, phrase_colours
from pipeline.shards import write_atomically

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Endings of the files taken from a folder."""
PREDICTIONS, PICTURES = "predictions.json", "pictures"


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """One model on some pictures."""

    model: Path = NOT_GIVEN
    """Model folder, absolute."""
    images: Path = NOT_GIVEN
    """A picture, or a folder of pictures (without its subfolders), absolute."""
    categories: tuple[str, ...] = ()
    """Names to look for, any number of them. Either these or a caption."""
    caption: str = ""
    """A sentence whose noun phrases are looked for in every picture."""
    out: Path = NOT_GIVEN
    """Folder for ``predictions.json`` and the drawn pictures, absolute."""
    min_score: float = 0.3
    """Boxes below it are left out."""
    max_detections: int = 100
    """Most boxes per picture."""
    batch_size: int = 8
    """Pictures in memory, and at most in a forward pass, at a time."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model runs."""
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
        require(model=self.model, images=self.images, out=self.out)
        if bool(self.categories) == bool(self.caption):
            given = "both are given" if self.caption else "neither is given"
            raise ValueError(f"--categories or --caption: {given}; give one of the two")


def predict(cfg: PredictJob) -> str:
    """Find boxes in all pictures, write and draw them, and say in one line what came of it.

    EXIF orientation is applied first: boxes belong to the picture as viewers show it.

    Raises:
        ValueError: the folder holds no picture that can be read, or the model is none.
    """
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but there is no usable GPU; give --device cpu")
    files = list_pictures(cfg.images)
    limits = PostprocessConfig(max_detections=cfg.max_detections)
    predictor = Predictor.load(cfg.model, cfg.device, limits, bf16=cfg.bf16, batch_size=cfg.batch_size)
    (cfg.out / PICTURES).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    seen = 0
    for first in range(0, len(files), cfg.batch_size):
        opened = {file: image for file in files[first : first + cfg.batch_size] if (image := _open(file)) is not None}
        seen += len(opened)
        for (file, image), found in zip(opened.items(), _find(cfg, predictor, list(opened.values())), strict=True):
            best = [i for i, score in enumerate(found.scores) if score >= cfg.min_score]
            rows += [_row(file, found, i) for i in best]
            (cfg.out / PICTURES / f"{file.name}.jpg").write_bytes(_draw(cfg, file, image, found, best))
    if not seen:
        raise ValueError(f"none of the {len(files)} pictures in {cfg.images} can be read; give others")
    write_atomically(cfg.out / PREDICTIONS, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    unread = f", {len(files) - seen} could not be read" if seen < len(files) else ""
    return f"{len(rows)} boxes in {seen} pictures{unread}: {cfg.out / PREDICTIONS}, drawn in {cfg.out / PICTURES}"


def list_pictures(images: Path) -> list[Path]:
    """List the pictures a path stands for, by name.

    Raises:
        ValueError: there is none.
    """
    if images.is_file():
        return [images]
    if not images.is_dir():
        raise ValueError(f"--images is {images}, which does not exist; give a picture or a folder of pictures")
    found = sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"{images} holds no picture; files ending in {' '.join(sorted(SUFFIXES))} are looked for")
    return found


def _find(cfg: PredictJob, predictor: Predictor, images: Sequence[Image.Image]) -> list[Prediction]:
    if cfg.categories:
        return predictor.detect(images, cfg.categories)
    return predictor.ground(images, [cfg.caption] * len(images))


def _open(file: Path) -> Image.Image | None:
    """Open a picture upright and in colour; one that cannot be read is told and left out."""
    try:
        with Image.open(file) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        logger.warning("%s is left out: %s", file.name, error)
        return None


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


def _draw(cfg: PredictJob, file: Path, image: Image.Image, found: Prediction, best: Sequence[int]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "BMP")
    phrases = [found.phrases[i] for i in best]
    picture = Picture(
        image=stream.getvalue(),
        title=file.name,
        boxes=found.boxes_xyxy[list(best)].tolist(),
        phrases=phrases,
        scores=[found.scores[i] for i in best],
        group="Predictions",
        caption=cfg.caption,
    )
    return draw(picture, phrase_colours([*cfg.categories, *phrases]))
