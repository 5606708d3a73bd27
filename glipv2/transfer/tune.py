"""Tune a model to a data set: epochs, evaluations, and the best of them kept.

>>> cfg = protocol_for("prompt", shots=3)
>>> result = tune(model, tokenizer, samples, cfg, validate, seed=3)
>>> predictor.detect_prompt(images, prompt, result.offset)
"""

import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import GroundingSample
from glipv2.text.tokenizer import Tokenizer
from glipv2.train import update
from glipv2.transfer.feature_cache import FeatureCache
from glipv2.transfer.learners import Learner, PromptLearner, WeightLearner
from glipv2.transfer.protocol import TuningConfig, make_schedule
from glipv2.transfer.views import View, draw_steps

logger = logging.getLogger(__name__)

Validate = Callable[[Float[Tensor, "t d"] | None], float]
"""Measures the model on the validation split and returns its AP in percent. ``prompt`` hands over the offset to measure
with; else it is None, and the model itself has changed, so that nothing computed from its weights may be remembered."""


class DivergedError(RuntimeError):
    """Every step of an epoch had a loss or a gradient that is no number: these rates lead nowhere."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One look at the validation split."""

    epoch: int
    """0 is the untuned model."""
    val_ap: float
    """AP in percent."""
    loss: float | None
    """Mean over the steps since the evaluation before; None where there were none."""
    lr: float
    """Learning rate these steps had."""
    offset_norm: float
    """Length of the offset; 0 where there is none."""


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """What came of it."""

    history: tuple[Evaluation, ...]
    """All evaluations, the untuned model's first."""
    best_epoch: int
    """Whose weights or offset were kept: the last of those with the best AP."""
    best_val_ap: float
    """Its AP in percent."""
    seconds: float
    """Time it all took, evaluations included."""
    steps: int
    """Steps taken, skipped ones included."""
    skipped_steps: int
    """Steps whose loss or gradient was no number, so that they changed nothing."""
    memory_bytes: int
    """Image features that were kept in memory."""
    mapped_bytes: int
    """Image features that were kept in files."""
    offset: Float[Tensor, "t d"] | None
    """The best offset of the text features, on the model's device; None where the model itself was tuned."""


def tune(
    model: GLIPv2,
    tokenizer: Tokenizer,
    samples: Sequence[GroundingSample],
    cfg: TuningConfig,
    validate: Validate,
    *,
    seed: int,
) -> TuneResult:
    """Tune until AP no longer rises or the epochs are through, and keep what was best.

    The untuned model is evaluated first and is the one to beat; a tie goes to the later epoch. On a CPU the same seed
    gives the same numbers; the caller's random state is left as it was.

    Args:
        model: on return it has the best weights (``prompt`` changes none), is in eval mode, and needs the gradients it
            needed before.
        tokenizer: of the model.
        samples: pictures prepared for the model, with their text and boxes. Any sequence will do: one that reads a
            picture when it is asked for it keeps none in memory.
        cfg: the mode and its numbers.
        validate: measures the model.
        seed: decides order, views and dropout.

    Raises:
        ValueError: there is no sample, in ``prompt`` the texts differ, or ``validate`` gives no AP.
        DivergedError: an epoch had no finite step; the model has the best weights up to there.
    """
    if not samples:
        raise ValueError("there is no sample to tune with; give at least one, or evaluate the model as it is")
    started = time.perf_counter()
    needed = [parameter.requires_grad for parameter in model.parameters()]
    with _seeded(model, seed), FeatureCache(cfg.cache_mib, cfg.cache_folder, bf16=cfg.cache_bf16) as cache:
        learner: Learner
        if cfg.mode == "prompt":
            learner = PromptLearner(model, tokenizer, samples, cfg, cache)
        else:
            learner = WeightLearner(model, tokenizer, samples, cfg)
        climb = _Climb(model, learner, cfg, validate)
        try:
            climb.run(len(samples), seed)
        finally:
            climb.restore()
            for parameter, need in zip(model.parameters(), needed, strict=True):
                parameter.requires_grad_(need)
    best = climb.best
    return TuneResult(
        history=tuple(climb.history),
        best_epoch=best.epoch,
        best_val_ap=best.val_ap,
        seconds=time.perf_counter() - started,
        steps=climb.steps,
        skipped_steps=climb.skipped,
        memory_bytes=cache.memory_bytes,
        mapped_bytes=cache.mapped_bytes,
        offset=learner.offset,
    )


class _Climb:
    """The way up: what was seen, and the best place so far."""

    def __init__(self, model: GLIPv2, learner: Learner, cfg: TuningConfig, validate: Validate) -> None:
        self.model, self.learner, self.cfg, self.validate = model, learner, cfg, validate
        self.history: list[Evaluation] = []
        self.steps = self.skipped = 0
        self._kept = self._copy()

    @property
    def best(self) -> Evaluation:
        return max(reversed(self.history), key=lambda evaluation: evaluation.val_ap)

    def run(self, num_samples: int, seed: int) -> None:
        """Evaluate, then learn and evaluate in turns."""
        schedule = make_schedule(self.learner.optimizer, self.cfg)
        self._evaluate(0, [])
        losses: list[float] = []
        for epoch in range(1, self.cfg.max_epochs + 1):
            schedule.begin(epoch)
            losses += self._learn(epoch, num_samples, random.Random(f"{seed} {epoch}"))
            if epoch % self.cfg.evaluate_every and epoch < self.cfg.max_epochs:
                continue
            self._evaluate(epoch, losses)
            losses = []
            if schedule.step(self.history[-1].val_ap):
                break

    def restore(self) -> None:
        """Go back to the best place."""
        with torch.no_grad():
            for parameter, kept in zip(self.learner.parameters, self._kept, strict=True):
                parameter.copy_(kept)
                parameter.grad = None
        self.model.eval()

    def _copy(self) -> list[Tensor]:
        return [parameter.detach().to("cpu", copy=True) for parameter in self.learner.parameters]

    def _learn(self, epoch: int, num_samples: int, rng: random.Random) -> list[float]:
        """Go through the samples once and return the losses of the steps that were taken."""
        self.learner.prepare()
        losses = []
        for views in draw_steps(num_samples, self.cfg, rng):
            self.steps += 1
            loss = self._step(views)
            if math.isfinite(loss):
                losses.append(loss)
            else:
                self.skipped += 1
                logger.warning("epoch %d: loss or gradient is no finite number; the step is skipped", epoch)
        if not losses:
            raise DivergedError(
                f"no step of epoch {epoch} had a finite loss and gradient; lower lr ({self.cfg.lr}), or look at the "
                "boxes and at the model's own weights"
            )
        return losses

    def _step(self, views: Sequence[View]) -> float:
        """Learn from some views and return their loss, which is no number if the step was skipped."""
        loss = self.learner.backward(views)
        if not math.isfinite(loss):
            self.learner.optimizer.zero_grad(set_to_none=True)
            return math.nan
        norm = update(self.learner.parameters, self.learner.optimizer, self.cfg.clip_norm)
        return loss if math.isfinite(norm) else math.nan

    def _evaluate(self, epoch: int, losses: Sequence[float]) -> None:
        self.model.eval()
        offset = self.learner.offset
        ap = self.validate(offset)
        if not 0 <= ap <= 100:
            raise ValueError(
                f"validation of epoch {epoch} gave an AP of {ap}, where 0 to 100 percent are expected; give a "
                "validation split with boxes"
            )
        self.history.append(
            Evaluation(
                epoch=epoch,
                val_ap=ap,
                loss=statistics.fmean(losses) if losses else None,
                lr=max(group["lr"] for group in self.learner.optimizer.param_groups),
                offset_norm=0.0 if offset is None else offset.norm().item(),
            )
        )
        if self.best.epoch == epoch:
            self._kept = self._copy()


@contextmanager
def _seeded(model: GLIPv2, seed: int) -> Iterator[None]:
    """Seed what dropout draws from for as long as the block runs."""
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
