"""Pre-training with every loss on two workers, and what of its configuration is refused."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from glipv2.config import ModelConfig, nano
from glipv2.losses.criterion import LOSSES, LossConfig
from glipv2.text.tokenizer import make_vocabulary
from glipv2.train import OptimConfig
from pipeline import schema
from pipeline.ingest import IngestConfig, SourceConfig
from pipeline.pretrain import HISTORY, PretrainConfig, TrainingInputs, pretrain
from pipeline.sources.store import store_source
from pipeline.tracking import open_run

EVERYTHING = LossConfig(inter=1.0, mlm=1.0)


def model() -> ModelConfig:
    return replace(nano(), contrast="paper", word_head=True, min_size_px=32, max_size_px=32, max_tokens=32)


def config(losses: LossConfig, mask_words: float, size: ModelConfig) -> PretrainConfig:
    return PretrainConfig(
        model=size,
        ingest=IngestConfig(batch_size=4, mask_words=mask_words),
        optim=OptimConfig(warmup_steps=0),
        losses=losses,
        num_steps=2,
        log_every=1,
    )


@pytest.fixture
def inputs(tmp_path: Path) -> TrainingInputs:
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
    store_source(rows, tmp_path / "boxes", name="boxes", inputs={}, categories={1: "red ring", 2: "blue star"})
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(make_vocabulary(["red", "ring", "blue", "star"])) + "\n", encoding="utf-8")
    return TrainingInputs(name="all losses", sources=(SourceConfig(path=tmp_path / "boxes"),), vocabulary=vocabulary)


@pytest.mark.ray
def test_every_loss_that_is_on_is_trained_logged_and_kept(
    ray_session: None, inputs: TrainingInputs, tmp_path: Path
) -> None:
    with open_run(tmp_path, "pretrain", "all", {}) as run:
        record = pretrain(config(EVERYTHING, 0.9, model()), inputs, tmp_path / "out", run)
        history = run.history(HISTORY)
    assert record.final.keys() == {"loss", *LOSSES}
    assert all(math.isfinite(value) and value > 0 for value in record.final.values())
    assert [set(row) for row in history] == [{"step", *HISTORY}] * 2


def test_a_loss_without_its_head_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="no contrast head"):
        config(LossConfig(inter=1.0), 0.0, nano())


def test_predicting_words_of_which_none_is_hidden_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ingest\.mask_words"):
        config(EVERYTHING, 0.0, model())
