"""How a model is tuned to a data set: three modes, the published numbers, and when the rate drops and tuning stops."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

Mode = Literal["full", "linear", "prompt"]
"""``full``: all but the first stage of the image encoder; ``linear``: the prediction layers; ``prompt``: one offset of
the text features."""
Decay = Literal["plateau", "cosine"]
"""When the rate falls: `Plateau`, as published, or `Cosine`."""
COPIES = {1: 8, 3: 4, 5: 2, 10: 1}
"""By shots, how often an epoch repeats the images (reference: ``1_200_8``, ``3_200_4``, ``5_200_2``, ``10_200_1``)."""
MULTI_SCALE = (0.6, 0.7, 0.8, 0.9, 1.0)
"""The reference's 480, 560, 640, 720 and 800 px, as parts of the last."""
DROP = 0.1
"""What a plateau multiplies the learning rate by."""


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """How a model is tuned. `protocol_for` gives the published numbers."""

    mode: Mode
    """What is learned."""
    lr: float
    """Learning rate (AdamW)."""
    text_lr: float = 1e-5
    """Learning rate of the text encoder; only ``full`` trains it."""
    weight_decay: float
    """On matrices and filters; in ``prompt`` it pulls the offset back to zero."""
    batch_size: int = 4
    """Images per step. Those of different padded size pass the model apart; each box weighs the same."""
    max_epochs: int = 200
    """Longest tuning, epochs."""
    copies: int = 1
    """How often every image occurs in an epoch."""
    decay: Decay = "plateau"
    """``plateau`` lowers the rate when AP no longer rises and stops when it falls; ``cosine`` lowers it to nearly zero
    over ``max_epochs`` whatever AP does, and minds no patience: better where there is time for few epochs."""
    step_patience: int = 3
    """Evaluations without improvement the learning rate outlasts; the next one lowers it tenfold (`Plateau`)."""
    stop_patience: int = 8
    """Evaluations below the best after which tuning stops (`Plateau`)."""
    evaluate_every: int = 1
    """Epochs between evaluations on the validation split; the last epoch is always evaluated."""
    lr_floor: float = 1e-6
    """Lowest learning rate a plateau leads to."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    flip: float = 0.0
    """Probability of mirroring an image; never done where the text speaks of left or right."""
    scales: tuple[float, ...] = (1.0,)
    """Parts of the model's short side, one drawn anew each time an image is seen. ``prompt`` keeps the features of
    every size and side it has drawn: at most ``2 * len(scales)`` times the memory."""
    bf16: bool = False
    """Run the forward pass in bfloat16."""
    cache_mib: int = 4096
    """Memory for cached image features, MiB; what does not fit goes to ``cache_folder``. Only ``prompt`` caches."""
    cache_folder: Path | None = None
    """Existing folder for features beyond ``cache_mib``, mapped into memory and deleted at the end; without one they
    are computed again each time."""
    cache_bf16: bool = False
    """Keep cached features in bfloat16: half the memory, and numbers that differ a little."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        counts = ("batch_size", "max_epochs", "copies", "stop_patience", "evaluate_every")
        for name, least in (*((name, 1) for name in counts), ("step_patience", 0), ("cache_mib", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}")
        for name in ("lr", "text_lr", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        for name in ("weight_decay", "lr_floor"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}; give a probability between 0 and 1")
        if not self.scales or not all(0 < scale <= 4 for scale in self.scales):
            raise ValueError(f"scales is {self.scales}; give one or more numbers above 0 and up to 4, usually 0.6 to 1")


def protocol_for(mode: Mode, shots: int | None) -> TuningConfig:
    """Give the published numbers (GLIP appendix E, and the reference's commands for ODinW).

    The reference also mirrors and resizes at random in prompt tuning; here that is off, as each variant of an image
    costs an encoding and its memory. Set ``flip`` and ``scales`` to have it.

    Args:
        mode: what is learned.
        shots: images per category, None for all data. Of a number between the published ones, the images are repeated
            as often as of the next lower one.

    Raises:
        ValueError: ``shots`` is less than one.
    """
    if shots is not None and shots < 1:
        raise ValueError(f"shots is {shots}; give 1 or more, or None for all data")
    copies = 1 if shots is None else COPIES[max(known for known in COPIES if known <= shots)]
    step_patience, stop_patience = (2, 4) if shots is None else (3, 8)
    prompt = mode == "prompt"
    return TuningConfig(
        mode=mode,
        lr=0.05 if prompt else 1e-4,
        weight_decay=0.25 if prompt else 0.05,
        copies=copies,
        step_patience=step_patience,
        stop_patience=stop_patience,
        flip=0.0 if prompt else 0.5,
        scales=(1.0,) if prompt else MULTI_SCALE,
    )


class Plateau:
    """Lower the learning rate and stop when AP no longer rises, counting as the reference does.

    The two count apart. For the rate, a tie, or a gain below a ten-thousandth, is no improvement: more than
    ``step_patience`` of these in a row lower it tenfold, and the count begins anew. For the stop a tie is as good as a
    gain: ``stop_patience`` evaluations in a row below the best end it. An AP of zero says nothing about the rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, cfg: TuningConfig) -> None:
        """Begin without any AP seen."""
        self._rate = ReduceLROnPlateau(
            optimizer, mode="max", factor=DROP, patience=cfg.step_patience, min_lr=cfg.lr_floor
        )
        self._stop_patience = cfg.stop_patience
        self._best, self._stale = 0.0, 0

    def begin(self, epoch: int) -> None:
        """Leave the rate as the last evaluation left it."""

    def step(self, ap: float) -> bool:
        """Take note of an AP; tell whether to stop."""
        if ap > 0:
            self._rate.step(ap)
        if ap >= self._best:
            self._best, self._stale = ap, 0
        else:
            self._stale += 1
        return self._stale >= self._stop_patience


class Cosine:
    """Lower the learning rate from epoch to epoch along half a cosine; never stop early."""

    def __init__(self, optimizer: torch.optim.Optimizer, cfg: TuningConfig) -> None:
        """Remember the rates to start from."""
        self._groups, self._max_epochs, self._floor = optimizer.param_groups, cfg.max_epochs, cfg.lr_floor
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def begin(self, epoch: int) -> None:
        """Set the rate of an epoch, counted from 1."""
        part = 0.5 * (1 + math.cos(math.pi * (epoch - 1) / self._max_epochs))
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = max(self._floor, part * rate)

    def step(self, ap: float) -> bool:
        """Go on."""
        return False


def make_schedule(optimizer: torch.optim.Optimizer, cfg: TuningConfig) -> Plateau | Cosine:
    """Make what lowers the rate."""
    return Plateau(optimizer, cfg) if cfg.decay == "plateau" else Cosine(optimizer, cfg)
