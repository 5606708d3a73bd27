"""What moves the weights: AdamW by kinds of parameter, its schedules, and their running mean."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from glipv2.model.glipv2 import GLIPv2
from glipv2.released import LEVEL_SCALE, upstream_names

BIAS_RATE = 2.0
"""Of whatever has "bias" in its upstream name, under the reference's rule."""
DECAY_DROP_AT = 0.667
"""Share of the way to the next drop of the rate after which the reference lowers the weight decay tenfold."""


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
    """On matrices and filters only (``groups``)."""
    weight_decay_drops: bool = False
    """Lower the weight decay tenfold from two thirds of the way to the next drop of the rate on (reference, GLIP-L)."""
    groups: Literal["kind", "reference"] = "kind"
    """``kind`` spares biases, norms, scales and position tables the decay. ``reference`` goes by upstream's names:
    "bias" in one, and be it a table's, doubles the rate and spares the decay; norms are decayed."""
    warmup_steps: int = 2000
    """Linear from a thousandth of the rate."""
    decay: Literal["steps", "cosine"] = "steps"
    """``steps`` drops the rate at ``decay_at`` as the reference does; ``cosine`` lowers it to zero all along."""
    decay_at: tuple[float, ...] = (0.67, 0.89)
    """Fractions of the run after which the rate drops tenfold; not read with ``cosine``."""
    clip_norm: float = 1.0
    """Largest gradient norm of the whole model."""
    ema_decay: float = 0.0
    """Memory of the running mean of the weights, which is what is evaluated and kept as the model; 0 keeps none."""

    def __post_init__(self) -> None:
        """Check the schedule."""
        if any(not 0 < fraction <= 1 for fraction in self.decay_at):
            raise ValueError(f"decay_at is {self.decay_at}; give fractions of the run between 0 and 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; give 0 for none, or a number below 1 such as 0.999")


def make_optimizer(model: GLIPv2, cfg: OptimConfig) -> torch.optim.AdamW:
    """Group parameters by learning rate and decay; frozen ones are left out.

    Raises:
        ValueError: the reference's rule is asked for, but it has no model of this structure.
    """
    upstream = upstream_names(model) if cfg.groups == "reference" else {}
    plain = {id(p) for module in model.modules() if _is_norm(module) for p in module.parameters(recurse=False)}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = cfg.text_lr if name.startswith("text_encoder.") else cfg.lr
        if cfg.groups == "reference":
            biased = name != LEVEL_SCALE and "bias" in upstream[name]
            lr, decays = (lr * BIAS_RATE, False) if biased else (lr, True)
        else:
            decays = parameter.ndim > 1 and id(parameter) not in plain and "position" not in name
        groups.setdefault((lr, cfg.weight_decay if decays else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "lr": lr, "weight_decay": wd} for (lr, wd), p in groups.items()], betas=(0.9, cfg.beta2)
    )


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._NormBase)


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


def drop_weight_decay(optimizer: torch.optim.Optimizer, cfg: OptimConfig, step: int, num_steps: int) -> None:
    """Set the weight decay of step ``step``, where it drops."""
    if cfg.weight_decay_drops:
        following = [at for at in (*cfg.decay_at, 1.0) if step < at * num_steps]
        low = bool(following) and step >= DECAY_DROP_AT * min(following) * num_steps
        for group in optimizer.param_groups:
            if group["weight_decay"]:
                group["weight_decay"] = cfg.weight_decay * (0.1 if low else 1.0)


class RunningMean:
    """The exponential running mean of a model's trainable weights; whatever else it has stays the model's own."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the weights as they are."""
        self.decay = decay
        self.mean = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move a little towards the weights."""
        now = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.mean.values()), [now[name] for name in self.mean], 1 - self.decay)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up a mean that was saved."""
        for name, value in self.mean.items():
            given = state[name].to(value.device)
            if isinstance(value, DTensor):
                value.copy_(distribute_tensor(given, value.device_mesh, value.placements))
            else:
                value.copy_(given)
