"""Pre-training on Ray Train: the same loop on a laptop's two workers and on many nodes.

A run that was killed continues from its last checkpoint when the same command is given again; Ray Train finds it by
the run's folder. Batches are chosen by step number (`pipeline.ingest`), so nothing is skipped and nothing seen twice
beyond the steps after that checkpoint.
"""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from torch.utils.data import DataLoader

from glipv2 import checkpoint
from glipv2.config import ModelConfig
from glipv2.losses.criterion import LOSSES, Criterion, LossConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import Batch
from glipv2.text.tokenizer import Tokenizer, load_tokenizer, tokenizer_files
from glipv2.train import OptimConfig, backward, freeze_untaught, make_optimizer, make_schedule, update
from pipeline.board import follow
from pipeline.ingest import IngestConfig, SourceConfig, TrainingSet, seeded
from pipeline.paths import NOT_GIVEN
from pipeline.progress import Progress
from pipeline.shards import config_hash, file_sha256, plain, read_manifest, write_atomically
from pipeline.tracking import Run

logger = logging.getLogger(__name__)

RECORD = "record.json"
"""Written last: its presence means the training is finished."""
PLAN = "plan.json"
"""Written first: what this folder's training is, so that another one is not mixed into it."""
STATE = "state.pt"
HISTORY = ("loss", *LOSSES, "grad_norm", "lr", "images_per_s")
"""Metrics of the training steps; of the losses only those that are switched on."""


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
    use_gpu: bool = False
    """One GPU per worker; without it one CPU core per worker."""
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
        for name in ("num_steps", "num_workers", "checkpoint_every", "log_every", "threads_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.ingest.batch_size % self.num_workers:
            raise ValueError(
                f"batch_size {self.ingest.batch_size} does not divide among {self.num_workers} workers; give a multiple"
            )


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

    @property
    def hashes(self) -> list[str]:
        """Pin vocabulary and sources by content.

        Raises:
            ValueError: a source is unfinished, or there is no vocabulary.
        """
        found = [file_sha256(path) for path in tokenizer_files(self.vocabulary)]
        for source in self.sources:
            manifest = read_manifest(source.path)
            if manifest is None:
                raise ValueError(f"{source.path} holds no finished shards (no manifest.json); finish their stage first")
            found.append(f"{manifest.content_hash} x {source.copies}")
        return found if self.init == NOT_GIVEN else [*found, checkpoint.weights_sha256(self.init)]


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
    """
    plan = config_hash([asdict(cfg), inputs.name, inputs.hashes])
    record = read_record(out)
    if record is None and inputs.init != NOT_GIVEN:
        checkpoint.check_start(inputs.init, cfg.model, load_tokenizer(inputs.vocabulary, cfg.model.max_tokens))
    _claim(out, plan)
    if record is not None:
        return record
    with follow(Progress(inputs.name, unit="steps"), cfg.num_steps) as board:
        trainer = TorchTrainer(
            _train_loop,
            train_loop_config={"cfg": cfg, "inputs": inputs, "run": run, "board": board},
            scaling_config=ScalingConfig(num_workers=cfg.num_workers, use_gpu=cfg.use_gpu),
            torch_config=TorchConfig(backend="nccl" if cfg.use_gpu else "gloo", timeout_s=600),
            run_config=RunConfig(
                name="train",
                storage_path=str(out),
                failure_config=FailureConfig(max_failures=cfg.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        result = trainer.fit()
    if result.checkpoint is None:
        raise RuntimeError(f"{inputs.name}: training ended without a checkpoint; see Ray's logs/train")
    with result.checkpoint.as_directory() as folder:
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
        final={key: float(done[key]) for key in ("loss", *LOSSES) if key in done},
        run_id=run.run_id,
        config_hash=plan,
    )
    write_atomically(out / RECORD, json.dumps(asdict(record), indent=1, default=plain))
    return record


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


def _train_loop(loop: dict[str, Any]) -> None:
    """Train on one worker."""
    cfg: PretrainConfig = loop["cfg"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(cfg.threads_per_worker)
    torch.manual_seed(cfg.seed)
    device = get_device()
    inputs: TrainingInputs = loop["inputs"]
    tokenizer = load_tokenizer(inputs.vocabulary, cfg.model.max_tokens)
    size = replace(cfg.model, vocab_size=tokenizer.vocab_size)
    data = TrainingSet(inputs.sources, cfg.ingest, size, tokenizer, (rank, world))
    model = GLIPv2(size).to(device)
    if inputs.init != NOT_GIVEN:
        checkpoint.start(model, inputs.init)
    criterion = Criterion(size, cfg.losses)
    if frozen := freeze_untaught(model, criterion):
        logger.info("no loss reaches %d parameters, which are frozen: %s", len(frozen), ", ".join(frozen))
    optimizer = make_optimizer(model, cfg.optim)
    schedule = make_schedule(optimizer, cfg.optim, cfg.num_steps)
    step, before = _resume(model, optimizer, schedule)
    parallel = prepare_model(model) if world > 1 else model
    model.train()
    started = time.perf_counter() - before
    for batch in _batches(data, step, cfg):
        torch.manual_seed(seeded(cfg.seed, rank, step).getrandbits(63))
        values = backward(parallel, criterion, batch.to(device))
        values["grad_norm"] = update(model.parameters(), optimizer, cfg.optim.clip_norm)
        values["lr"] = float(schedule.get_last_lr()[0])
        schedule.step()
        step += 1
        seconds = time.perf_counter() - started
        values["images_per_s"] = step * cfg.ingest.batch_size / seconds
        last = step == cfg.num_steps
        if rank == 0 and (step % cfg.log_every == 0 or last):
            loop["board"].post.remote(step, f"loss {values['loss']:.3f}")
            loop["run"].metrics(values, step)
        if step % cfg.checkpoint_every == 0 or last:
            metrics = {**values, "step": step, "seconds": seconds, "train_images": data.num_different}
            state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "seconds": seconds}
            _report(metrics, {**state, "step": step}, (model, tokenizer) if rank == 0 else None)


def _batches(data: TrainingSet, start: int, cfg: PretrainConfig) -> Iterator[Batch]:
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(start, cfg.num_steps),
        num_workers=cfg.loader_processes,
        pin_memory=cfg.use_gpu,
    )
    yield from loader


def _resume(
    model: GLIPv2, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> tuple[int, float]:
    """Load the last checkpoint, if there is one, and return its step and the seconds spent until then."""
    last = ray.train.get_checkpoint()
    if last is None:
        return 0, 0.0
    with last.as_directory() as folder:
        trained, _ = checkpoint.load(Path(folder))
        model.load_state_dict(trained.state_dict())
        state = torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["step"]), float(state["seconds"])


def _report(metrics: dict[str, float], state: dict[str, Any], saved: tuple[GLIPv2, Tokenizer] | None) -> None:
    """Report to Ray Train, which is a barrier: every rank takes part, rank 0 brings the checkpoint."""
    if saved is None:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(*saved, Path(folder))
        torch.save(state, Path(folder) / STATE)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
