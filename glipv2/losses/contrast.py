"""L_inter: regions and words of different images are compared (GLIPv2 section 3.2, eq. 4).

Every region of the whole batch, over all workers, is compared with every word. With words of its own image it belongs
to those of its phrase; with words of another image to those that name its category in a detection prompt, and never to
a sentence. Cross entropy runs in both directions.
"""

import math
import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glipv2.losses.assign import of_owner
from glipv2.losses.workers import gather_rows, max_over_workers, num_workers, sum_over_workers
from glipv2.model.heads import ContrastFeatures
from glipv2.sample import Batch

MAX_SCALE = 100.0
"""Largest factor on a similarity, as in CLIP."""


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """How L_inter is counted; the defaults are ours where the paper is silent."""

    max_regions: int = 100
    """Regions per image that take part, drawn evenly from those that answer for a box."""
    half: bool = False
    """Halve the sum of both directions (reference)."""
    per_positive: bool = False
    """Divide both directions by the number of all anchors that answer for a box (reference), instead of each by the
    number of its own regions or words that have a partner."""
    skip_first_box: bool = False
    """Leave out the first box of every image: the reference takes its number 0 for "no box"."""
    random_pads: bool = False
    """Fill every image up to the largest number of regions with other anchors as further negatives (the reference's
    default; without it the reference masks, which is what we do)."""

    def __post_init__(self) -> None:
        """Check the number."""
        if self.max_regions < 1:
            raise ValueError(f"max_regions is {self.max_regions}; give at least 1, or weight the loss with 0")


def as_reference(cfg: ContrastConfig) -> ContrastConfig:
    """Count as the public code does; what it leaves to choose stays."""
    return replace(cfg, half=True, per_positive=True, skip_first_box=True)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One direction: this worker's queries against everybody's keys."""

    logits: Float[Tensor, "q k"]
    """Similarities over the temperature."""
    positive: Float[Tensor, "q k"]
    """1 where they belong together."""

    def cross_entropy(self) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Sum the cross entropy over the queries with a partner, all partners of one weighing alike; and count them."""
        partners = self.positive.sum(1)
        loss = -(self.positive * self.logits.log_softmax(1)).sum(1) / partners.clamp(min=1)
        return loss.sum(), (partners > 0).sum()


def inter_image_loss(
    features: ContrastFeatures, owners: Int[Tensor, "b a"], batch: Batch, cfg: ContrastConfig
) -> Float[Tensor, ""]:
    """Compute L_inter; a direction in which nobody has a partner counts nothing.

    Args:
        features: of the worker's images.
        owners: per anchor its box, -1 for background (`glipv2.losses.assign`).
        batch: positive maps and categories.
        cfg: how to count.
    """
    num_positives = (owners >= 0).sum()
    if cfg.skip_first_box:
        owners = owners.where(owners > 0, -1)
    regions, words = compare(features, owners, choose_regions(owners, batch, cfg), batch)
    (by_region, num_regions), (by_word, num_words) = regions.cross_entropy(), words.cross_entropy()
    counts = torch.stack([num_regions, num_words, num_positives])
    rows, columns, positives = sum_over_workers(counts).clamp(min=1) / num_workers()
    if cfg.per_positive:
        rows = columns = positives
    loss: Tensor = by_region / rows + by_word / columns
    return loss / 2 if cfg.half else loss


def choose_regions(owners: Int[Tensor, "b a"], batch: Batch, cfg: ContrastConfig) -> list[Int[Tensor, " _r"]]:
    """Choose the anchors of each image that take part.

    The draw hangs on the image's boxes alone, so it is the same on whatever worker and in whatever batch.
    """
    seeds = [zlib.crc32(target.boxes_xyxy.cpu().numpy().tobytes()) for target in batch.targets]
    chosen = [sample((row >= 0).nonzero()[:, 0], cfg.max_regions, s) for row, s in zip(owners, seeds, strict=True)]
    if cfg.random_pads:
        longest = max_over_workers(max(len(anchors) for anchors in chosen), owners.device)
        for image, (row, seed) in enumerate(zip(owners, seeds, strict=True)):
            others = (row < 0).nonzero()[:, 0]
            chosen[image] = torch.cat([chosen[image], sample(others, longest - len(chosen[image]), seed)])
    return chosen


def sample(pool: Int[Tensor, " p"], count: int, seed: int) -> Int[Tensor, " q"]:
    """Draw ``count`` of the pool without replacement, or all there are; in the pool's order."""
    if len(pool) <= count:
        return pool
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:count]
    return pool[drawn.sort().values.to(pool.device)]


def compare(
    features: ContrastFeatures, owners: Int[Tensor, "b a"], anchors: list[Int[Tensor, " _r"]], batch: Batch
) -> tuple[Comparison, Comparison]:
    """Compare the chosen regions with everybody's words, and the worker's words with everybody's regions."""
    region_image = torch.cat([torch.full_like(chosen, image) for image, chosen in enumerate(anchors)])
    region = features.regions[region_image, torch.cat(anchors)]
    word_image, position = _words(batch).nonzero(as_tuple=True)
    word = features.words[word_image, position]

    owner = [row[chosen] for row, chosen in zip(owners, anchors, strict=True)]
    pairs = list(zip(batch.targets, owner, strict=True))
    phrase = torch.cat([of_owner(target.positive_map, index, 0) for target, index in pairs])  # regions t
    region_category = torch.cat([of_owner(target.categories, index, -1) for target, index in pairs])
    word_category = batch.token_categories[word_image, position]
    own_image, own = region_image[:, None] == word_image, phrase[:, position]

    all_regions, own_regions = gather_rows(region)
    all_words, own_words = gather_rows(word)
    by_region = _same_category(region_category, gather_rows(word_category)[0])
    by_region[:, own_words] = torch.where(own_image, own, by_region[:, own_words])
    by_word = _same_category(word_category, gather_rows(region_category)[0])
    by_word[:, own_regions] = torch.where(own_image, own, by_word[:, own_regions].T).T

    scale = _Limit.apply(-features.log_temperature, math.log(MAX_SCALE)).exp()
    with torch.autocast(region.device.type, enabled=False):  # half precision cannot tell 0.99 from 0.993
        return (
            Comparison(logits=scale * region @ all_words.T, positive=by_region),
            Comparison(logits=scale * word @ all_regions.T, positive=by_word),
        )


class _Limit(torch.autograd.Function):
    """Clamp from above, with a gradient that leads back.

    Beyond the limit only a gradient that lowers the value is let through: with none at all it would stay there for
    ever, with all of it it would wander off ever further.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, limit: float) -> Tensor:
        ctx.beyond = value > limit
        return value.clamp(max=limit)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.where(~ctx.beyond | (gradient > 0), 0), None


def _words(batch: Batch) -> Bool[Tensor, "b t"]:
    """Say which tokens take part: all but padding and phrases left out of the loss.

    Such a phrase without a box may well be in the picture, so it is nobody's negative. One of which only some objects
    have boxes does take part: boxes are all that is compared with it.
    """
    return batch.loss_mask | torch.stack([(target.positive_map > 0).any(0) for target in batch.targets])


def _same_category(query: Int[Tensor, " q"], key: Int[Tensor, " k"]) -> Float[Tensor, "q k"]:
    return ((query[:, None] == key) & (key >= 0)).float()
