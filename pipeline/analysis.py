"""What a detector gets right and wrong on a COCO-style data set, from any tool's predictions."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glipv2.checkpoint import weights_sha256
from glipv2.evaluation.coco_json import Record
from glipv2.evaluation.errors import SIZES_PX, Judged, Point, judge
from glipv2.inference.postprocess import PostprocessConfig
from glipv2.inference.predictor import Predictor
from pipeline import summary
from pipeline.analysis_absent import AbsentConfig, ask_for_absent
from pipeline.analysis_pictures import worst_pictures
from pipeline.evaluate import read_annotations
from pipeline.paths import NOT_GIVEN, require
from pipeline.predict import Device, choose_device
from pipeline.report import Analysis, ClassResult, NameRate, ReportInputs, SizeResult
from pipeline.report.analysis_tables import total
from pipeline.shards import config_hash, file_sha256, write_atomically
from pipeline.summary import Outcome, publish
from pipeline.tracking import open_run

NUMBERS = "analysis.json"
MAX_CLASS_METRICS = 300
"""With more classes, those of single classes are in the json only, not in MLflow."""
ABSENT_DETECTIONS = 300


@dataclass(frozen=True, kw_only=True)
class AnalyseJob:
    """Predictions of one detector on one data set."""

    annotations: Path = NOT_GIVEN
    """COCO json with the truth, absolute."""
    images: Path = NOT_GIVEN
    """Folder its file names are relative to, absolute."""
    predictions: Path = NOT_GIVEN
    """COCO results json of any tool, absolute: a list of ``{image_id, category_id, bbox, score}``."""
    out: Path = NOT_GIVEN
    """Folder for the report, ``analysis.json`` and the default MLflow store, absolute."""
    checkpoint: Path = NOT_GIVEN
    """Model folder, absolute: with it the model is also asked for what pictures do not show."""
    threshold: float = 0.3
    """Deployed threshold: a user sees boxes of at least this score."""
    pictures: int = 6
    """Pictures of each kind of mistake."""
    absent: AbsentConfig = field(default_factory=AbsentConfig)
    """What the model is asked for, given a checkpoint."""
    device: Device = "auto"
    """Where the model runs; auto takes the GPU if there is one."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold is {self.threshold}; give a number, as the predictions' scores are")
        if self.pictures < 0:
            raise ValueError(f"pictures is {self.pictures}; give 0 or more")

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        require(annotations=self.annotations, images=self.images, predictions=self.predictions, out=self.out)
        if self.checkpoint != NOT_GIVEN:
            require(checkpoint=self.checkpoint)
        elif self.absent.names:
            raise ValueError("--absent.names is given without --checkpoint; give the model to be asked")


def analyse(cfg: AnalyseJob) -> Outcome:
    """Judge the predictions, ask the model if there is one, and write numbers and report.

    Raises:
        ValueError: truth, predictions or model cannot be read, or do not belong together.
    """
    if not cfg.images.is_dir():
        raise ValueError(f"--images is {cfg.images}, which is no folder; give the one the truth's file names are in")
    content = read_annotations(cfg.annotations)
    judged = judge(content, _read_results(cfg.predictions))
    absent, weights = _ask(cfg, judged) if cfg.checkpoint != NOT_GIVEN else ([], {})
    hashes = {name: file_sha256(getattr(cfg, name)) for name in ("annotations", "predictions")}
    hashes |= weights
    with open_run(cfg.out, "analyse", config_hash([asdict(cfg), hashes]), asdict(cfg)) as run:
        run.tags(hashes)
        analysis = summarise(judged, cfg, absent)
        write_atomically(cfg.out / NUMBERS, json.dumps(numbers(analysis), indent=1, allow_nan=False) + "\n")
        run.artifact(cfg.out / NUMBERS)
        run.metrics(metrics(analysis))
        inputs = ReportInputs(
            **summary.header(f"Mistakes on {analysis.dataset}", run, asdict(cfg)),
            input_hashes=hashes,
            analysis=analysis,
            pictures=worst_pictures(judged, cfg.images, cfg.threshold, cfg.pictures),
            notes=list(_notes(content, judged, analysis)),
        )
        return publish(inputs, cfg.out, run)


def summarise(judged: Judged, cfg: AnalyseJob, absent: list[NameRate]) -> Analysis:
    """Gather what a report shows."""
    curves = judged.category_curves()
    classes = [
        ClassResult(name=name, measures=judged.measures[id_], curve=curves[id_])
        for id_, name in judged.categories.items()
    ]
    overall = judged.overall
    return Analysis(
        dataset=cfg.annotations.stem,
        num_images=len(judged.images),
        threshold=cfg.threshold,
        measures=overall,
        overall=judged.curve(),
        classes=sorted(classes, key=lambda c: -c.curve.num_truth),
        kinds={kind.words: number for kind, number in judged.kinds(cfg.threshold).items()},
        sizes=[_size(judged, name, cfg.threshold, overall[f"AP{name[0]}"]) for name in SIZES_PX],
        calibration=judged.calibration(),
        absent=absent,
    )


def numbers(analysis: Analysis) -> dict[str, Any]:
    """Give every number of an analysis as json has it: fractions, null where there is none."""
    content = {
        "dataset": analysis.dataset,
        "num_images": analysis.num_images,
        "num_truth": analysis.overall.num_truth,
        "measures": analysis.measures,
        "deployed": _point(analysis.overall.at(analysis.threshold)),
        "best": _point(analysis.overall.best()),
        "classes": [
            {
                "name": c.name,
                "num_truth": c.curve.num_truth,
                "measures": c.measures,
                "deployed": _point(c.curve.at(analysis.threshold)),
                "best": _point(c.curve.best()),
            }
            for c in analysis.classes
        ],
        "false_positives": analysis.kinds,
        "sizes": [asdict(size) for size in analysis.sizes],
        "calibration": asdict(analysis.calibration) if analysis.calibration else None,
        "absent": [asdict(rate) for rate in analysis.absent],
    }
    return {key: _finite(value) for key, value in content.items()}


def metrics(analysis: Analysis) -> dict[str, float]:
    """Give the numbers that compare runs, by names MLflow takes; what is no number is left out."""
    deployed, best = analysis.overall.at(analysis.threshold), analysis.overall.best()
    found = {
        **analysis.measures,
        "precision": deployed.precision,
        "recall": deployed.recall,
        "f1": deployed.f1,
        "best_f1": best.f1,
        "best_threshold": best.threshold,
        "calibration_error": analysis.calibration.error if analysis.calibration else math.nan,
    }
    found |= {f"false_positives/{kind}": float(number) for kind, number in analysis.kinds.items()}
    for key, listed in (("absent_found", False), ("absent_found_further", True)):
        rate = total(analysis.absent, listed=listed)
        found |= {key: rate.num_absent_found / rate.num_absent} if rate.num_absent else {}
    if len(analysis.classes) <= MAX_CLASS_METRICS:
        found |= {
            f"class_AP/{re.sub(r'[^-_ a-zA-Z0-9]', '_', c.name) or '_'}": c.measures["AP"] for c in analysis.classes
        }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _read_results(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as json ({error}); give COCO results") from error


def _ask(cfg: AnalyseJob, judged: Judged) -> tuple[list[NameRate], dict[str, str]]:
    """Run the absent-prompt test; tell also which weights answered."""
    limits = PostprocessConfig(max_detections=ABSENT_DETECTIONS)
    predictor = Predictor.load(cfg.checkpoint, choose_device(cfg.device), limits, batch_size=cfg.absent.batch_size)
    rates = ask_for_absent(predictor, judged, cfg.images, cfg.threshold, cfg.absent)
    return rates, {"checkpoint": weights_sha256(cfg.checkpoint)}


def _size(judged: Judged, name: str, threshold: float, ap: float) -> SizeResult:
    low, high = SIZES_PX[name]
    found = [
        at >= threshold for t, at in zip(judged.truth, judged.found_at.tolist(), strict=True) if low <= t["area"] < high
    ]
    return SizeResult(name=name, num_truth=len(found), num_found=sum(found), ap=ap)


def _notes(content: Record, judged: Judged, analysis: Analysis) -> Iterator[str]:
    if not judged.detections:
        yield "There are no predictions."
    if not judged.truth:
        yield "There is no truth but crowds: every detection counts as wrong, and no average precision can be given."
    if crowds := sum(bool(a.get("iscrowd")) for a in content["annotations"]):
        yield f"Crowds in the truth: {crowds}. What lies in them is neither right nor wrong, as COCO has it."
    if analysis.calibration is None:
        yield "Scores are no fractions from 0 to 1, so there is nothing to calibrate."
    if any("neg_category_ids" in image for image in judged.images.values()):
        yield (
            "Images of this data set are annotated for some categories only; detections of others are left out. "
            "Average precision is COCO's all the same, at most 100 detections per image and category, not that of LVIS."
        )


def _point(point: Point) -> dict[str, float]:
    return {**asdict(point), "precision": point.precision, "recall": point.recall, "f1": point.f1}


def _finite(value: Any) -> Any:
    """Replace what is no number by null, which json lacks a word for."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
