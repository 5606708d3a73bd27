"""From grounding shards to training batches, in an order that depends on nothing but the seed.

Step ``k`` of a run always sees the same samples, prompts and flips, whatever the number of workers and however often
the run was resumed: `pipeline.mixture` orders the rows, and every choice is seeded by epoch, sample and copy.
"""

import io
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch.utils.data import Dataset

from glipv2.config import ModelConfig
from glipv2.image import prepare, scale_boxes
from glipv2.sample import Batch, GroundingSample, collate, covers
from glipv2.text.packing import PackedCaption, pack_captions
from glipv2.text.prompts import MAX_LABELS, Budget, clean_name, sample_prompt
from glipv2.text.sides import speaks_of_sides, swap_sides
from glipv2.text.tokenizer import CharSpan, Tokenizer
from pipeline import schema
from pipeline.mixture import Mixture, OrderConfig, Row, seeded
from pipeline.row_index import SourceConfig, require_manifest
from pipeline.selection import SelectionConfig
from pipeline.storage import Place

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How rows become samples."""

    batch_size: int
    """Images per step over all workers together."""
    accumulate: int = 1
    """Parts a worker's share of a step is worked on in, one after the other: less memory for the same batch. Losses are
    averaged over the parts, so they are not quite those of the whole (L_inter then sees fewer negatives)."""
    order: OrderConfig = field(default_factory=OrderConfig)
    """How samples follow each other."""
    short_sides_px: tuple[int, ...] = ()
    """Short sides an image is resized to, one drawn anew each time; none given, it is the model's ``min_size_px``."""
    flip: float = 0.5
    """Probability of mirroring an image."""
    flip_sides: Literal["skip", "swap"] = "skip"
    """What becomes of a sentence that speaks of left or right: its image is never mirrored, or the words are swapped.
    Words know no sense: "all right" is swapped too. Prompts of categories are always skipped: a swapped name would be
    another category's, or nobody's."""
    max_labels: int = MAX_LABELS
    """Categories in a detection prompt, present and absent ones together."""
    label_rule: Literal["paper", "reference"] = "paper"
    """How absent categories are drawn; the reference's rule draws ``max_labels`` of all and discards the present."""
    pack_negatives: bool = False
    """Pack pseudo-labelled captions with captions of other images, which teach words that are not true of this one."""
    mask_words: float = 0.0
    """Probability of every word to be hidden and predicted; the paper uses 0.15."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """Which pseudo-labels are used."""
    mask_unboxed_phrases: bool = True
    """Leave the words of a caption's phrase without a box out of the loss; False teaches them as absent (reference)."""
    seed: int = 0
    """Decides order, prompts and flips."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; give at least 1")
        if self.accumulate < 1:
            raise ValueError(f"accumulate is {self.accumulate}; give at least 1")
        if self.max_labels < 1:
            raise ValueError(f"max_labels is {self.max_labels}; give at least 1")
        for name, value in (("flip", self.flip), ("mask_words", self.mask_words)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; give a probability between 0 and 1")
        if any(side < 1 for side in self.short_sides_px):
            raise ValueError(f"short_sides_px is {self.short_sides_px}; give pixels from 1 up, or none at all")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Categories of a detection source, and how many of them fit into a prompt; empty for captions."""

    names: dict[int, str]
    """Name by category id."""
    budget: Budget
    """Tokens each name costs."""
    global_ids: dict[int, int]
    """By category id, the id its name has in the whole mixture: ids of different sources agree by chance alone."""


class TrainingSet(Dataset[Batch]):
    """The mixture, by parts of steps: where steps have one part, item ``k`` is a worker's share of step ``k``."""

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        cfg: IngestConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        worker: tuple[int, int] = (0, 1),
    ) -> None:
        """Read what is to be known of the sources.

        Args:
            sources: the mixture.
            cfg: how rows become samples.
            model: sizes of images and prompts.
            tokenizer: of the model.
            worker: rank and number of workers.

        Raises:
            ValueError: a source is unfinished, nothing can be trained on, or the batch is too small.
        """
        self.rank, self.world = worker
        check_division(cfg, self.world)
        self.cfg, self.model, self.tokenizer = cfg, model, tokenizer
        self.mixture = Mixture(sources, cfg.selection, cfg.order, cfg.seed)
        self.vocabularies = []
        numbers: dict[str, int] = {}
        for source in sources:
            names = category_names(source.path)
            budget = Budget.of(names, tokenizer, cfg.max_labels, cfg.label_rule)
            ids = {key: numbers.setdefault(clean_name(name).lower(), len(numbers)) for key, name in names.items()}
            self.vocabularies.append(Vocabulary(names=names, budget=budget, global_ids=ids))

    def __getitem__(self, item: int) -> Batch:
        """Make this worker's share of part ``item % accumulate`` of step ``item // accumulate``."""
        step, part = divmod(item, self.cfg.accumulate)
        mine = self.mixture.batch(step, self.cfg.batch_size)[self.rank :: self.world][part :: self.cfg.accumulate]
        samples = [self._sample(*place) for place in mine]
        return collate(samples, self.tokenizer, self.model.pad_multiple_px, self.cfg.mask_words)

    def _sample(self, epoch: int, source: int, number: int, copy: int) -> GroundingSample:
        row = self.mixture.read(source, number)
        which = (copy,) if copy else ()  # the first copy is what the sample is without copies
        rng = seeded(self.cfg.seed, epoch, row["sample_id"], *which)
        sample = make_sample(row, self.vocabularies[source], self.cfg, self.model, rng)
        if self.cfg.pack_negatives and row["kind"] == schema.CAPTION:
            return _pack(sample, pack_captions(sample.text, self.mixture.captions, rng, self.tokenizer))
        return sample


def check_division(cfg: IngestConfig, num_workers: int) -> None:
    """See to it that every worker has a sample in every part of a step; shares may differ by one.

    Raises:
        ValueError: there are too few.
    """
    if cfg.batch_size < num_workers * cfg.accumulate:
        parts = f" in {cfg.accumulate} parts" if cfg.accumulate > 1 else ""
        raise ValueError(
            f"batch_size {cfg.batch_size} is too small for {num_workers} workers{parts}; give "
            f"{num_workers * cfg.accumulate} or more"
        )


def category_names(source: Path | Place) -> dict[int, str]:
    """Read a source's vocabulary from its manifest; empty for captions."""
    names = require_manifest(source).config.get("categories", {})
    return {int(key): str(name) for key, name in names.items()} if isinstance(names, dict) else {}


def make_sample(
    row: Row, vocabulary: Vocabulary, cfg: IngestConfig, model: ModelConfig, rng: random.Random
) -> GroundingSample:
    """Build one training sample: the prompt of a detection row is drawn anew each time.

    A box that covers nothing of the picture, if only by rounding, is dropped; its words count as without a box.
    """
    detection = row["kind"] == schema.DETECTION
    words = _draw_prompt(row, vocabulary, rng) if detection else _read_sentence(row, cfg)
    sided = speaks_of_sides(words.text)
    flip = rng.random() < cfg.flip and not (sided and (detection or cfg.flip_sides == "skip"))
    if flip and sided:
        words = _swap(words)
    if cfg.short_sides_px:
        model = replace(model, min_size_px=rng.choice(cfg.short_sides_px))
    with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
        picture = prepare(image, model, flip=flip)
    boxes = scale_boxes(torch.tensor(row["boxes"], dtype=torch.float32).view(-1, 4)[words.boxes], picture, flip=flip)
    keep = covers(boxes, picture.size)
    if lost := int((~keep).sum()):
        logger.warning("%s: %d of %d boxes cover nothing and are dropped", row["sample_id"], lost, len(boxes))
        words = _without_boxes(words, keep.tolist())
    return GroundingSample(
        picture=picture,
        text=words.text,
        boxes_xyxy=boxes[keep],
        tokens_positive=words.tokens_positive,
        unknown=words.unknown,
        incomplete=words.incomplete,
        categories=words.categories,
        category_spans=words.category_spans,
        seed=rng.getrandbits(32),
    )


@dataclass(frozen=True, kw_only=True)
class _Words:
    """The text of a sample and what it says of the boxes; names as in `GroundingSample`."""

    text: str
    boxes: list[int]
    """Positions of the row's boxes that have words."""
    tokens_positive: list[list[CharSpan]]
    unknown: list[CharSpan] = field(default_factory=list)
    incomplete: list[CharSpan] = field(default_factory=list)
    categories: list[int] = field(default_factory=list)
    category_spans: dict[int, list[CharSpan]] = field(default_factory=dict)


def _draw_prompt(row: Row, vocabulary: Vocabulary, rng: random.Random) -> _Words:
    verified, not_exhaustive = row["neg_category_ids"], set(row["not_exhaustive_ids"] or ())
    absent = set(vocabulary.names if verified is None else verified) - not_exhaustive
    prompt = sample_prompt(row["category_id"], vocabulary.names, rng, vocabulary.budget, absent)
    keep = [i for i, category in enumerate(row["category_id"]) if category in prompt.spans]
    categories = [row["category_id"][i] for i in keep]
    spans: dict[int, list[CharSpan]] = {}
    for category, span in prompt.spans.items():
        spans.setdefault(vocabulary.global_ids[category], []).append(span)
    return _Words(
        text=prompt.text,
        boxes=keep,
        tokens_positive=[[prompt.spans[category]] for category in categories],
        incomplete=[prompt.spans[category] for category in prompt.spans if category in not_exhaustive],
        categories=[vocabulary.global_ids[category] for category in categories],
        category_spans=spans,
    )


def _read_sentence(row: Row, cfg: IngestConfig) -> _Words:
    unknown = []
    if row["kind"] == schema.CAPTION and cfg.mask_unboxed_phrases:
        entities = row["entity"] or range(len(row["phrases"]))
        boxed = {entities[i] for i in row["phrase_index"]}
        unknown = [(begin, end) for own, (begin, end) in zip(entities, row["phrases"], strict=True) if own not in boxed]
    spans = [[(begin, end) for begin, end in box] for box in row["tokens_positive"]]
    return _Words(text=row["text"], boxes=list(range(len(spans))), tokens_positive=spans, unknown=unknown)


def _without_boxes(words: _Words, keep: list[bool]) -> _Words:
    dropped = [span for spans, kept in zip(words.tokens_positive, keep, strict=True) if not kept for span in spans]
    return replace(
        words,
        tokens_positive=list(compress(words.tokens_positive, keep)),
        categories=list(compress(words.categories, keep)),
        unknown=[*words.unknown, *dropped],
    )


def _swap(words: _Words) -> _Words:
    text, unknown = swap_sides(words.text, words.unknown)
    moved = [swap_sides(words.text, spans)[1] for spans in words.tokens_positive]
    return replace(words, text=text, tokens_positive=moved, unknown=unknown)


def _pack(sample: GroundingSample, packed: PackedCaption) -> GroundingSample:
    def shift(spans: list[CharSpan]) -> list[CharSpan]:
        return [(packed.begin + begin, packed.begin + end) for begin, end in spans]

    moved = [shift(spans) for spans in sample.tokens_positive]
    return replace(sample, text=packed.text, tokens_positive=moved, unknown=shift(sample.unknown))
