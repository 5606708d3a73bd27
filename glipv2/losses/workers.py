"""What the losses of several workers share, so that together they are the loss of one worker with the whole batch.

Distributed training averages the workers' gradients. So each worker divides its sum by the *mean* of the workers'
normalisers; rows gathered from the others return their gradients to where they came from.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Num
from torch import Tensor


def num_workers() -> int:
    """Count the processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_workers(values: Tensor) -> Tensor:
    """Add up every worker's values; without gradient."""
    total = values.detach().clone()
    if num_workers() > 1:
        dist.all_reduce(total)
    return total


def max_over_workers(value: int, device: torch.device) -> int:
    """Find the largest of every worker's value."""
    largest = torch.tensor(value, device=device)
    if num_workers() > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def gather_rows(rows: Num[Tensor, "n ..."]) -> tuple[Num[Tensor, "m ..."], slice]:
    """Put the rows of all workers below each other, in order of rank; their numbers may differ.

    Every worker must call this equally often in the same order, also with no rows: it communicates in both directions.

    Returns:
        All rows, and where this worker's are.
    """
    if num_workers() == 1:
        return rows, slice(0, len(rows))
    count = torch.tensor([len(rows)], device=rows.device)
    counts: list[int] = torch.cat(_all_gather(count)).tolist()
    padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, max(counts) - len(rows)))
    everyone: Tensor = _Gather.apply(padded)
    start = sum(counts[: dist.get_rank()])
    return torch.cat([part[:n] for part, n in zip(everyone, counts, strict=True)]), slice(start, start + len(rows))


class _Gather(torch.autograd.Function):
    """Stack the tensors of all workers; each gets back the sum of all workers' gradients of its own."""

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        return torch.stack(_all_gather(own.contiguous()))

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]


def _all_gather(own: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(own) for _ in range(num_workers())]
    dist.all_gather(parts, own)
    return parts
