"""From grounding shards to training batches, in an order that depends on nothing but the seed.

Step ``k`` of a run always sees the same samples, prompts and flips, whatever the number of workers and however often
the run was resumed: the order is a seeded permutation per epoch, and every random choice is seeded by (epoch, sample).
Rows are held in memory as encoded images, so a worker needs the size of the shards in RAM.
"""

import hashlib
import io
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import torch
from PIL import Image
from torch.utils.data import Dataset

from glipv2.config import ModelConfig
from glipv2.image import prepare, scale_boxes
from glipv2.sample import Batch, GroundingSample, collate
from glipv2.text.prompts import MAX_LABELS, SEPARATOR, Budget, clean_name, sample_prompt
from glipv2.text.tokenizer import WordPiece
from pipeline import schema
from pipeline.selection import SelectionConfig, select
from pipeline.shards import open_rows, read_manifest

COLUMNS = ("sample_id", "kind", "image", "text", "phrases", "boxes", "tokens_positive", "phrase_index", "category_id")
SPECIAL = 2
"""Tokens around every text: its start and its end."""
SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One directory of grounding shards in the mixture."""

    path: Path
    """Finished directory, absolute."""
    copies: int = 1
    """How often each sample occurs in an epoch; 0 leaves the source out."""

    def __post_init__(self) -> None:
        """Check the count."""
        if self.copies < 0:
            raise ValueError(f"copies of {self.path} is {self.copies}; give 0 to leave it out, or a count")


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How rows become samples."""

    batch_size: int
    """Images per step over all workers together."""
    flip: float = 0.5
    """Probability of mirroring an image; texts that speak of left or right are never mirrored."""
    max_labels: int = MAX_LABELS
    """Categories in a detection prompt, present and absent ones together."""
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


Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Categories of a detection source, and how many of them fit into a prompt; empty for captions."""

    names: dict[int, str]
    """Name by category id."""
    budget: Budget
    """Tokens each name costs."""

    @staticmethod
    def of(names: dict[int, str], max_labels: int, tokenizer: WordPiece, max_tokens: int) -> "Vocabulary":
        """Count the tokens of every name once."""
        encoded = tokenizer([clean_name(name) + SEPARATOR for name in names.values()]) if names else []
        costs = {category: len(e.ids) - SPECIAL for category, e in zip(names, encoded, strict=True)}
        return Vocabulary(
            names=names, budget=Budget(tokens=costs, max_tokens=max_tokens - SPECIAL, max_labels=max_labels)
        )


class TrainingSet(Dataset[Batch]):
    """The mixture, indexed by training step: item ``k`` is this worker's share of global batch ``k``."""

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        cfg: IngestConfig,
        model: ModelConfig,
        tokenizer: WordPiece,
        worker: tuple[int, int] = (0, 1),
    ) -> None:
        """Read the sources.

        Args:
            sources: the mixture.
            cfg: how rows become samples.
            model: sizes of images and prompts.
            tokenizer: of the model.
            worker: rank and number of workers; the batch size must divide among them.

        Raises:
            ValueError: a source is unfinished, nothing can be trained on, or the batch does not divide.
        """
        self.rank, self.world = worker
        if cfg.batch_size % self.world:
            raise ValueError(
                f"batch_size {cfg.batch_size} does not divide among {self.world} workers; choose a multiple"
            )
        self.cfg, self.model, self.tokenizer = cfg, model, tokenizer
        self.samples: list[tuple[Row, Vocabulary]] = []
        for source in sources:
            vocabulary = Vocabulary.of(category_names(source.path), cfg.max_labels, tokenizer, model.max_tokens)
            rows = [(row, vocabulary) for row in read_trainable(source.path, cfg)] if source.copies else []
            self.samples += rows * source.copies
        if not self.samples:
            raise ValueError(f"no sample with a box in {[str(s.path) for s in sources]}; look at their manifests")

    @property
    def num_different(self) -> int:
        """Samples of the mixture, copies not counted."""
        return len({row["sample_id"] for row, _ in self.samples})

    def __getitem__(self, step: int) -> Batch:
        """Make this worker's part of global batch ``step``."""
        first = step * self.cfg.batch_size + self.rank
        positions = range(first, (step + 1) * self.cfg.batch_size, self.world)
        samples = [self._sample(*divmod(position, len(self.samples))) for position in positions]
        return collate(samples, self.tokenizer, self.model.pad_multiple_px)

    def _sample(self, epoch: int, position: int) -> GroundingSample:
        row, vocabulary = self.samples[self._order(epoch)[position]]
        return make_sample(row, vocabulary, self.cfg, self.model, _generator(self.cfg.seed, epoch, row["sample_id"]))

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_ordered_epoch", None) != epoch:
            order = list(range(len(self.samples)))
            _generator(self.cfg.seed, epoch, "order").shuffle(order)
            self._ordered_epoch, self._ordered = epoch, order
        return self._ordered


def category_names(source: Path) -> dict[int, str]:
    """Read a source's vocabulary from its manifest; empty for captions."""
    manifest = read_manifest(source)
    if manifest is None:
        raise ValueError(f"{source} holds no finished shards (no manifest.json); finish the stage that writes it")
    names = manifest.config.get("categories", {})
    return {int(key): str(name) for key, name in names.items()} if isinstance(names, dict) else {}


def read_trainable(source: Path, cfg: IngestConfig) -> Iterator[Row]:
    """Read the rows training can use: labelled, with at least one box that is not a crowd and is selected."""
    condition = pads.field("status") == schema.LABELLED
    for batch in open_rows(source).to_batches(columns=[*COLUMNS, "score", "iscrowd"], filter=condition):
        for row in batch.to_pylist():
            keep = _kept_boxes(row, cfg)
            if keep:
                for name in ("boxes", "tokens_positive", "phrase_index", "category_id"):
                    row[name] = [row[name][i] for i in keep] if row[name] is not None else None
                yield row


def _kept_boxes(row: Row, cfg: IngestConfig) -> list[int]:
    if row["kind"] == schema.CAPTION:
        return select(row["boxes"], row["score"], row["phrase_index"], cfg.selection)
    crowd = row["iscrowd"] or [False] * len(row["boxes"])
    return [i for i, flag in enumerate(crowd) if not flag]


def make_sample(
    row: Row, vocabulary: Vocabulary, cfg: IngestConfig, model: ModelConfig, rng: random.Random
) -> GroundingSample:
    """Build one training sample: the prompt of a detection row is drawn anew each time."""
    boxes = torch.tensor(row["boxes"], dtype=torch.float32).view(-1, 4)
    unknown: list[tuple[int, int]] = []
    categories: list[int] = []
    category_spans: dict[int, tuple[int, int]] = {}
    if row["kind"] == schema.DETECTION:
        prompt = sample_prompt(row["category_id"], vocabulary.names, rng, vocabulary.budget)
        keep = [i for i, category in enumerate(row["category_id"]) if category in prompt.spans]
        boxes = boxes[keep]
        categories = [row["category_id"][i] for i in keep]
        text, category_spans = prompt.text, prompt.spans
        spans = [[prompt.spans[category]] for category in categories]
    else:
        text = row["text"]
        spans = [[(begin, end) for begin, end in box] for box in row["tokens_positive"]]
        if row["kind"] == schema.CAPTION and cfg.mask_unboxed_phrases:
            boxed = set(row["phrase_index"])
            unknown = [(begin, end) for i, (begin, end) in enumerate(row["phrases"]) if i not in boxed]
    sided = row["kind"] != schema.DETECTION and SIDES.search(text) is not None
    flip = rng.random() < cfg.flip and not sided
    with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
        picture = prepare(image, model, flip=flip)
    return GroundingSample(
        picture=picture,
        text=text,
        boxes_xyxy=scale_boxes(boxes, picture, flip=flip),
        tokens_positive=spans,
        unknown=unknown,
        categories=categories,
        category_spans=category_spans,
        seed=rng.getrandbits(32),
    )


def _generator(*seed: object) -> random.Random:
    # Python's own hash() differs from process to process; this does not.
    digest = hashlib.sha256(repr(seed).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
