"""The training step, without Ray: what one worker does with one batch."""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers.models.bert.modeling_bert import BertLayer

from glipv2.losses.criterion import Criterion
from glipv2.losses.workers import num_workers, sum_over_workers
from glipv2.model.backbone import SwinBlock
from glipv2.model.glipv2 import Block, GLIPv2, Outputs
from glipv2.model.language import PreNormLayer
from glipv2.sample import NOT_PREDICTED, Batch, Target

PROBE_PX = 64

Losses = Callable[[Outputs, Batch], dict[str, Float[Tensor, ""]]]
"""A `Criterion`, or one that was told what its batch is a part of."""


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


def recompute_activations(model: GLIPv2) -> None:
    """Keep for the backward pass only what goes between blocks and compute the rest again: less memory, more time."""
    for module in model.modules():
        if isinstance(module, SwinBlock | Block | BertLayer | PreNormLayer):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]


def backward(
    model: nn.Module, criterion: Losses, batch: Batch, *, share: float = 1.0, bf16: bool = False
) -> dict[str, float]:
    """Run forward and backward on one batch.

    A loss that is not finite on any worker is propagated on none, so that all stay in step.

    Args:
        model: a `GLIPv2`, wrapped or not.
        criterion: the losses.
        batch: this worker's samples.
        share: of the step, which this batch is a part of; gradients are scaled by it, the losses returned are not.
        bf16: run the forward pass under autocast.

    Returns:
        The losses' mean over all workers, and their sum as ``loss``.
    """
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=bf16):
        outputs = model(batch.pixels, batch.ids, batch.mask, batch.masked_words != NOT_PREDICTED)
        losses = criterion(outputs, batch)
    own = torch.stack([value.float() for value in losses.values()])
    means = (sum_over_workers(own) / num_workers()).tolist()
    total = math.fsum(means) if all(map(math.isfinite, means)) else math.nan
    if math.isfinite(total):
        (own.sum() * share).backward()
    return {"loss": total, **dict(zip(losses, means, strict=True))}


def update(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, clip_norm: float) -> float:
    """Clip the gradient, step, and return the norm before clipping; one that is not finite is thrown away instead."""
    norm = nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], clip_norm)
    length = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if math.isfinite(length):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return length
