"""Pre-training on Ray Train: the same loop on a laptop's two workers and on many nodes.

A run that was killed continues from its last checkpoint when the same command is given again; Ray Train finds it by
the run's folder. Batches are chosen by step number (`pipeline.ingest`), so nothing is skipped and nothing seen twice
beyond the steps after that checkpoint.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    ValidationConfig,
    ValidationTaskConfig,
)
from ray.train.torch import TorchConfig, TorchTrainer

from glipv2 import checkpoint
from glipv2.config import ModelConfig
from glipv2.losses.criterion import LOSSES, LossConfig
from glipv2.optim import OptimConfig
from glipv2.text.tokenizer import load_tokenizer, tokenizer_files
from pipeline import placement
from pipeline.board import follow
from pipeline.failure import RunError
from pipeline.ingest import IngestConfig, check_division
from pipeline.paths import NOT_GIVEN
from pipeline.progress import Progress
from pipeline.row_index import SourceConfig, check_sources, require_manifest
from pipeline.shards import config_hash, file_sha256, plain, write_atomically
from pipeline.storage import Place
from pipeline.tracking import Input, Run
from pipeline.trainer import STATE, train_loop

logger = logging.getLogger(__name__)

RECORD = "record.json"
"""Written last: its presence means the training is finished."""
PLAN = "plan.json"
"""Written first: what this folder's training is, so that another one is not mixed into it."""
MACHINERY = frozenset(
    {
        *("num_workers", "min_workers", "strategy", "use_gpu", "threads_per_worker", "loader_processes", "recompute"),
        *("checkpoint_every", "log_every", "max_failures", "max_skipped_steps", "keep_checkpoints", "check_hashes"),
        placement.FIELD,
    }
)
"""Fields of `PretrainConfig` that may change when a training is gone on with."""
AP = "val_ap"
"""What a validation measures, and checkpoints are picked by."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pre-training run."""

    model: ModelConfig
    """Size of the model; ``vocab_size`` follows the vocabulary given."""
    ingest: IngestConfig
    """How rows become batches."""
    optim: OptimConfig
    """The optimiser."""
    losses: LossConfig = field(default_factory=LossConfig)
    """What the model is taught; the model must have the heads."""
    num_steps: int
    """Optimiser steps."""
    num_workers: int = 2
    """Data-parallel processes."""
    min_workers: int = 0
    """Fewest workers to go on with when machines are lost; training grows to ``num_workers`` again when there is room.
    The batch stays the same. 0 waits for all of them."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """``ddp`` holds the whole model in every worker, ``fsdp2`` splits weights, gradients and optimiser among them."""
    bf16: bool = False
    """Run the forward pass in bfloat16 where that is safe (autocast)."""
    recompute: bool = False
    """Compute activations twice instead of keeping them: less memory, more time; how much was not measured."""
    max_skipped_steps: int = 20
    """Steps that may be skipped because loss or gradient is no finite number, before the run fails."""
    keep_checkpoints: int = 2
    """Last checkpoints kept. Where there is a validation: the best ones, and the last beside them if it is none."""
    checkpoints: str = ""
    """Where checkpoints go, absolute or ``s3://``; by default into the output folder. All nodes must reach it."""
    check_hashes: bool = True
    """Read every shard once and compare its hash before training; else only its size."""
    use_gpu: bool = False
    """One GPU per worker; without it one CPU core per worker."""
    node_resource: str = ""
    """Custom resource of the machines that train; the cluster files give ``train``. Empty trains on any machine."""
    threads_per_worker: int = 1
    """CPU threads of a worker."""
    loader_processes: int = 0
    """Processes per worker that decode images ahead; 0 decodes in the worker."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between records in MLflow."""
    max_failures: int = 3
    """Lost workers tolerated before the run fails."""
    seed: int = 0
    """Of the initial weights and, with a worker's rank and the step, of what training drops at random."""

    def __post_init__(self) -> None:
        """Check the numbers, and that the model has a head for every loss."""
        self.losses.check(self.model)
        if self.losses.mlm and not self.ingest.mask_words:
            raise ValueError(
                f"losses.mlm is {self.losses.mlm}, but ingest.mask_words is 0, so there is no word to predict; "
                "set ingest.mask_words to 0.15, or losses.mlm to 0"
            )
        if max(self.ingest.short_sides_px, default=0) > self.model.max_size_px:
            raise ValueError(
                f"ingest.short_sides_px is {self.ingest.short_sides_px}, but the model's max_size_px "
                f"{self.model.max_size_px}; give short sides up to that"
            )
        positive = ("num_steps", "num_workers", "checkpoint_every", "log_every", "threads_per_worker")
        for name in (*positive, "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if not 0 <= self.min_workers <= self.num_workers:
            raise ValueError(f"min_workers is {self.min_workers}; give 0 to {self.num_workers} (num_workers)")
        if self.max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps is {self.max_skipped_steps}; give 0 or more")
        check_division(self.ingest, self.num_workers)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What checkpoints are measured by while training goes on."""

    key: str
    """Hash of what it measures on."""
    measure: Callable[[Path], dict[str, float]]
    """Gives a model folder's `AP`, and whatever else is to be logged; called in a task of its own."""


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What a model is trained on."""

    name: str
    """Name of the model in progress lines, tables and charts."""
    sources: tuple[SourceConfig, ...]
    """The mixture."""
    vocabulary: Path
    """``vocab.txt`` of the tokenizer, or a folder with a CLIP tokenizer's files; absolute."""
    init: Path = NOT_GIVEN
    """Model folder to start from, of the same size and vocabulary; without it training starts from nothing. Heads that
    only training uses may be lacking there: they start at random."""
    validation: Validation | None = None
    """Done with every checkpoint, beside the training; the checkpoint of the best AP becomes the model. Without it the
    last one does. It asks for one CPU and, where workers have GPUs, for a GPU that none of them has: leave one free, or
    checkpoints wait to be measured."""

    @property
    def hashes(self) -> list[str]:
        """Pin vocabulary and sources by content.

        Raises:
            ValueError: a source is unfinished, or there is no vocabulary.
        """
        found = [file_sha256(path) for path in tokenizer_files(self.vocabulary)]
        found += [
            f"{require_manifest(source.path).content_hash} x {source.copies} x {source.share}"
            for source in self.sources
        ]
        found += [] if self.validation is None else [self.validation.key]
        return found if self.init == NOT_GIVEN else [*found, checkpoint.weights_sha256(self.init)]

    def record(self, run: Run) -> None:
        """Record with a run what it trains on."""
        sources = [
            Input.of(source.path, require_manifest(source.path).content_hash, "train") for source in self.sources
        ]
        words = [Input.of(path, file_sha256(path), "vocabulary") for path in tokenizer_files(self.vocabulary)]
        start = [] if self.init == NOT_GIVEN else [Input.of(self.init, checkpoint.weights_sha256(self.init), "init")]
        measured = (
            [] if self.validation is None else [Input(name="validation", hash=self.validation.key, role="validation")]
        )
        run.inputs([*sources, *words, *start, *measured])


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a finished training was; saved beside the model."""

    name: str
    """Name of the model in tables and charts."""
    model: Path
    """Folder of the weights (`glipv2.checkpoint`)."""
    num_steps: int
    """Optimiser steps."""
    images_seen: int
    """Images over all steps, repeats counted."""
    train_images: int
    """Different samples in the mixture."""
    num_workers: int
    """Data-parallel processes."""
    seconds: float
    """Wall time of the training steps, over all resumptions."""
    data_wait: float = 0.0
    """Part of that time in which rank 0 waited for data, 0 to 1."""
    final: dict[str, float] = field(default_factory=dict)
    """Losses of the last step."""
    run_id: str = ""
    """MLflow run holding the history."""
    config_hash: str = ""
    """Hash of configuration and inputs."""


def read_record(out: Path) -> TrainingRecord | None:
    """Read the record of a finished training; None if it is unfinished or absent."""
    path = out / RECORD
    if not path.exists():
        return None
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return TrainingRecord(**{**saved, "model": Path(saved["model"])})


def pretrain(cfg: PretrainConfig, inputs: TrainingInputs, out: Path, run: Run) -> TrainingRecord:
    """Train a model into ``out`` and return its record; a finished one is only read.

    Args:
        cfg: how to train.
        inputs: what to train on.
        out: folder of this training, absolute.
        run: MLflow run that rank 0 writes its history to.

    Raises:
        ValueError: the folder belongs to another training, a source is unfinished, or ``init`` does not fit.
        RunError: training failed more often than it may, or does not converge.
    """
    deciding = {name: value for name, value in asdict(cfg).items() if name not in MACHINERY}
    plan = config_hash([deciding, inputs.name, inputs.hashes])
    if (record := read_record(out)) is None:
        _check_inputs(cfg, inputs)
    _claim(out, plan)
    if record is not None:
        return record
    with follow(Progress(inputs.name, unit="steps"), cfg.num_steps) as board:
        result = _fit(_trainer(cfg, inputs, out, {"run": run, "board": board}), inputs.name)
        failed: list[str] = ray.get(board.failures.remote())
    chosen = result.checkpoint if inputs.validation is None else _best(result, inputs.name, failed)
    with chosen.as_directory() as folder:
        shutil.copytree(folder, out / "model", dirs_exist_ok=True, ignore=shutil.ignore_patterns(STATE))
    done: dict[str, Any] = result.metrics or {}
    record = TrainingRecord(
        name=inputs.name,
        model=out / "model",
        num_steps=cfg.num_steps,
        images_seen=cfg.num_steps * cfg.ingest.batch_size,
        train_images=int(done["train_images"]),
        num_workers=cfg.num_workers,
        seconds=float(done["seconds"]),
        data_wait=float(done.get("waited", 0.0)) / float(done["seconds"]),
        final={key: float(done[key]) for key in ("loss", *LOSSES) if key in done},
        run_id=run.run_id,
        config_hash=plan,
    )
    write_atomically(out / RECORD, json.dumps(asdict(record), indent=1, default=plain))
    return record


def _fit(trainer: TorchTrainer, name: str) -> Any:
    """Train to the end; what comes of it has a checkpoint."""
    try:
        # Ray exports the type of its older result, which knew no value of the loop.
        result: Any = trainer.fit()
    except TrainingFailedError as error:
        raise RunError(
            f"{name}: training failed: {_cause(error)}; the last checkpoint is kept, and the same command goes on from "
            "it"
        ) from error
    if result.return_value:
        raise RunError(
            f"{name}: {result.return_value}; the last checkpoint is kept, and the same command, with a larger "
            "max_skipped_steps, goes on from it"
        )
    if result.checkpoint is None:
        raise RunError(f"{name}: training ended without a checkpoint; see Ray's logs/train")
    return result


def _cause(error: TrainingFailedError) -> str:
    """Tell in a line what a training failed of."""
    causes: list[Exception] = list(getattr(error, "worker_failures", {}).values())
    causes = causes or [getattr(error, "controller_failure", error)]
    # A worker that has lost another one fails too, and torch calls that a RuntimeError.
    return _last_line(min(causes, key=lambda cause: isinstance(cause, RuntimeError)))


def _last_line(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[-1:]])


def _best(result: Any, name: str, failed: list[str]) -> Checkpoint:
    """Choose the checkpoint of the best AP; where none has any, the last one."""
    measured: dict[Checkpoint, float] = {
        place: found[AP] for place, found in result.best_checkpoints if math.isfinite(found.get(AP, math.nan))
    }
    said = f"{len(failed)} validations failed, the first at {failed[0]}" if failed else "none was validated"
    if not measured:
        logger.warning("%s: no checkpoint has a %s (%s); the last one becomes the model", name, AP, said)
        measured[result.checkpoint] = 0.0
    elif failed:
        logger.warning("%s: %s; the best of the others becomes the model", name, said)
    return max(measured, key=measured.__getitem__)


def _check_inputs(cfg: PretrainConfig, inputs: TrainingInputs) -> None:
    """Find out what is wrong before any worker starts."""
    placement.require(cfg.node_resource, float(cfg.use_gpu))
    check_sources(inputs.sources, check_hashes=cfg.check_hashes)
    tokenizer = load_tokenizer(inputs.vocabulary, cfg.model.max_tokens)
    if tokenizer.vocab_size > cfg.model.vocab_size:
        raise ValueError(
            f"{inputs.vocabulary} has {tokenizer.vocab_size} entries, more than the {cfg.model.vocab_size} of the "
            "model's vocab_size; take the vocabulary the recipe is meant for, or raise vocab_size"
        )
    if inputs.init != NOT_GIVEN:
        checkpoint.check_start(inputs.init, cfg.model, tokenizer)


def _trainer(cfg: PretrainConfig, inputs: TrainingInputs, out: Path, handles: dict[str, Any]) -> TorchTrainer:
    place = Place.of(cfg.checkpoints or out)
    workers = (cfg.min_workers, cfg.num_workers) if 0 < cfg.min_workers < cfg.num_workers else cfg.num_workers
    validation = None
    if inputs.validation is not None:
        validation = ValidationConfig(
            fn=_validate,
            task_config=ValidationTaskConfig(fn_kwargs={"measure": inputs.validation.measure, **handles}),
            ray_remote_kwargs={"num_gpus": 1 if cfg.use_gpu else 0, "num_cpus": 1},
        )
    # Ray exports the types of its older trainer, which knew no validation, no range of workers, no value of the loop.
    return TorchTrainer(  # type: ignore[call-arg]
        train_loop,  # type: ignore[arg-type]
        train_loop_config={"cfg": cfg, "inputs": inputs, "validates": validation is not None, **handles},
        scaling_config=ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]
            use_gpu=cfg.use_gpu,
            resources_per_worker={"GPU" if cfg.use_gpu else "CPU": 1, **placement.ask(cfg.node_resource)},
        ),
        torch_config=TorchConfig(backend="nccl" if cfg.use_gpu else "gloo", timeout_s=600),
        run_config=RunConfig(
            name="train" if place == Place.of(out) else f"train-{config_hash(str(out))}",
            storage_path=place.path,
            # Ray Train writes its list of checkpoints over the old one. Half of it, from a kill or a full disk, is a
            # training that cannot be gone on with.
            storage_filesystem=place.writing,
            failure_config=FailureConfig(max_failures=cfg.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=cfg.keep_checkpoints, checkpoint_score_attribute=AP if validation else None
            ),
        ),
        validation_config=validation,
    )


def _validate(checkpoint: Checkpoint, **given: Any) -> dict[str, Any]:
    """Measure a checkpoint, in a task of its own: what is slow here keeps no training worker waiting."""
    with checkpoint.as_directory() as folder:
        step = int(torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)["step"])
        try:
            found: dict[str, float] = given["measure"](Path(folder))
        except Exception as error:
            ray.get(given["board"].fail.remote(f"step {step}: {_last_line(error)}"))
            raise
    given["run"].metrics(found, step)
    if left := given["run"].settle():  # this process ends now
        logger.warning("%d records of the validation at step %d are not in MLflow, which does not answer", left, step)
    return found


def _claim(out: Path, plan: str) -> None:
    """Refuse a folder that holds another training: Ray Train would resume from its checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / PLAN
    if path.exists() and (found := json.loads(path.read_text(encoding="utf-8"))["hash"]) != plan:
        raise ValueError(
            f"{out} holds a training of another configuration or other inputs ({found}, now {plan}); give another "
            "output directory, or delete that one"
        )
    write_atomically(path, json.dumps({"hash": plan}))
