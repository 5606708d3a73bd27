"""How well a model detects: COCO average precision on COCO-style data sets, base and novel nouns apart."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from PIL import Image, ImageOps

from glipv2.checkpoint import weights_sha256
from glipv2.evaluation.coco import AveragePrecision, average_precision, mean_of
from glipv2.inference.predictor import Prediction, Predictor
from glipv2.text.prompts import Prompt
from pipeline.report.inputs import Score
from pipeline.shards import config_hash, file_sha256, write_atomically
from pipeline.sources.coco import file_name


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A COCO-style data set to be measured on."""

    name: str
    """Shown in tables."""
    annotations: Path
    """COCO json, absolute."""
    images: Path
    """Folder its file names are relative to, absolute."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How models are run."""

    batch_size: int = 16
    """Images per forward pass."""
    num_gpus: float = 0.0
    """GPUs per evaluation; 0 runs on the CPU."""
    threads: int = 1
    """CPU threads per evaluation."""


def evaluate(cfg: EvaluateConfig, models: dict[str, Path], benchmarks: Sequence[Benchmark], out: Path) -> list[Score]:
    """Measure every model on every benchmark, as many models at a time as the cluster has room for.

    Scores are kept in ``<out>/scores.json``: the same models on the same annotations are not measured twice.
    """
    pins = [[name, weights_sha256(model)] for name, model in models.items()]
    wanted = config_hash([asdict(cfg), pins, [[b.name, file_sha256(b.annotations)] for b in benchmarks]])
    path = out / "scores.json"
    if path.exists() and (saved := json.loads(path.read_text(encoding="utf-8")))["hash"] == wanted:
        return [Score(**score) for score in saved["scores"]]
    task = ray.remote(num_cpus=0 if cfg.num_gpus else 1, num_gpus=cfg.num_gpus, max_retries=2)(_evaluate)
    waiting = [task.remote(cfg, name, model, benchmarks) for name, model in models.items()]
    scores = [score for found in ray.get(waiting) for score in found]
    write_atomically(path, json.dumps({"hash": wanted, "scores": [asdict(score) for score in scores]}, indent=1))
    return scores


def _evaluate(cfg: EvaluateConfig, name: str, model: Path, benchmarks: Sequence[Benchmark]) -> list[Score]:
    import torch

    torch.set_num_threads(cfg.threads)
    predictor = Predictor.load(model, "cuda" if cfg.num_gpus else "cpu", batch_size=cfg.batch_size)
    return [_score(name, benchmark, *measure(predictor, benchmark, cfg.batch_size)) for benchmark in benchmarks]


def _score(name: str, benchmark: Benchmark, result: AveragePrecision, found: dict[int, Prediction]) -> Score:
    groups = _groups(benchmark.annotations)
    return Score(
        model=name,
        dataset=benchmark.name,
        ap=result.ap,
        ap50=result.ap50,
        ap50_base=mean_of(result, groups.get("base", [])),
        ap50_novel=mean_of(result, groups.get("novel", [])),
        num_images=len(found),
    )


def measure(
    predictor: Predictor, benchmark: Benchmark, batch_size: int, offset: Any = None, prompt: Prompt | None = None
) -> tuple[AveragePrecision, dict[int, Prediction]]:
    """Run a predictor over a benchmark's images.

    Args:
        predictor: the model.
        benchmark: images and truth.
        batch_size: images in memory at a time.
        offset: learned offset of the text features; goes with ``prompt``.
        prompt: the categories as one prompt; if not given their names are packed into as many as it takes.

    Returns:
        The average precision, and the predictions by image id.
    """
    content = read_annotations(benchmark.annotations)
    names = category_names(content["categories"])
    found: dict[int, Prediction] = {}
    images = content["images"]
    for first in range(0, len(images), batch_size):
        chunk = images[first : first + batch_size]
        pictures = [open_image(benchmark.images / file_name(image)) for image in chunk]
        if prompt is None:
            predictions = predictor.detect(pictures, names)
        else:
            predictions = predictor.detect_prompt(pictures, prompt, offset)
        found |= {image["id"]: prediction for image, prediction in zip(chunk, predictions, strict=True)}
    return average_precision(benchmark.annotations, list(found), list(found.values())), found


def measure_folder(benchmark: Benchmark, device: str, folder: Path) -> dict[str, float]:
    """Measure a model in training: ``val_ap`` and ``val_ap50``, in percent."""
    ap, _ = measure(Predictor.load(folder, device), benchmark, EvaluateConfig().batch_size)
    return {"val_ap": ap.ap, "val_ap50": ap.ap50}


def category_names(categories: list[dict[str, Any]]) -> dict[int, str]:
    """Give the names of all categories by ascending id."""
    return {int(c["id"]): str(c["name"]) for c in sorted(categories, key=lambda c: c["id"])}


def open_image(path: Path) -> Image.Image:
    """Open an image upright, fully read."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def read_annotations(path: Path) -> dict[str, Any]:
    """Read a COCO json.

    Raises:
        ValueError: the file is absent or no COCO json.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as COCO json ({error}); give a file with images and annotations"
        ) from error
    if missing := {"images", "annotations", "categories"} - content.keys():
        raise ValueError(f"{path} lacks {sorted(missing)}; a COCO json has images, annotations and categories")
    return content


def _groups(annotations: Path) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for category in read_annotations(annotations)["categories"]:
        groups.setdefault(category.get("supercategory", ""), []).append(category["id"])
    return groups
