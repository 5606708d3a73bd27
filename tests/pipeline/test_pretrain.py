"""Pre-training with every loss on two workers, and what of its configuration is refused."""

import io
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from PIL import Image
from ray.train import Checkpoint

import pipeline.pretrain
from glipv2 import checkpoint
from glipv2.config import ModelConfig, nano
from glipv2.losses.criterion import LOSSES, LossConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.text.tokenizer import load_tokenizer, make_vocabulary
from glipv2.train import OptimConfig
from pipeline import schema
from pipeline.ingest import IngestConfig, SourceConfig
from pipeline.pretrain import HISTORY, PretrainConfig, TrainingInputs, _train_loop, pretrain
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


def test_short_sides_beyond_the_longest_side_are_refused() -> None:
    with pytest.raises(ValueError, match="max_size_px 32; give short sides up to that"):
        replace(config(LossConfig(), 0.0, model()), ingest=IngestConfig(batch_size=4, short_sides_px=(16, 48)))


def test_weights_of_another_size_are_refused_before_anything_starts(inputs: TrainingInputs, tmp_path: Path) -> None:
    size, tokenizer = model(), load_tokenizer(inputs.vocabulary, 32)
    checkpoint.save(
        GLIPv2(replace(size, vocab_size=tokenizer.vocab_size, num_blocks=2)), tokenizer, tmp_path / "teacher"
    )
    started = replace(inputs, init=tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"num_blocks 2 \(here 1\)") as caught:
        pretrain(config(LossConfig(), 0.0, size), started, tmp_path / "out", MagicMock())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()  # nothing stands in the way of the right command


class Workplace:
    """What Ray Train is to one of two workers, in this process; every checkpoint is kept under its step."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.rank, self.start = folder, 0, 0
        context = SimpleNamespace(get_world_rank=lambda: self.rank, get_world_size=lambda: 2)
        monkeypatch.setattr("ray.train.get_context", lambda: context)
        monkeypatch.setattr("ray.train.get_checkpoint", self._last)
        monkeypatch.setattr("ray.train.report", self._report)
        monkeypatch.setattr(pipeline.pretrain, "get_device", lambda: torch.device("cpu"))
        monkeypatch.setattr(pipeline.pretrain, "prepare_model", lambda model: model)

    def _last(self) -> Checkpoint | None:
        return Checkpoint.from_directory(self.folder / str(self.start)) if self.start else None

    def _report(self, metrics: dict[str, Any], checkpoint: Checkpoint | None = None) -> None:
        if checkpoint is not None:
            shutil.copytree(checkpoint.path, self.folder / str(metrics["step"]), dirs_exist_ok=True)

    def train(self, inputs: TrainingInputs, rank: int = 0, start: int = 0) -> None:
        size = replace(model(), text_dropout=0.3)
        cfg = replace(config(LossConfig(), 0.0, size), num_steps=4, checkpoint_every=2)
        self.rank, self.start = rank, start
        _train_loop({"cfg": cfg, "inputs": inputs, "run": MagicMock(), "board": MagicMock()})


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    return Workplace(tmp_path / "kept", monkeypatch)


def test_a_resumed_training_with_dropout_ends_as_the_unbroken_one(workplace: Workplace, inputs: TrainingInputs) -> None:
    last = workplace.folder / "4" / checkpoint.WEIGHTS
    workplace.train(inputs)
    unbroken = last.read_bytes()
    last.unlink()
    workplace.train(inputs, start=2)
    assert last.read_bytes() == unbroken


def test_every_worker_and_every_step_drops_something_else(
    workplace: Workplace, inputs: TrainingInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []

    def draw(*_: object) -> dict[str, float]:
        drawn.append(torch.rand(()).item())
        return {"loss": drawn[-1]}

    monkeypatch.setattr(pipeline.pretrain, "backward", draw)
    for rank in (0, 1):
        workplace.train(inputs, rank)
    assert len(set(drawn)) == len(drawn) == 8
    workplace.train(inputs, rank=0, start=2)
    assert drawn[8:] == drawn[2:4]
