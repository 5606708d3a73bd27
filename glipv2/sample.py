"""What the model eats: one image with its text and boxes, and batches of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glipv2.image import Picture, pad_pictures
from glipv2.model.boxes import to_inclusive
from glipv2.text.masking import hide_words
from glipv2.text.positive_map import positive_map, tokens_of_span
from glipv2.text.tokenizer import CharSpan, Encoding, Tokenizer

NOT_PREDICTED = -100
"""Cross-entropy ignores this label by default."""


def covers(boxes_xyxy: Float[Tensor, "n 4"], size: tuple[int, int]) -> Bool[Tensor, " n"]:
    """Tell which boxes cover something of a picture of this width and height; one without four numbers does not."""
    width, height = size
    x1, y1, x2, y2 = boxes_xyxy.unbind(1)
    return (x1 < x2) & (y1 < y2) & (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0)


@dataclass(frozen=True, kw_only=True)
class GroundingSample:
    """An image, a text, and boxes tied to characters of that text."""

    picture: Picture
    """Resized, normalised pixels."""
    text: str
    """Caption or detection prompt."""
    boxes_xyxy: Float[Tensor, "n 4"]
    """Half-open pixels of the resized picture; what reaches over its edge is cut off when batched."""
    tokens_positive: list[list[CharSpan]]
    """Per box, the ``[begin, end)`` character spans it is positive for."""
    unknown: list[CharSpan] = field(default_factory=list)
    """Spans that may well be in the picture but have no box: their tokens are left out of the loss."""
    incomplete: list[CharSpan] = field(default_factory=list)
    """Spans of which only some of what is in the picture has a box: their tokens are left out of the loss too, as an
    unboxed one would be taught as absent; their boxes still teach where things are."""
    categories: list[int] = field(default_factory=list)
    """Per box its category in the global vocabulary; empty for a sentence."""
    category_spans: dict[int, list[CharSpan]] = field(default_factory=dict)
    """For a detection prompt, the spans of every category in it, present and absent; empty for a sentence."""
    seed: int = 0
    """Decides which words are masked; from (epoch, sample id), so that a resumed run masks the same."""

    def __post_init__(self) -> None:
        """Check that boxes, spans and categories belong together."""
        if len(self.tokens_positive) != len(self.boxes_xyxy) or len(self.categories) not in (0, len(self.boxes_xyxy)):
            raise ValueError(
                f"{len(self.boxes_xyxy)} boxes, {len(self.tokens_positive)} lists of spans and {len(self.categories)} "
                "categories; give one list of spans per box, and one category per box or none at all"
            )
        within = covers(self.boxes_xyxy, self.picture.size)
        if not within.all():
            box = self.boxes_xyxy[~within][0].tolist()
            width, height = self.picture.size
            raise ValueError(
                f"box {box} covers nothing of the picture of {width} x {height} px; give x1 < x2 and y1 < y2 in pixels "
                "of the resized picture (glipv2.image.scale_boxes), or drop the box"
            )
        for begin, end in [span for spans in self.tokens_positive for span in spans]:
            if not 0 <= begin < end <= len(self.text):
                raise ValueError(
                    f"span {(begin, end)} is not within the {len(self.text)} characters of {self.text[:40]!r}; give "
                    "[begin, end) with 0 <= begin < end <= length"
                )


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
        """Copy to a device, without waiting where the memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copy into pinned memory; a ``DataLoader`` that is to pin calls this."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: change(value) for name, value in vars(self).items() if name != "targets"}
        targets = (Target(**{name: change(value) for name, value in vars(t).items()}) for t in self.targets)
        return Batch(**tensors, targets=tuple(targets))


def pad_tokens(encodings: Sequence[Encoding], pad_id: int) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Stack encodings into ids and a mask, padded to the longest."""
    longest = max(len(e.ids) for e in encodings)
    ids = torch.full((len(encodings), longest), pad_id, dtype=torch.long)
    mask = torch.zeros(len(encodings), longest, dtype=torch.long)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
        mask[row, : len(encoding.ids)] = 1
    return ids, mask


def collate(
    samples: Sequence[GroundingSample], tokenizer: Tokenizer, pad_multiple_px: int, mask_words: float = 0.0
) -> Batch:
    """Make a batch. A box none of whose spans survives the cut of the text stays, as a box without words.

    Args:
        samples: at least one.
        tokenizer: of the model.
        pad_multiple_px: images are padded to a multiple of this.
        mask_words: probability of every word to be hidden and predicted. A sample is masked by its own seed, so the
            same way in whatever batch it comes; a hidden word stays positive for its boxes.
    """
    encodings = tokenizer([sample.text for sample in samples])
    ids, mask = pad_tokens(encodings, tokenizer.pad_id)
    loss_mask, token_categories = mask > 0, torch.full_like(mask, -1)
    masked_words = torch.full_like(ids, NOT_PREDICTED)
    targets = []
    for row, (sample, encoding) in enumerate(zip(samples, encodings, strict=True)):
        target = _make_target(sample, encoding, ids.shape[1])
        targets.append(target)
        loss_mask[row] &= ~_left_out(sample, encoding, target.positive_map)
        token_categories[row, : len(encoding.ids)] = _token_categories(sample, encoding)
        if mask_words:
            length = len(encoding.ids)
            corrupted, selected = hide_words(encoding, mask_words, tokenizer, sample.seed)
            if sample.category_spans:
                # The names of absent categories are corrupted alike but not scored, nor are separators: were only
                # present ones hidden, a mask would tell what is in the picture.
                selected &= torch.isin(token_categories[row, :length], target.categories)
            masked_words[row, :length][selected] = ids[row, :length][selected]
            ids[row, :length] = corrupted
    return Batch(
        pixels=pad_pictures([sample.picture for sample in samples], pad_multiple_px),
        ids=ids,
        mask=mask,
        loss_mask=loss_mask,
        token_categories=token_categories,
        masked_words=masked_words,
        targets=tuple(targets),
    )


def _make_target(sample: GroundingSample, encoding: Encoding, num_tokens: int) -> Target:
    positive = positive_map(encoding.offsets, sample.tokens_positive, num_tokens)
    return Target(
        boxes_xyxy=to_inclusive(sample.boxes_xyxy.clamp(min=0).minimum(torch.tensor(sample.picture.size * 2))),
        positive_map=positive,
        categories=torch.tensor(sample.categories or [-1] * len(positive), dtype=torch.long),
    )


def _token_categories(sample: GroundingSample, encoding: Encoding) -> Int[Tensor, " t"]:
    categories = [-1] * len(encoding.ids)  # a list, as a tensor takes longer for every name than all of this
    for category, spans in sample.category_spans.items():
        for token in (token for span in spans for token in tokens_of_span(encoding.offsets, span)):
            categories[token] = category
    return torch.tensor(categories)


def _left_out(sample: GroundingSample, encoding: Encoding, positive: Float[Tensor, "n t"]) -> Bool[Tensor, " t"]:
    unknown, incomplete = (
        positive_map(encoding.offsets, [spans], positive.shape[1])[0] > 0
        for spans in (sample.unknown, sample.incomplete)
    )
    return (unknown & (positive.sum(0) == 0)) | incomplete
