"""What learns: the model's own weights, or an offset of its text features on cached image features.

Both take a step's images in groups of equal padded size: the architecture has no mask for an image's padding, so what
is beside an image in a batch must not change what is learned from it. The reference has one image per GPU here, and
like it we divide by the boxes of the whole step.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glipv2.losses.criterion import Criterion
from glipv2.model.boxes import LevelSizes, level_sizes
from glipv2.model.glipv2 import GLIPv2, Pyramid
from glipv2.optim import OptimConfig, make_optimizer
from glipv2.sample import Batch, GroundingSample, collate
from glipv2.text.tokenizer import Tokenizer
from glipv2.train import backward
from glipv2.transfer.feature_cache import FeatureCache
from glipv2.transfer.protocol import Mode, TuningConfig
from glipv2.transfer.tuned_prompt import encode_prompt
from glipv2.transfer.views import View, take_view

FIRST_STAGE = ("swin.patch_embed.", "swin.patch_norm.", "swin.stages.0.", "swin.stages.1.0.")
"""What ``full`` leaves alone (reference: ``FREEZE_CONV_BODY_AT 2``); the last is the merging, which upstream counts
among the first stage."""
PREDICTION_LAYERS = (
    *("head.box.", "head.centerness.", "head.text_projection."),
    *("head.log_scale", "head.text_bias", "head.bias"),
)
"""What ``linear`` learns (reference: ``linear_prob``); the levels' scales of the boxes are not among it."""

Item = TypeVar("Item")


class Learner(Protocol):
    """What `glipv2.transfer.tune.tune` drives."""

    optimizer: torch.optim.Optimizer
    """Moves `parameters`."""
    parameters: list[nn.Parameter]
    """All that is learned."""

    def prepare(self) -> None:
        """Get ready to train: an evaluation may have come between."""
        ...

    def backward(self, views: Sequence[View]) -> float:
        """Add up the gradients of one step and return its loss; one that is not finite has left them incomplete."""
        ...

    @property
    def offset(self) -> Float[Tensor, "t d"] | None:
        """The offset as it is; None where the model itself is tuned."""
        ...


class WeightLearner:
    """Tunes the model itself, or its prediction layers."""

    offset = None

    def __init__(
        self, model: GLIPv2, tokenizer: Tokenizer, samples: Sequence[GroundingSample], cfg: TuningConfig
    ) -> None:
        """Freeze what ``cfg.mode`` does not learn."""
        self.model, self.tokenizer, self.samples, self.cfg = model, tokenizer, samples, cfg
        self.criterion = Criterion(model.cfg)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_learned(name, cfg.mode))
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optim = OptimConfig(lr=cfg.lr, text_lr=cfg.text_lr, weight_decay=cfg.weight_decay, warmup_steps=0)
        self.optimizer: torch.optim.Optimizer = make_optimizer(model, optim)

    def prepare(self) -> None:
        """Put into training mode what learns, and all else into eval mode."""
        self.model.train()
        for module in self.model.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()

    def backward(self, views: Sequence[View]) -> float:
        """Run the whole model, group by group."""
        multiple, device = self.model.cfg.pad_multiple_px, self.parameters[0].device
        samples = [take_view(self.samples[view.index], view, self.model.cfg) for view in views]
        groups = _groups(samples, lambda sample: tuple(-(-side // multiple) for side in sample.picture.size))
        batches = [collate(group, self.tokenizer, multiple) for group in groups]
        sizes = [level_sizes(batch.pixels.shape[2], batch.pixels.shape[3], self.model.cfg.strides) for batch in batches]
        totals = _add_up(self.criterion, sizes, batches).to(device)
        criterion = partial(self.criterion, totals=totals)
        return sum(backward(self.model, criterion, batch.to(device), bf16=self.cfg.bf16)["loss"] for batch in batches)


class PromptLearner:
    """Tunes one matrix added to the text features before the fusion (GLIPv2 section 3.3; ``language_prompt_v2``).

    It starts at zero and covers the prompt's own tokens only; the reference's 1000 rows also act on padding. All else
    is frozen, so the encoders run once per view and prompt, and a step costs the tower alone.
    """

    def __init__(
        self,
        model: GLIPv2,
        tokenizer: Tokenizer,
        samples: Sequence[GroundingSample],
        cfg: TuningConfig,
        cache: FeatureCache,
    ) -> None:
        """Freeze the model and encode the prompt, which all samples share."""
        self.model, self.tokenizer, self.samples, self.cfg = model.eval().requires_grad_(False), tokenizer, samples, cfg
        self.criterion, self.cache = Criterion(model.cfg), cache
        self.device = next(model.parameters()).device
        self._prompt = samples[0].text
        self._truths: dict[View, Batch] = {}
        self._text = encode_prompt(model, tokenizer, self._prompt)
        self._learned = nn.Parameter(torch.zeros_like(self._text))
        self.parameters = [self._learned]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.parameters, lr=cfg.lr, weight_decay=cfg.weight_decay
        )

    @property
    def offset(self) -> Float[Tensor, "t d"]:
        """The offset as it is."""
        return self._learned.detach().clone()

    def prepare(self) -> None:
        """Keep the model in eval mode."""
        self.model.eval()

    def backward(self, views: Sequence[View]) -> float:
        """Run fusion and head on cached features, group by group."""
        groups = [
            tuple(zip(*group, strict=True))
            for group in _groups([self._look(view) for view in views], lambda pair: pair[0][0].shape)
        ]
        batches = [_join(truths) for _, truths in groups]
        sizes = [tuple((level.shape[2], level.shape[3]) for level in pyramids[0]) for pyramids, _ in groups]
        totals, loss = _add_up(self.criterion, sizes, batches).to(self.device), 0.0
        for (pyramids, _), batch in zip(groups, batches, strict=True):
            levels = [torch.cat(level).to(self.device).float() for level in zip(*pyramids, strict=True)]
            own = self._loss(levels, batch.to(self.device), totals)
            loss += own.item()
            if math.isfinite(loss):
                own.backward()
        return loss

    def _loss(self, pyramid: Pyramid, batch: Batch, totals: Float[Tensor, "2"]) -> Float[Tensor, ""]:
        text = (self._text + self._learned).expand(len(batch.mask), -1, -1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.bf16):
            regions = self.model.fuse(pyramid, text, batch.mask)
        return torch.stack(list(self.criterion.grounding(regions, batch, totals).values())).sum()

    def _look(self, view: View) -> tuple[Pyramid, Batch]:
        """Give a view's features and truth; its picture is read only where one of them is not there."""
        known = self._truths.get(view)
        whole = self._read(view) if known is None else None
        pyramid = self.cache.get(view, lambda: self._encode(whole or self._read(view)))
        if whole is not None:
            known = self._truths[view] = replace(whole, pixels=whole.pixels[..., :0, :0].clone())
        assert known is not None
        return pyramid, known

    def _read(self, view: View) -> Batch:
        sample = take_view(self.samples[view.index], view, self.model.cfg)
        if sample.text != self._prompt:
            raise ValueError(
                f"sample {view.index} has the text {sample.text[:40]!r}, but the first has {self._prompt[:40]!r}; "
                "prompt tuning learns one text, so give all samples the same"
            )
        return collate([sample], self.tokenizer, self.model.cfg.pad_multiple_px)

    @torch.no_grad()
    def _encode(self, batch: Batch) -> Pyramid:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.bf16):
            return self.model.encode_image(batch.pixels.to(self.device))


def is_learned(name: str, mode: Mode) -> bool:
    """Tell whether a parameter of the model is learned; in ``prompt`` none is."""
    if mode == "full":
        return not name.startswith(FIRST_STAGE)
    return mode == "linear" and name.startswith(PREDICTION_LAYERS)


def _groups(items: Sequence[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Put together what has the same key, in the order it came."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _add_up(criterion: Criterion, sizes: Sequence[LevelSizes], batches: Sequence[Batch]) -> Float[Tensor, "2"]:
    """Count what the losses of a step are divided by: each box weighs the same, whatever group its image is in."""
    return torch.stack([criterion.count(size, batch) for size, batch in zip(sizes, batches, strict=True)]).sum(0)


def _join(batches: Sequence[Batch]) -> Batch:
    """Make one batch of batches whose texts are equally long."""
    names = [field.name for field in fields(Batch) if field.name != "targets"]
    tensors = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
    return Batch(**tensors, targets=tuple(target for batch in batches for target in batch.targets))
