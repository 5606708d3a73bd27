"""The training step and its optimiser, without Ray: what one worker does with one batch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from glipv2.losses.criterion import Criterion
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import NOT_PREDICTED, Batch, Target

PROBE_PX = 64


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up; the defaults are GLIP's (reference ``SOLVER``)."""

    lr: float = 1e-4
    """Base learning rate."""
    text_lr: float = 1e-5
    """Learning rate of the text encoder."""
    beta2: float = 0.999
    """Memory of the second moment; runs of a thousand steps do better with 0.98."""
    weight_decay: float = 1e-4
    """On matrices and filters only: not on biases, norms and scales."""
    warmup_steps: int = 2000
    """Linear from a thousandth of the rate."""
    decay: Literal["steps", "cosine"] = "steps"
    """``steps`` drops the rate at ``decay_at`` as the reference does; ``cosine`` lowers it to zero all along."""
    decay_at: tuple[float, ...] = (0.67, 0.89)
    """Fractions of the run after which the rate drops tenfold; not read with ``cosine``."""
    clip_norm: float = 1.0
    """Largest gradient norm of the whole model."""

    def __post_init__(self) -> None:
        """Check the schedule."""
        if any(not 0 < fraction <= 1 for fraction in self.decay_at):
            raise ValueError(f"decay_at is {self.decay_at}; give fractions of the run between 0 and 1")


def freeze_untaught(model: GLIPv2, criterion: Criterion) -> list[str]:
    """Freeze what no loss reaches, such as a head whose term is off, and return the names.

    Distributed training waits for the gradient of every parameter that is not frozen. Which are reached depends on the
    terms alone, not on the data: an empty image without boxes shows it. All workers must call this together.
    """
    device = next(model.parameters()).device
    one = torch.ones(1, 4, dtype=torch.long)
    nothing = Target(boxes_xyxy=torch.zeros(0, 4), positive_map=torch.zeros(0, 4), categories=one[0, :0])
    probe = Batch(
        pixels=torch.zeros(1, 3, PROBE_PX, PROBE_PX),
        ids=one,
        mask=one,
        loss_mask=one > 0,
        token_categories=-one,
        masked_words=one,
        targets=(nothing,),
    ).to(device)
    training = model.training
    model.eval()  # draws no random numbers
    losses = criterion(model(probe.pixels, probe.ids, probe.mask, probe.masked_words != NOT_PREDICTED), probe)
    model.train(training)
    teachable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    total = torch.stack(list(losses.values())).sum()
    gradients = torch.autograd.grad(total, [parameter for _, parameter in teachable], allow_unused=True)
    untaught = [item for item, gradient in zip(teachable, gradients, strict=True) if gradient is None]
    for _, parameter in untaught:
        parameter.requires_grad_(False)
    return [name for name, _ in untaught]


def make_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """Group parameters by learning rate and decay; frozen ones are left out."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr = cfg.text_lr if "text_encoder." in name else cfg.lr
            decay = cfg.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "lr": lr, "weight_decay": wd} for (lr, wd), p in groups.items()], betas=(0.9, cfg.beta2)
    )


def make_schedule(
    optimizer: torch.optim.Optimizer, cfg: OptimConfig, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the learning-rate schedule over ``num_steps`` optimiser steps."""

    def factor(step: int) -> float:
        warm = min(1.0, 0.001 + 0.999 * step / cfg.warmup_steps) if cfg.warmup_steps else 1.0
        if cfg.decay == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps)))
        return warm * 0.1 ** sum(step >= fraction * num_steps for fraction in cfg.decay_at)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def backward(model: nn.Module, criterion: Criterion, batch: Batch) -> dict[str, float]:
    """Run forward and backward on one batch and return the losses.

    Raises:
        FloatingPointError: the loss is not finite; nothing is masked over.
    """
    losses = criterion(model(batch.pixels, batch.ids, batch.mask, batch.masked_words != NOT_PREDICTED), batch)
    total = torch.stack(list(losses.values())).sum()
    values = {"loss": total.item(), **{name: value.item() for name, value in losses.items()}}
    if not torch.isfinite(total):
        raise FloatingPointError(f"loss is {values}; lower the learning rate, or look at the batch's boxes and spans")
    total.backward()
    return values


def update(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, clip_norm: float) -> float:
    """Clip the gradient, step, and return the norm before clipping."""
    norm = nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)
