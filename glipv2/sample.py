"""What the model eats: one image with its text and boxes, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glipv2.image import Picture, pad_pictures
from glipv2.model.boxes import to_inclusive
from glipv2.text.positive_map import positive_map, tokens_of_span
from glipv2.text.tokenizer import CharSpan, Encoding, WordPiece

NOT_PREDICTED = -100
"""Cross-entropy ignores this label by default."""


@dataclass(frozen=True, kw_only=True)
class GroundingSample:
    """An image, a text, and boxes tied to characters of that text."""

    picture: Picture
    """Resized, normalised pixels."""
    text: str
    """Caption or detection prompt."""
    boxes_xyxy: Float[Tensor, "n 4"]
    """Half-open pixels of the resized picture."""
    tokens_positive: list[list[CharSpan]]
    """Per box, the ``[begin, end)`` character spans it is positive for."""
    unknown: list[CharSpan] = field(default_factory=list)
    """Spans that may well be in the picture but have no box: their tokens are left out of the loss."""
    categories: list[int] = field(default_factory=list)
    """Per box its category in the global vocabulary; empty for a sentence."""
    category_spans: dict[int, CharSpan] = field(default_factory=dict)
    """For a detection prompt, the span of every category in it, present and absent; empty for a sentence."""
    seed: int = 0
    """Decides which words are masked; from (epoch, sample id), so that a resumed run masks the same."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one image's regions are compared with."""

    boxes_xyxy: Float[Tensor, "n 4"]
    """Inclusive pixels (`glipv2.model.boxes`)."""
    positive_map: Float[Tensor, "n t"]
    """1 on each box's tokens."""
    categories: Int[Tensor, " n"]
    """Per box its category in the global vocabulary, -1 if it has none."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples ready for the model; texts are padded to the longest one, which changes no valid output."""

    pixels: Float[Tensor, "b 3 h w"]
    """Normalised, then zero padded right and bottom."""
    ids: Int[Tensor, "b t"]
    """Token ids."""
    mask: Int[Tensor, "b t"]
    """1 on valid tokens."""
    loss_mask: Bool[Tensor, "b t"]
    """Tokens that count in the loss: valid and not unknown."""
    token_categories: Int[Tensor, "b t"]
    """Per token the category whose name it belongs to; -1 outside names, and everywhere in a sentence."""
    masked_words: Int[Tensor, "b t"]
    """The true id of every masked word that is to be predicted, `NOT_PREDICTED` elsewhere."""
    targets: tuple[Target, ...]
    """One per image."""

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        return Batch(
            pixels=self.pixels.to(device, non_blocking=True),
            ids=self.ids.to(device),
            mask=self.mask.to(device),
            loss_mask=self.loss_mask.to(device),
            token_categories=self.token_categories.to(device),
            masked_words=self.masked_words.to(device),
            targets=tuple(
                Target(
                    boxes_xyxy=t.boxes_xyxy.to(device),
                    positive_map=t.positive_map.to(device),
                    categories=t.categories.to(device),
                )
                for t in self.targets
            ),
        )


def pad_tokens(encodings: Sequence[Encoding], pad_id: int) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Stack encodings into ids and a mask, padded to the longest."""
    longest = max(len(e.ids) for e in encodings)
    ids = torch.full((len(encodings), longest), pad_id, dtype=torch.long)
    mask = torch.zeros(len(encodings), longest, dtype=torch.long)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
        mask[row, : len(encoding.ids)] = 1
    return ids, mask


def collate(samples: Sequence[GroundingSample], tokenizer: WordPiece, pad_multiple_px: int) -> Batch:
    """Make a batch. A box none of whose spans survives the cut of the text stays, as a box without words."""
    encodings = tokenizer([sample.text for sample in samples])
    ids, mask = pad_tokens(encodings, tokenizer.pad_id)
    loss_mask, token_categories = mask > 0, torch.full_like(mask, -1)
    targets = []
    for row, (sample, encoding) in enumerate(zip(samples, encodings, strict=True)):
        positive = positive_map(encoding.offsets, sample.tokens_positive, ids.shape[1])
        for span in sample.unknown:
            unknown = torch.zeros(ids.shape[1], dtype=torch.bool)
            unknown[tokens_of_span(encoding.offsets, span)] = True
            loss_mask[row] &= ~(unknown & (positive.sum(0) == 0))
        for category, span in sample.category_spans.items():
            token_categories[row, tokens_of_span(encoding.offsets, span)] = category
        categories = torch.tensor(sample.categories or [-1] * len(positive), dtype=torch.long)
        boxes = to_inclusive(sample.boxes_xyxy)
        targets.append(Target(boxes_xyxy=boxes, positive_map=positive, categories=categories))
    pixels = pad_pictures([sample.picture for sample in samples], pad_multiple_px)
    return Batch(
        pixels=pixels,
        ids=ids,
        mask=mask,
        loss_mask=loss_mask,
        token_categories=token_categories,
        masked_words=torch.full_like(ids, NOT_PREDICTED),
        targets=tuple(targets),
    )
