"""Between the original model and the tuned one: averaging their weights trades new skill for old (WiSE-FT)."""

from collections.abc import Mapping

import torch
from torch import Tensor


def interpolate(original: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Mix two state dicts of one architecture.

    Args:
        original: weights before tuning.
        tuned: weights after it; what is no floating-point number is taken from here.
        alpha: 0 gives the original, 1 the tuned model, exactly.

    Raises:
        ValueError: ``alpha`` is not between 0 and 1, or the weights are of different models.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; give a number between 0 (the original) and 1 (the tuned model)")
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (original, tuned)]
    if different := sorted(name for name, _ in shapes[0].items() ^ shapes[1].items()):
        raise ValueError(f"the weights are of different models, as {different[0]} shows; give two of one size")
    return {
        name: torch.lerp(original[name].to(value), value, alpha) if value.is_floating_point() else value.clone()
        for name, value in tuned.items()
    }
