"""The training objective: assignment, then the sum of the losses (GLIPv2 eq. 2)."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glipv2.config import ModelConfig
from glipv2.losses.assign import assign, centerness_targets, of_owner
from glipv2.losses.contrast import ContrastConfig, as_reference, inter_image_loss
from glipv2.losses.grounding import giou_loss, token_focal_loss
from glipv2.losses.mlm import masked_word_loss
from glipv2.losses.workers import num_workers, sum_over_workers
from glipv2.model.boxes import LevelSizes, decode, make_anchors
from glipv2.model.glipv2 import Outputs
from glipv2.model.heads import Regions
from glipv2.sample import Batch

LOSSES = ("loss_token", "loss_box", "loss_centerness", "loss_inter", "loss_mlm")
"""Every name `Criterion` may return."""
BOX_WEIGHT = 2.0
"""Of GIoU within L_loc."""
NO_OBJECT = 255
"""Token position that stands for "no object" in the reference: the last of its 256."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the model is taught. A weight of 0 switches a term off; the paper weighs all four alike."""

    intra: float = 1.0
    """Of L_intra: regions against the words of their own image (``loss_token``)."""
    loc: float = 1.0
    """Of L_loc: ``loss_box`` (GIoU x 2) and ``loss_centerness``."""
    inter: float = 0.0
    """Of L_inter: regions against the words of all images (``loss_inter``); wants a model with a contrast head."""
    mlm: float = 0.0
    """Of L_mlm: masked words (``loss_mlm``); wants a model with a word head."""
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    """How L_inter is counted. A model of the reference's variant counts as the reference does."""
    no_object_token: bool = False
    """Teach background anchors the token at position 255, as the reference does. Only a text that fills all 256
    positions has a token there, its end token; elsewhere this changes nothing."""

    def __post_init__(self) -> None:
        """Check the weights."""
        weights = {"intra": self.intra, "loc": self.loc, "inter": self.inter, "mlm": self.mlm}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} is {weight}; give a weight of 0 (off) or more, usually 1")
        if not any(weights.values()):
            raise ValueError("intra, loc, inter and mlm are all 0, so nothing is learned; switch one of them on")

    def check(self, model: ModelConfig) -> None:
        """See to it that the model has the heads.

        Raises:
            ValueError: it lacks one.
        """
        if self.inter and model.contrast == "none":
            raise ValueError(
                f"inter is {self.inter}, but the model has no contrast head; set the model's contrast to paper (or "
                "reference), or inter to 0"
            )
        if self.mlm and not model.word_head:
            raise ValueError(
                f"mlm is {self.mlm}, but the model has no word head; set the model's word_head to true, or mlm to 0"
            )


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Which anchor answers for which box; found once, used by every loss."""

    anchors: Float[Tensor, "a 4"]
    """Inclusive pixels."""
    owners: Int[Tensor, "b a"]
    """Per anchor the box of its image, -1 for background."""


class Criterion(nn.Module):
    """L_intra + L_loc + L_inter + L_mlm, as far as they are switched on, normalised over all workers."""

    def __init__(self, cfg: ModelConfig, losses: LossConfig | None = None) -> None:
        """Remember the anchors' geometry and the terms.

        Raises:
            ValueError: the model lacks a head that a term wants.
        """
        super().__init__()
        self.losses = losses or LossConfig()
        self.losses.check(cfg)
        self.strides, self.anchor_scale = cfg.strides, cfg.anchor_scale
        counting = self.losses.contrast
        self.contrast = as_reference(counting) if cfg.contrast == "reference" else counting

    def forward(
        self, outputs: Outputs, batch: Batch, totals: Float[Tensor, "2"] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute each weighted loss that is switched on; their plain sum is the objective.

        Args:
            outputs: of the model.
            batch: what it was asked.
            totals: `count` of the whole step, where the batch is a part of it: the losses of the parts add up to those
                of the step. The batch's own if not given.
        """
        matches = self.match(outputs.regions.level_sizes, batch)
        losses = self._grounding(outputs.regions, matches, batch, totals)
        if self.losses.inter:
            assert outputs.contrast is not None
            inter = inter_image_loss(outputs.contrast, matches.owners, batch, self.contrast)
            losses["loss_inter"] = self.losses.inter * inter
        if self.losses.mlm:
            assert outputs.word_logits is not None
            losses["loss_mlm"] = self.losses.mlm * masked_word_loss(outputs.word_logits, batch.masked_words)
        return losses

    def grounding(
        self, regions: Regions, batch: Batch, totals: Float[Tensor, "2"] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute L_intra and L_loc alone, for those who have no more than regions."""
        return self._grounding(regions, self.match(regions.level_sizes, batch), batch, totals)

    def count(self, level_sizes: LevelSizes, batch: Batch) -> Float[Tensor, "2"]:
        """Count what the losses of a batch are divided by: anchors that answer for a box, and their centerness."""
        return _count(self._owned(self.match(level_sizes, batch), batch)[2])

    def match(self, level_sizes: LevelSizes, batch: Batch) -> Matches:
        """Assign anchors to boxes, image by image."""
        anchors = make_anchors(level_sizes, self.strides, self.anchor_scale, batch.mask.device)
        lengths = [height * width for height, width in level_sizes]
        owners = [assign(anchors, lengths, target.boxes_xyxy) for target in batch.targets]
        return Matches(anchors=anchors, owners=torch.stack(owners))

    def _owned(self, matches: Matches, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Give the anchors that answer for a box, their boxes, and how central they are in them."""
        owned, pairs = matches.owners >= 0, zip(batch.targets, matches.owners, strict=True)
        boxes = torch.stack([of_owner(target.boxes_xyxy, owner, 0) for target, owner in pairs])[owned]
        anchors = matches.anchors.expand(len(batch.targets), -1, -1)[owned]
        return anchors, boxes, centerness_targets(anchors, boxes)

    def _grounding(
        self, regions: Regions, matches: Matches, batch: Batch, step: Float[Tensor, "2"] | None
    ) -> dict[str, Tensor]:
        """Compute L_intra and L_loc. Images without boxes are allowed.

        Tokens outside ``batch.loss_mask`` take no part: padding, and phrases whose boxes are unknown.
        """
        owned = matches.owners >= 0
        anchors, boxes, centerness = self._owned(matches, batch)
        totals = sum_over_workers(_count(centerness) if step is None else step)
        num_positives, centerness_sum = totals.maximum(totals.new_tensor([1.0, 1e-6])) / num_workers()

        losses = {}
        if self.losses.intra:
            pairs = zip(batch.targets, matches.owners, strict=True)
            targets = torch.stack([of_owner(target.positive_map, owner, 0) for target, owner in pairs])
            if self.losses.no_object_token and targets.shape[2] > NO_OBJECT:
                targets[..., NO_OBJECT].masked_fill_(~owned, 1.0)
            token = token_focal_loss(regions.alignment, targets, batch.loss_mask)
            losses["loss_token"] = self.losses.intra * token / num_positives
        if self.losses.loc:
            giou = giou_loss(decode(regions.box_deltas[owned], anchors), boxes)
            binary = F.binary_cross_entropy_with_logits(regions.centerness[owned], centerness, reduction="sum")
            losses["loss_box"] = self.losses.loc * BOX_WEIGHT * (giou * centerness).sum() / centerness_sum
            losses["loss_centerness"] = self.losses.loc * binary / num_positives
        return losses


def _count(centerness: Float[Tensor, " n"]) -> Float[Tensor, "2"]:
    return torch.stack([centerness.new_tensor(float(len(centerness))), centerness.sum()])
