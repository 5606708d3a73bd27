"""Bad input to a training is one line before any worker starts."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file, save_file

from glipv2 import checkpoint
from glipv2.model.glipv2 import GLIPv2
from glipv2.optim import OptimConfig
from glipv2.text.tokenizer import load_tokenizer
from jobs.recipes import PRETRAININGS
from pipeline import schema, shards
from pipeline.flow import PretrainJob, pretrain_alone
from pipeline.ingest import IngestConfig
from pipeline.pretrain import PretrainConfig, TrainingInputs, pretrain
from pipeline.row_index import SourceConfig
from tests.pipeline import data_samples
from tests.pipeline.trainings import make_inputs, model


@pytest.fixture
def inputs(tmp_path: Path) -> TrainingInputs:
    return make_inputs(tmp_path)


def config(**changes: Any) -> PretrainConfig:
    cfg = PretrainConfig(
        model=model(), ingest=IngestConfig(batch_size=4), optim=OptimConfig(warmup_steps=0), num_steps=2
    )
    return replace(cfg, **changes)


def refusal(inputs: TrainingInputs, out: Path, **changes: Any) -> str:
    """Give the line that a training is refused with; Ray has not even been started."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        pretrain(config(**changes), inputs, out, MagicMock())
    assert not out.exists()  # nothing stands in the way of the right command
    return str(caught.value)


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


MANIFESTS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "a list": lambda path: path.write_text("[]"),
    "of a newer version": lambda path: changed(path, lambda found: found.update(colour="red")),
    "of an older version": lambda path: changed(path, lambda found: found.pop("rows_in")),
    "rejects a number": lambda path: changed(path, lambda found: found.update(rejects=3)),
    "files without hash": lambda path: changed(path, lambda found: found["files"][0].pop("sha256")),
    "files a list of names": lambda path: changed(path, lambda found: found.update(files=["00000.parquet"])),
}


@pytest.mark.parametrize("damage", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_is_none_is_named(
    inputs: TrainingInputs, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    manifest = tmp_path / "boxes" / "manifest.json"
    damage(manifest)
    assert refusal(inputs, tmp_path / "out").startswith(f"{manifest} is damaged or of another version: ")


@pytest.mark.parametrize("check_hashes", [True, False])
@pytest.mark.parametrize("from_end", [400, 8, 4], ids=["in its footer", "in the footer's length", "at its end"])
def test_a_shard_with_a_damaged_footer_is_named(
    inputs: TrainingInputs, tmp_path: Path, from_end: int, check_hashes: bool
) -> None:
    shard = tmp_path / "boxes" / "00000.parquet"
    content = bytearray(shard.read_bytes())
    content[-from_end : 4 - from_end or None] = b"\xff" * 4
    shard.write_bytes(content)
    assert str(shard) in refusal(inputs, tmp_path / "out", check_hashes=check_hashes)


def test_a_directory_of_images_alone_is_no_source(inputs: TrainingInputs, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shards.write_rows([{"key": 0, "status": schema.SUCCESS}], images, schema.IMAGES)
    files = shards.describe_files(images)
    shards.write_manifest(
        images, shards.Manifest(stage="download", config_hash="a", rows_in=1, rows_out=1, files=files)
    )
    said = refusal(replace(inputs, sources=(*inputs.sources, SourceConfig(path=images))), tmp_path / "out")
    assert said.startswith(f"{images} holds no grounding shards: 00000.parquet lacks the columns sample_id, kind, ")


def test_a_mixture_of_nothing_is_refused(inputs: TrainingInputs, tmp_path: Path) -> None:
    nothing = tuple(replace(source, copies=0) for source in inputs.sources)
    said = refusal(replace(inputs, sources=nothing), tmp_path / "out")
    assert said.startswith(f"no sample to train on in {tmp_path / 'boxes'} (4 x 0); ")


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    found = {name: value.clone() for name, value in load_file(path).items()}
    change(found)
    save_file(found, path)


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "is damaged"),
    "no weights": (lambda path: path.write_bytes(b"no weights"), "is damaged"),
    "without a tensor": (lambda path: change_tensors(path, lambda found: found.pop("head.bias")), "first head.bias"),
    "of another shape": (
        lambda path: change_tensors(path, lambda found: found.update({"head.bias": torch.zeros(77)})),
        "first head.bias",
    ),
}


@pytest.mark.parametrize(("damage", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_to_start_from_that_are_damaged_are_named(
    inputs: TrainingInputs, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    tokenizer = load_tokenizer(inputs.vocabulary, 32)
    start = tmp_path / "start"
    checkpoint.save(GLIPv2(replace(model(), vocab_size=tokenizer.vocab_size)), tokenizer, start)
    checkpoint.check_start(start, model(), tokenizer)
    damage(start / checkpoint.WEIGHTS)
    said = refusal(replace(inputs, init=start), tmp_path / "out")
    assert str(start / checkpoint.WEIGHTS) in said
    assert message in said


VALIDATIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "not json": (lambda path: path.write_text("{"), "annotations.json"),
    "without boxes": (lambda path: changed(path, lambda found: found.update(annotations=[])), "has no boxes"),
    "without an image": (lambda path: (path.parent / "images" / "1.jpg").unlink(), "1.jpg"),
}


@pytest.mark.parametrize(("damage", "message"), VALIDATIONS.values(), ids=VALIDATIONS)
def test_a_validation_set_that_is_damaged_is_refused(
    inputs: TrainingInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    monkeypatch.setattr("pipeline.flow.pretrain", lambda *_: pytest.fail("the training was started"))
    data = data_samples.coco(tmp_path)
    damage(data.annotations)
    job = PretrainJob(
        sources=(str(tmp_path / "boxes"),),
        vocabulary=inputs.vocabulary,
        val_annotations=data.annotations,
        val_images=data.images,
        out=tmp_path / "out",
        pretrain=config(),
    )
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        pretrain_alone(job)
    assert message in str(caught.value)


@pytest.mark.parametrize("recipe", PRETRAININGS.values(), ids=PRETRAININGS)
def test_every_recipe_compares_hashes(recipe: Callable[[], PretrainJob]) -> None:
    assert recipe().pretrain.check_hashes
