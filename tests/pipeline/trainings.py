"""What the tests of training share: the smallest model with all heads, and four pictures to train it on."""

import io
from dataclasses import replace
from pathlib import Path

from PIL import Image

from glipv2.config import ModelConfig, nano
from glipv2.text.tokenizer import make_vocabulary
from pipeline import schema
from pipeline.pretrain import TrainingInputs
from pipeline.row_index import SourceConfig
from pipeline.sources.store import store_source


def model() -> ModelConfig:
    return replace(nano(), contrast="paper", word_head=True, min_size_px=32, max_size_px=32, max_tokens=32)


def make_inputs(folder: Path) -> TrainingInputs:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 0, 0)).save(stream, "PNG")
    rows = [
        {
            "sample_id": f"boxes/train/{number}",
            "source": "boxes",
            "split": "train",
            "kind": schema.DETECTION,
            "image": {"bytes": stream.getvalue(), "path": None},
            "boxes": [[2.0, 2.0, 20.0, 20.0]],
            "category_id": [1 + number % 2],
            "score": [1.0],
            "iscrowd": [False],
            "status": schema.LABELLED,
            "schema_version": schema.SCHEMA_VERSION,
        }
        for number in range(4)
    ]
    store_source(rows, folder / "boxes", name="boxes", inputs={}, categories={1: "red ring", 2: "blue star"})
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(make_vocabulary(["red", "ring", "blue", "star"])) + "\n", encoding="utf-8")
    return TrainingInputs(name="all losses", sources=(SourceConfig(path=folder / "boxes"),), vocabulary=vocabulary)
