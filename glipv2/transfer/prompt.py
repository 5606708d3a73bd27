"""Prompt tuning: one matrix added to the text features before the fusion (GLIPv2 section 3.3).

Everything else is frozen, so the image and text encoders run once per image and prompt, and each step costs only the
tower. Reference: ``language_prompt_v2``, zero-initialised, learning rate 0.05, weight decay 0.25. Ours covers the
attended positions only; the reference carries 1000 rows of which a prompt uses the first few.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glipv2.losses.criterion import Criterion
from glipv2.model.glipv2 import GLIPv2, Pyramid
from glipv2.sample import Batch


@dataclass(frozen=True, kw_only=True)
class PromptTuningConfig:
    """How the offset is learned."""

    lr: float = 0.05
    """Learning rate (AdamW)."""
    weight_decay: float = 0.25
    """Pulls the offset back to zero."""
    batch_size: int = 4
    """Images per step."""


@dataclass(frozen=True, kw_only=True)
class CachedBatch:
    """A batch with everything before the fusion already computed."""

    pyramid: Pyramid
    """Of the frozen image encoder."""
    text: Float[Tensor, "b t d"]
    """Of the frozen text encoder."""
    batch: Batch
    """Masks and targets."""


@torch.no_grad()
def cache(model: GLIPv2, batch: Batch) -> CachedBatch:
    """Run the frozen encoders once."""
    return CachedBatch(
        pyramid=model.encode_image(batch.pixels), text=model.encode_text(batch.ids, batch.mask), batch=batch
    )


class PromptTuning:
    """Learn the offset for one data set; `offset` is all there is to keep."""

    def __init__(self, model: GLIPv2, num_tokens: int, cfg: PromptTuningConfig) -> None:
        """Start from the untuned model: a zero offset for a prompt of ``num_tokens`` tokens.

        The model's gradients are switched off for good; frozen modules stay in eval mode.
        """
        self.model = model.eval().requires_grad_(False)
        device = next(model.parameters()).device
        self.offset = nn.Parameter(torch.zeros(num_tokens, model.cfg.text_dim, device=device))
        self.criterion = Criterion(model.cfg)
        self.optimizer = torch.optim.AdamW([self.offset], lr=cfg.lr, weight_decay=cfg.weight_decay)

    def epoch(self, batches: Sequence[CachedBatch]) -> float:
        """Go through the batches once and return the mean loss."""
        total = 0.0
        for cached in batches:
            text = cached.text + self.offset[: cached.text.shape[1]]
            regions = self.model.fuse(cached.pyramid, text, cached.batch.mask)
            loss = torch.stack(list(self.criterion.grounding(regions, cached.batch).values())).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total / max(1, len(batches))

    def decay_lr(self, factor: float = 0.1) -> None:
        """Lower the learning rate, as the protocol does on a plateau."""
        for group in self.optimizer.param_groups:
            group["lr"] *= factor
