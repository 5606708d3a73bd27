"""What each worker of a training does: its steps, its account of them, and its part in the checkpoints.

All that a step is, batch, prompts and what dropout drops, follows from the seed and the step's number, and all that it
starts from is in the checkpoint. So a training that was killed goes on as if nothing had been.
"""

import logging
import math
import re
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from glipv2 import checkpoint
from glipv2.losses.criterion import LOSSES, Criterion
from glipv2.model.glipv2 import GLIPv2
from glipv2.optim import RunningMean, drop_weight_decay, make_optimizer, make_schedule
from glipv2.sample import Batch
from glipv2.text.tokenizer import load_tokenizer
from glipv2.train import backward, freeze_untaught, recompute_activations, update
from pipeline.ingest import TrainingSet
from pipeline.mixture import seeded
from pipeline.paths import NOT_GIVEN

logger = logging.getLogger(__name__)

STATE = "state.pt"
"""Beside the model in a checkpoint: all else that training goes on from."""
ACCOUNT = ("grad_norm", "lr", "images_per_s", "data_wait", "memory_gb", "tflops", "mfu", "skipped_steps")
"""What is logged beside the losses."""
HISTORY = ("loss", *LOSSES, *ACCOUNT)
"""Metrics of the training steps; those that do not apply are absent."""
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12}
"""Dense bfloat16 (V100: float16) multiply-adds per second, twice over, as the makers' data sheets have them."""
BACKWARD_COST = 3.0
"""Forward and backward in forward passes; what is computed twice to save memory is no use and does not count."""


class TooManySkippedError(RuntimeError):
    """Training does not converge: step after step has a loss or a gradient that is no number."""


class Trainee:
    """A model in training, on one of several workers."""

    def __init__(self, cfg: Any, inputs: Any, place: tuple[int, int]) -> None:
        """Build everything from a `PretrainConfig` and its `TrainingInputs`, and take up the last checkpoint.

        Args:
            cfg: how to train.
            inputs: what to train on.
            place: rank and number of workers.
        """
        self.cfg, (self.rank, self.world) = cfg, place
        torch.set_num_threads(cfg.threads_per_worker)
        torch.manual_seed(cfg.seed)
        self.device = get_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.tokenizer = load_tokenizer(inputs.vocabulary, cfg.model.max_tokens)
        size = replace(cfg.model, vocab_size=self.tokenizer.vocab_size)
        self.data = TrainingSet(inputs.sources, cfg.ingest, size, self.tokenizer, place)
        self.model = GLIPv2(size).to(self.device)
        if inputs.init != NOT_GIVEN:
            checkpoint.start(self.model, inputs.init)
        self.criterion = Criterion(size, cfg.losses)
        if frozen := freeze_untaught(self.model, self.criterion):
            logger.info("no loss reaches %d parameters, which are frozen: %s", len(frozen), ", ".join(frozen))
        self.flops_per_pixel = _count_flops(self.model, self.data[0].to(self.device))
        if cfg.recompute:
            recompute_activations(self.model)
        self.parallel = self._parallel()
        self.optimizer = make_optimizer(self.model, cfg.optim)
        self.schedule = make_schedule(self.optimizer, cfg.optim, cfg.num_steps)
        self.step, self.skipped, self.seconds, self.waited = 0, 0, 0.0, 0.0
        self._resume()
        self.model.train()

    def _parallel(self) -> nn.Module:
        if self.world == 1:
            return self.model
        if self.cfg.strategy == "ddp":
            return DistributedDataParallel(self.model, [self.device] if self.device.type == "cuda" else None)
        mesh = init_device_mesh(self.device.type, (self.world,))
        for stage in (self.model.tower, *self.model.swin.stages):
            for block in stage.children():
                fully_shard(block, mesh=mesh)
        # Each is called by itself, not through the whole model, and gathers what it needs when it is.
        fully_shard(self.model.text_encoder, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        return self.model

    def train(self) -> Iterator[dict[str, float]]:
        """Take the steps that are left; give the account of each."""
        batches, parts = iter(self.loader()), self.cfg.ingest.accumulate
        while self.step < self.cfg.num_steps:
            started = time.perf_counter()
            waited, pixels, losses = 0.0, 0, []
            torch.manual_seed(seeded(self.cfg.seed, self.rank, self.step).getrandbits(63))
            drop_weight_decay(self.optimizer, self.cfg.optim, self.step, self.cfg.num_steps)
            for part in range(parts):
                before = time.perf_counter()
                batch: Batch = next(batches).to(self.device)
                waited += time.perf_counter() - before
                pixels += batch.pixels[:, 0].numel()
                with self._apart(last=part == parts - 1):
                    losses.append(backward(self.parallel, self.criterion, batch, share=1 / parts, bf16=self.cfg.bf16))
            account = {name: math.fsum(part[name] for part in losses) / parts for name in losses[0]}
            account["lr"] = float(self.schedule.get_last_lr()[0])
            account["grad_norm"] = self._update(sound=math.isfinite(account["loss"]))
            seconds = time.perf_counter() - started
            self.seconds += seconds
            self.waited += waited
            yield account | self._rates(seconds, waited, pixels)

    def loader(self) -> DataLoader[Batch]:
        """Give the batches of the steps that are left."""
        parts = self.cfg.ingest.accumulate
        return DataLoader(
            self.data,
            batch_size=None,
            sampler=range(self.step * parts, self.cfg.num_steps * parts),
            num_workers=self.cfg.loader_processes,
            pin_memory=self.device.type == "cuda",
            # A fork would copy the locks of Ray's and Arrow's threads in whatever state they are.
            multiprocessing_context="spawn" if self.cfg.loader_processes else None,
        )

    def _apart(self, *, last: bool) -> Any:
        """Add up gradients without telling the other workers before the last part of a step."""
        if isinstance(self.parallel, FSDPModule):
            self.parallel.set_requires_gradient_sync(last)
        elif isinstance(self.parallel, DistributedDataParallel) and not last:
            return self.parallel.no_sync()
        return nullcontext()

    def _update(self, *, sound: bool) -> float:
        """Step on all workers or on none: loss and gradient norm are the same number on each."""
        if sound:
            norm = update(self.model.parameters(), self.optimizer, self.cfg.optim.clip_norm)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            norm = math.nan
        self.schedule.step()
        self.step += 1
        if not math.isfinite(norm):
            self.skipped += 1
            logger.warning("step %d: loss or gradient is no finite number; the step is skipped", self.step)
            if self.skipped > self.cfg.max_skipped_steps:
                raise TooManySkippedError(
                    f"{self.skipped} of {self.step} steps had no finite loss or gradient, more than max_skipped_steps "
                    f"{self.cfg.max_skipped_steps}; lower the learning rate, or look at the boxes of the sources"
                )
        elif self.mean is not None:
            self.mean.update(self.model)
        return norm

    def _rates(self, seconds: float, waited: float, pixels: int) -> dict[str, float]:
        flops = BACKWARD_COST * self.flops_per_pixel * pixels / seconds
        found = {
            "images_per_s": self.cfg.ingest.batch_size / seconds,
            "data_wait": waited / seconds,
            "memory_gb": _memory_bytes(self.device) / 1e9,
            "tflops": flops / 1e12,
            "skipped_steps": float(self.skipped),
        }
        peak = _peak_flops(_device_name(self.device)) if self.cfg.bf16 else None
        return found if peak is None else {**found, "mfu": flops / peak}

    def report(self, metrics: dict[str, float], *, validation: bool) -> None:
        """Write a checkpoint, while training goes on where Ray can; a barrier for all workers."""
        state = self._state()
        if self.rank:
            ray.train.report(metrics, checkpoint=None)
            return
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
        weights = state["weights"] if self.mean is None else state["mean"] | _others(state["weights"], state["mean"])
        checkpoint.save(self.model, self.tokenizer, folder, weights)
        torch.save({name: value for name, value in state.items() if name != "mean"}, folder / STATE)
        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,  # Ray deletes the folder when it is through
            validation=validation,
        )

    def _state(self) -> dict[str, Any]:
        """Gather on the CPU what training goes on from, whole, whatever it is split into; every worker takes part."""
        weights, optimizer = get_state_dict(
            self.model, self.optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        return {
            "weights": weights,
            "optimizer": optimizer,
            "mean": {name: _whole(value) for name, value in self.mean.mean.items()} if self.mean else {},
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "waited": self.waited,
        }

    def _resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        last = ray.train.get_checkpoint()
        self.mean = RunningMean(self.model, self.cfg.optim.ema_decay) if self.cfg.optim.ema_decay else None
        if last is None:
            return
        with last.as_directory() as folder:
            state = torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)
            mean = checkpoint.load(Path(folder))[0].state_dict() if self.mean else {}
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(full_state_dict=True),
        )
        if self.mean is not None:
            self.mean.load(mean)
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.skipped, self.seconds = int(state["step"]), int(state["skipped"]), float(state["seconds"])
        self.waited = float(state.get("waited", 0.0))  # older checkpoints do not tell


def train_loop(loop: dict[str, Any]) -> str:
    """Train on one worker: what `TorchTrainer` runs in each of its processes.

    Returns:
        Why it stopped before the last step, the same on all workers; empty if it did not. An exception would make Ray
        Train try the same again.
    """
    context, reason = ray.train.get_context(), ""
    rank = context.get_world_rank()
    trainee = Trainee(loop["cfg"], loop["inputs"], (rank, context.get_world_size()))
    try:
        _take_steps(trainee, loop)
    except TooManySkippedError as error:
        reason = str(error)
    if rank == 0 and (left := loop["run"].settle()):  # this process ends now
        logger.warning("%d records of the training are not in MLflow, which does not answer", left)
    return reason


def _take_steps(trainee: Trainee, loop: dict[str, Any]) -> None:
    cfg, warned = trainee.cfg, False
    for account in trainee.train():
        last = trainee.step == cfg.num_steps
        record = trainee.step % cfg.log_every == 0 or last
        if trainee.rank == 0 and record:
            loop["board"].post.remote(trainee.step, f"loss {account['loss']:.3f}")
            loop["run"].metrics({k: v for k, v in account.items() if math.isfinite(v)}, trainee.step)
        # A machine that is about to be taken away says so: one checkpoint now, and nothing is done twice.
        leaving = record and not warned and ray.train.get_preemption_info() is not None
        warned = warned or leaving
        if trainee.step % cfg.checkpoint_every == 0 or leaving or last:
            own = {"step": trainee.step, "seconds": trainee.seconds, "waited": trainee.waited}
            own["train_images"] = trainee.data.mixture.num_different
            trainee.report(account | own, validation=loop["validates"] and not leaving)


def _count_flops(model: GLIPv2, batch: Batch) -> float:
    """Count the operations of a forward pass per pixel; element by element work is not counted."""
    model.eval()  # draws no random numbers
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(batch.pixels[:1], batch.ids[:1], batch.mask[:1])
    return float(counter.get_total_flops()) / batch.pixels[0, 0].numel()


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def _peak_flops(device: str) -> float | None:
    """Look a device up by a word of its name: an L40 is no L4."""
    return next((PEAK_FLOPS[word] for word in re.findall(r"[^\W_]+", device) if word in PEAK_FLOPS), None)


def _whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def _others(weights: dict[str, Tensor], mean: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name not in mean}
