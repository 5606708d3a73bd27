"""Model folders."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from glipv2 import checkpoint
from glipv2.config import ModelConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import pad_tokens
from glipv2.text.tokenizer import ClipBPE, WordPiece


@pytest.fixture
def folder(model: GLIPv2, tokenizer: WordPiece, tmp_path: Path) -> Path:
    checkpoint.save(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


@torch.no_grad()
def test_a_loaded_model_gives_identical_outputs(folder: Path, model: GLIPv2, tokenizer: WordPiece) -> None:
    loaded, its_tokenizer = checkpoint.load(folder)
    texts, pixels = ["Red square, zoo"], torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert its_tokenizer(texts) == tokenizer(texts)
    assert loaded.cfg == model.cfg
    assert not loaded.training
    ids, mask = pad_tokens(tokenizer(texts), tokenizer.pad_id)
    ours, expected = loaded(pixels, ids, mask).regions, model(pixels, ids, mask).regions
    for name in ("alignment", "box_deltas", "centerness"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name


def test_a_vocabulary_with_odd_line_breaks_keeps_its_ids(model: GLIPv2, tokenizer: WordPiece, tmp_path: Path) -> None:
    odd = WordPiece([*tokenizer.vocabulary[:-1], "\u2028", "last"], max_tokens=8)
    checkpoint.save(model, odd, tmp_path)
    loaded = checkpoint.load(tmp_path)[1]
    assert isinstance(loaded, WordPiece)
    assert loaded.vocabulary == odd.vocabulary


def test_a_model_with_clip_text_keeps_its_tokenizer(tiny: ModelConfig, tmp_path: Path) -> None:
    model = GLIPv2(replace(tiny, text_encoder="clip", vocab_size=6))
    letters = ("a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>")
    clip = ClipBPE({token: number for number, token in enumerate(letters)}, [], max_tokens=tiny.max_tokens)
    checkpoint.save(model, clip, tmp_path)
    loaded, tokenizer = checkpoint.load(tmp_path)
    assert isinstance(tokenizer, ClipBPE)
    assert tokenizer(["ab a"]) == clip(["ab a"])
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_loaded_model_outlives_its_file(folder: Path, model: GLIPv2) -> None:
    loaded, _ = checkpoint.load(folder)
    weights = folder / checkpoint.WEIGHTS
    weights.write_bytes(b"\0" * weights.stat().st_size)
    assert torch.equal(loaded.head.text_projection.weight, model.head.text_projection.weight)


def test_saving_again_replaces_the_weights(folder: Path, model: GLIPv2, tokenizer: WordPiece) -> None:
    before = checkpoint.weights_sha256(folder)
    checkpoint.save(model, tokenizer, folder)
    assert checkpoint.weights_sha256(folder) == before
    with torch.no_grad():
        model.head.bias.add_(1)
    checkpoint.save(model, tokenizer, folder)
    assert checkpoint.weights_sha256(folder) != before


def assert_one_clear_line(folder: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        checkpoint.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    assert_one_clear_line(tmp_path / "nowhere", "is no model folder")


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / checkpoint.WEIGHTS).unlink()
    assert_one_clear_line(folder, "lacks model.safetensors")


def test_a_folder_without_a_vocabulary_is_refused(folder: Path) -> None:
    (folder / "vocab.txt").unlink()
    assert_one_clear_line(folder, r"no tokenizer at .*give a vocab\.txt")


def test_the_folder_of_another_kind_of_model_is_refused(folder: Path) -> None:
    # Hugging Face's BERT folders hold files of the same three names.
    (folder / checkpoint.CONFIG).write_text(json.dumps({"model_type": "bert", "hidden_size": 768}), encoding="utf-8")
    assert_one_clear_line(folder, "config.json")


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    config = folder / checkpoint.CONFIG
    saved = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**saved, "channels": 2 * saved["channels"]}), encoding="utf-8")
    assert_one_clear_line(folder, "does not fit")


def test_a_cut_off_file_of_weights_is_refused(folder: Path) -> None:
    weights = folder / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_one_clear_line(folder, "model.safetensors")
