"""Ask a model what a benchmark asks: what an actor does with its blocks of images.

Prompts are tokenized once, texts encoded once, and an image is encoded once however many prompts are asked of it.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageOps

from glipv2.checkpoint import load, weights_sha256
from glipv2.image import UNREADABLE, to_rgb
from glipv2.inference.postprocess import PostprocessConfig
from glipv2.inference.predictor import Prediction, Predictor
from glipv2.inference.query import Query, make_queries
from glipv2.text.prompts import Prompt
from pipeline import schema
from pipeline.protocol import Prompts, ProtocolDataset, make_prompts

ASKED = pa.schema(
    [
        pa.field("key", pa.int64(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("sentences", pa.string()),  # json: per caption its text and the spans of its phrases
    ]
)
FOUND = pa.schema(
    [
        pa.field("key", pa.int64(), nullable=False),
        pa.field("boxes", pa.list_(schema.BOX_TYPE)),
        pa.field("score", pa.list_(pa.float32())),
        pa.field("label", pa.list_(pa.int32())),  # position of the name, or of the phrase among all of the image
        pa.field("unseen", pa.list_(pa.int32())),  # labels that could not be looked for
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
    ]
)
NO_LIMIT = 1_000_000
"""Boxes per image where the limit is per prompt: more than there can be."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a model is run on a benchmark; of these only ``bf16`` changes a number."""

    num_workers: int = 1
    """Copies of the model working side by side."""
    num_gpus: float = 0.0
    """GPUs per copy, or the share of one; 0 runs on the CPU."""
    threads: int = 1
    """CPU threads of a copy's network."""
    batch_size: int = 16
    """Images per forward pass at most."""
    rows_per_block: int = 64
    """Images a copy takes at once, and that are committed together: what a kill may cost."""
    bf16: bool = False
    """Run the network in bfloat16."""
    node_resource: str = ""
    """Custom resource of the machines that measure: ``label`` on a cluster of ours. Empty measures on any machine."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("num_workers", "threads", "batch_size", "rows_per_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.num_gpus < 0:
            raise ValueError(f"num_gpus is {self.num_gpus}; give 0 for the CPU, a share of a GPU, or a count")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is looked for in the images of a data set."""

    dataset: ProtocolDataset
    """Limits and wordings."""
    names: tuple[str, ...]
    """Names; none where every image brings its sentences."""
    prompts: Prompts
    """Whether the wordings are used."""


class Asker:
    """A model that is asked a benchmark's questions."""

    def __init__(self, cfg: RunConfig, model: str, sha256: str, plans: Mapping[str, Plan]) -> None:
        """Load the model.

        Args:
            cfg: how it runs.
            model: its folder.
            sha256: of its weights, as the run began with.
            plans: by name of the data set.

        Raises:
            ValueError: there is no such model here, or it has other weights.
        """
        import torch

        torch.set_num_threads(cfg.threads)
        folder = Path(model)
        if (here := weights_sha256(folder)) != sha256:
            what = f"the weights in {model} have sha256 {here[:12]} here, but the run began with {sha256[:12]}"
            raise ValueError(f"{what}; give every machine the same folder")
        network, tokenizer = load(folder, "cuda" if cfg.num_gpus else "cpu")
        self._cfg, self._plans, self._tokenizer = cfg, plans, tokenizer
        self._predictors = {
            limit: Predictor(
                network, tokenizer, PostprocessConfig(max_detections=limit), bf16=cfg.bf16, batch_size=cfg.batch_size
            )
            for limit in {_limit(plan.dataset) for plan in plans.values()}
        }
        self._queries = {
            name: make_queries(make_prompts(plan.dataset, plan.names, tokenizer, plan.prompts), tokenizer)
            for name, plan in plans.items()
            if plan.names
        }

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Give every row of `ASKED` what was found, as `FOUND`, or the reason why its image could not be asked."""
        outcomes: dict[int, dict[str, object]] = {}
        waiting: dict[tuple[str, int], list[tuple[int, Image.Image, list[Query]]]] = defaultdict(list)
        for row in rows.to_pylist():
            picture = _open(Path(row["file"]))
            if isinstance(picture, str):
                outcomes[row["key"]] = {"status": schema.REJECTED, "reason": picture}
                continue
            queries = self._of(row)
            waiting[row["dataset"], len(queries)].append((row["key"], picture, queries))
        for (name, _), group in waiting.items():
            outcomes |= self._ask(self._plans[name].dataset, group)
        return schema.to_table([{"key": key, **outcomes[key]} for key in rows["key"].to_pylist()], FOUND)

    def _of(self, row: Mapping[str, Any]) -> list[Query]:
        """Give what is asked of an image: its own sentences, else the names of its data set."""
        if row["sentences"] is None:
            return self._queries[row["dataset"]]
        prompts, first = [], 0
        for text, spans in json.loads(row["sentences"]):
            prompts.append(Prompt(text=text, spans={first + n: (begin, end) for n, (begin, end) in enumerate(spans)}))
            first += len(spans)
        return make_queries(prompts, self._tokenizer)

    def _ask(
        self, dataset: ProtocolDataset, group: Sequence[tuple[int, Image.Image, list[Query]]]
    ) -> dict[int, dict[str, object]]:
        keys, pictures, queries = zip(*group, strict=True)
        found = self._predictors[_limit(dataset)].find(pictures, queries)
        return {key: _row(own, asked, dataset) for key, own, asked in zip(keys, found, queries, strict=True)}


def _limit(dataset: ProtocolDataset) -> int:
    return dataset.max_detections if dataset.limit_per == "image" else NO_LIMIT


def _row(found: Prediction, asked: Sequence[Query], dataset: ProtocolDataset) -> dict[str, object]:
    if not found.finite:
        return {"status": schema.REJECTED, "reason": "not_finite"}
    kept = list(range(len(found.labels)))
    if dataset.limit_per == "prompt":
        owner = {label: number for number, query in enumerate(asked) for label in query.prompt.spans}
        kept = _best_of_each([owner[label] for label in found.labels], dataset.max_detections)
    return {
        "boxes": found.boxes_xyxy[kept].tolist(),
        "score": [found.scores[i] for i in kept],
        "label": [found.labels[i] for i in kept],
        "unseen": found.unseen,
        "status": schema.LABELLED,
    }


def _best_of_each(owners: Sequence[int], limit: int) -> list[int]:
    """Keep the first so many of every owner."""
    counts: dict[int, int] = defaultdict(int)
    kept = []
    for position, owner in enumerate(owners):
        counts[owner] += 1
        if counts[owner] <= limit:
            kept.append(position)
    return kept


def _open(file: Path) -> Image.Image | str:
    """Open an image upright and in colour, or say why not."""
    try:
        with Image.open(file) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        return "missing_image"
    except UNREADABLE:
        return "unreadable_image"
