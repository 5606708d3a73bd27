"""Few-shot transfer to many data sets as one Ray Tune sweep (ODinW protocol; GLIP appendix E, GLIPv2 section 4.3).

Every trial is one (data set, mode, shots, seed): zero-shot measures the model as it is; prompt tuning learns one offset
matrix on the drawn images, keeps the epoch that is best on the validation split and is measured once on the test split.
A sweep that was killed continues: finished trials are kept.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune import Callback, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial as TuneTrial

from glipv2.checkpoint import load, weights_sha256
from glipv2.image import prepare, scale_boxes
from glipv2.inference.predictor import Predictor
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import GroundingSample, collate, covers
from glipv2.text.prompts import Prompt
from glipv2.text.tokenizer import Tokenizer
from glipv2.transfer.prompt import CachedBatch, PromptTuning, PromptTuningConfig, cache
from pipeline.evaluate import Benchmark, measure, open_image, read_annotations
from pipeline.progress import Progress
from pipeline.report.inputs import ZERO_SHOT, Trial
from pipeline.shards import config_hash, file_sha256, write_atomically
from pipeline.sources.odinw import OdinwDataset, few_shot_images, list_datasets, make_prompt
from pipeline.tracking import Run

PROMPT = "prompt"
RESULTS = "trials.json"
PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Which shots and seeds are tried, and how each trial trains."""

    shots: tuple[int, ...] = (1, 3)
    """Training images per category; zero-shot is always measured."""
    seeds: tuple[int, ...] = (3, 30, 300)
    """One draw of images each."""
    tuning: PromptTuningConfig = field(default_factory=PromptTuningConfig)
    """The optimiser of a trial."""
    max_epochs: int = 200
    """Longest training, epochs."""
    copies: int = 4
    """How often the drawn images occur in an epoch."""
    step_patience: int = 3
    """Evaluations without improvement before the learning rate drops tenfold."""
    stop_patience: int = 8
    """Evaluations without improvement before a trial stops."""
    evaluate_every: int = 1
    """Epochs between evaluations on the validation split."""
    batch_size: int = 16
    """Images per forward pass when measuring."""
    max_concurrent: int = 2
    """Trials side by side."""
    num_gpus: float = 0.0
    """GPUs per trial; 0 runs on the CPU."""
    use_paper_prompts: bool = True
    """Use the prompts the paper wrote for six of the data sets."""

    def __post_init__(self) -> None:
        """Check the counts."""
        if any(shots < 1 for shots in self.shots):
            raise ValueError(f"shots is {self.shots}; give counts from 1 up, zero-shot is always measured")


@dataclass(frozen=True, kw_only=True)
class SweepInputs:
    """What is tuned, and on what."""

    model: Path
    """Model folder (`glipv2.checkpoint`), absolute."""
    root: Path
    """Folder of data sets in ODinW's layout, absolute."""
    datasets: tuple[str, ...] = ()
    """Names of the data sets; empty takes all that are found."""


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What one trial is."""

    dataset: str
    """Name of the data set."""
    mode: str
    """``zero-shot`` or ``prompt``."""
    shots: int
    """0 for zero-shot."""
    seed: int
    """Draw of the training images."""

    @property
    def name(self) -> str:
        """Name in charts and tables."""
        return f"{self.dataset}-{self.mode}" + (f"-{self.shots}shot-seed{self.seed}" if self.shots else "")


def sweep(cfg: SweepConfig, inputs: SweepInputs, out: Path, run: Run) -> list[Trial]:
    """Run all trials into ``out`` and return them; a finished sweep is only read.

    Raises:
        ValueError: a data set is missing, or ``out`` holds another sweep.
        RuntimeError: a trial failed; the message names it.
    """
    datasets = find_datasets(inputs)
    plan = config_hash([asdict(cfg), weights_sha256(inputs.model), [_dataset_hash(d) for d in datasets]])
    out.mkdir(parents=True, exist_ok=True)
    if (out / PLAN).exists() and (found := json.loads((out / PLAN).read_text(encoding="utf-8"))["hash"]) != plan:
        raise ValueError(
            f"{out} holds another sweep ({found}, now {plan}); give another output directory, or delete it"
        )
    write_atomically(out / PLAN, json.dumps({"hash": plan}))
    if (out / RESULTS).exists():
        return read_trials(out)
    specs = [
        TrialSpec(dataset=d.name, mode=mode, shots=shots, seed=seed)
        for d in datasets
        for mode, shots, seed in [(ZERO_SHOT, 0, 0), *((PROMPT, k, s) for k in cfg.shots for s in cfg.seeds)]
    ]
    grid = _tuner(cfg, inputs, specs, out, run).fit()
    results = [grid[i] for i in range(len(grid))]
    if grid.errors:
        failed = [f"{r.config['trial']}: {str(r.error).splitlines()[-1]}" for r in results if r.error and r.config]
        raise RuntimeError(f"{len(failed)} of {len(specs)} trials failed: {'; '.join(failed[:3])}")
    trials = [
        Trial(**r.config["trial"], ap=r.metrics["ap"], ap50=r.metrics["ap50"], seconds=r.metrics["seconds"])
        for r in results
        if r.config and r.metrics
    ]
    write_atomically(out / RESULTS, json.dumps([asdict(t) for t in trials], indent=1))
    return trials


def read_trials(out: Path) -> list[Trial]:
    """Read a finished sweep."""
    return [Trial(**saved) for saved in json.loads((out / RESULTS).read_text(encoding="utf-8"))]


def find_datasets(inputs: SweepInputs) -> list[OdinwDataset]:
    """Find the data sets asked for.

    Raises:
        ValueError: a name is not there.
    """
    found = {d.name: d for d in list_datasets(inputs.root)}
    if missing := [name for name in inputs.datasets if name not in found]:
        raise ValueError(f"no data set {missing} in {inputs.root}; found: {sorted(found)}")
    if not found:
        raise ValueError(
            f"no data set in {inputs.root}; expected <name>/<train|valid|test>/annotations_without_background.json"
        )
    return [found[name] for name in inputs.datasets] if inputs.datasets else list(found.values())


def _tuner(cfg: SweepConfig, inputs: SweepInputs, specs: Sequence[TrialSpec], out: Path, run: Run) -> Tuner:
    resources = {"cpu": 0 if cfg.num_gpus else 1, "gpu": cfg.num_gpus}
    trainable = tune.with_resources(tune.with_parameters(_trainable, cfg=cfg, inputs=inputs), resources)
    storage = out / "tune"
    if Tuner.can_restore(str(storage)):
        return Tuner.restore(str(storage), trainable, resume_errored=True, restart_errored=True)
    return Tuner(
        trainable,
        param_space={"trial": tune.grid_search([asdict(spec) for spec in specs])},
        tune_config=TuneConfig(max_concurrent_trials=cfg.max_concurrent, reuse_actors=True),
        run_config=RunConfig(
            name="tune", storage_path=str(out), verbose=0, callbacks=[_Follow(run, len(specs), asdict(cfg.tuning))]
        ),
    )


class _Follow(Callback):
    """Driver side of the sweep: one MLflow run per finished trial, and the status line."""

    def __init__(self, run: Run, total: int, tuning: dict[str, Any]) -> None:
        self.run, self.tuning = run, tuning
        self.progress, self.done, self.total = Progress("sweep", unit="trials"), 0, total

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        spec = TrialSpec(**trial.config["trial"])
        child = self.run.child(spec.name, spec.name, {**asdict(spec), "tuning": self.tuning})
        result = trial.last_result
        for epoch, (loss, val_ap) in enumerate(result["history"], start=1):
            child.metrics({"loss": loss, "val_ap": val_ap}, epoch)
        child.metrics({key: result[key] for key in ("ap", "ap50", "seconds", "train_images", "offset_norm")})
        child.tags({"images": json.dumps(result["images"])[:5000]})
        child.finish()
        self.done += 1
        self.progress(self.done, self.total, f"{spec.name} AP {result['ap']:.1f}")


def _trainable(config: dict[str, Any], cfg: SweepConfig, inputs: SweepInputs) -> None:
    tune.report(run_trial(TrialSpec(**config["trial"]), cfg, inputs))


def run_trial(spec: TrialSpec, cfg: SweepConfig, inputs: SweepInputs) -> dict[str, Any]:
    """Run one trial in this process.

    Returns:
        ``ap`` and ``ap50`` on the test split in percent, ``seconds``, the ``history`` of (training loss, validation
        AP) per evaluation, and the file names of the ``images`` trained on.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(spec.seed)
    dataset = OdinwDataset(name=spec.dataset, root=inputs.root)
    model, tokenizer = load(inputs.model, "cuda" if cfg.num_gpus else "cpu")
    predictor = Predictor(model, tokenizer, batch_size=cfg.batch_size)
    prompt = make_prompt(dataset, use_paper_prompts=cfg.use_paper_prompts)
    offset: torch.Tensor | None = None
    history: list[tuple[float, float]] = []
    images: list[str] = []
    if spec.shots:
        images = few_shot_images(dataset, spec.shots, spec.seed)
        batches = _cached_batches(dataset, images, prompt, (model, tokenizer), cfg)
        offset, history = _tune_prompt(predictor, batches, dataset, prompt, cfg)
    result, _ = measure(predictor, _benchmark(dataset, "test"), cfg.batch_size, offset, prompt)
    return {
        "ap": result.ap,
        "ap50": result.ap50,
        "seconds": time.perf_counter() - started,
        "train_images": len(images),
        "offset_norm": float(offset.norm()) if offset is not None else 0.0,
        "history": history,
        "images": images,
    }


def _tune_prompt(
    predictor: Predictor, batches: Sequence[CachedBatch], dataset: OdinwDataset, prompt: Prompt, cfg: SweepConfig
) -> tuple[torch.Tensor, list[tuple[float, float]]]:
    """Learn the offset and keep the best one on the validation split; the untuned model is the one to beat."""
    validation = _benchmark(dataset, "valid")
    tuning = PromptTuning(predictor.model, batches[0].text.shape[1], cfg.tuning)
    best, stale = tuning.offset.detach().clone(), 0
    best_ap = measure(predictor, validation, cfg.batch_size, best, prompt)[0].ap
    history: list[tuple[float, float]] = []
    for epoch in range(1, cfg.max_epochs + 1):
        loss = tuning.epoch(batches)
        if epoch % cfg.evaluate_every:
            continue
        ap = measure(predictor, validation, cfg.batch_size, tuning.offset.detach(), prompt)[0].ap
        history.append((loss, ap))
        if ap >= best_ap:
            best, best_ap, stale = tuning.offset.detach().clone(), ap, 0
            continue
        stale += 1
        if stale >= cfg.stop_patience:
            break
        if stale % cfg.step_patience == 0:
            tuning.decay_lr()
    return best, history


def _cached_batches(
    dataset: OdinwDataset,
    images: Sequence[str],
    prompt: Prompt,
    trained: tuple[GLIPv2, Tokenizer],
    cfg: SweepConfig,
) -> list[CachedBatch]:
    model, tokenizer = trained
    samples = _samples(dataset, images, prompt, model) * cfg.copies
    size = cfg.tuning.batch_size
    device = next(model.parameters()).device
    return [
        cache(model, collate(samples[i : i + size], tokenizer, model.cfg.pad_multiple_px).to(device))
        for i in range(0, len(samples), size)
    ]


def _samples(dataset: OdinwDataset, images: Sequence[str], prompt: Prompt, model: GLIPv2) -> list[GroundingSample]:
    benchmark = _benchmark(dataset, "train")
    content = read_annotations(benchmark.annotations)
    samples = []
    for image in (i for i in content["images"] if i["file_name"] in set(images)):
        boxes = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a.get("iscrowd")]
        xyxy = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (b["bbox"] for b in boxes)]).view(-1, 4)
        picture = prepare(open_image(benchmark.images / image["file_name"]), model.cfg)
        xyxy = scale_boxes(xyxy, picture)
        keep = covers(xyxy, picture.size)  # public sets hold boxes without area
        categories = [b["category_id"] for b, kept in zip(boxes, keep.tolist(), strict=True) if kept]
        samples.append(
            GroundingSample(
                picture=picture,
                text=prompt.text,
                boxes_xyxy=xyxy[keep],
                tokens_positive=[[prompt.spans[category]] for category in categories],
                categories=categories,
                category_spans={category: [span] for category, span in prompt.spans.items()},
            )
        )
    return samples


def _benchmark(dataset: OdinwDataset, split: str) -> Benchmark:
    return Benchmark(name=dataset.name, annotations=dataset.annotations(split), images=dataset.images(split))


def _dataset_hash(dataset: OdinwDataset) -> str:
    return config_hash([dataset.name, *(file_sha256(dataset.annotations(s)) for s in ("train", "valid", "test"))])
