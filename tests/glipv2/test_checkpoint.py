"""Model folders."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    odd = WordPiece([*tokenizer.vocabulary[:-2], "\u2028", "last"], max_tokens=8)
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


def test_a_vocabulary_of_another_size_than_the_model_is_refused(folder: Path) -> None:
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("more\n")
    assert_one_clear_line(folder, r"vocabulary of \d+ tokens, but its config\.json says \d+; save the model again")


def test_a_cut_off_file_of_weights_is_refused(folder: Path) -> None:
    weights = folder / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_one_clear_line(folder, "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"swin_drop_path": 0.3, "text_dropout": 0.1, "min_size_px": 32, "max_tokens": 20},
        {"contrast": "paper", "contrast_dim": 8, "word_head": True},
    ],
)
def test_a_model_starts_from_weights_of_its_size_whatever_its_rates_and_heads(
    folder: Path, model: GLIPv2, tokenizer: WordPiece, change: dict[str, Any]
) -> None:
    starting = GLIPv2(replace(model.cfg, **change))
    own = {name: value.clone() for name, value in starting.state_dict().items()}
    checkpoint.check_start(folder, starting.cfg, WordPiece(tokenizer.vocabulary, starting.cfg.max_tokens))
    checkpoint.start(starting, folder)
    given = model.state_dict()
    for name, value in starting.state_dict().items():
        assert torch.equal(value, given.get(name, own[name])), name


def test_a_model_without_a_head_starts_from_one_with_it(model: GLIPv2, tokenizer: WordPiece, tmp_path: Path) -> None:
    checkpoint.save(GLIPv2(replace(model.cfg, contrast="paper", word_head=True)), tokenizer, tmp_path)
    checkpoint.check_start(tmp_path, model.cfg, tokenizer)
    checkpoint.start(model, tmp_path)
    assert torch.equal(model.head.bias, checkpoint.load(tmp_path)[0].head.bias)


def test_a_start_of_another_size_is_one_line_with_all_that_differs(
    folder: Path, model: GLIPv2, tokenizer: WordPiece
) -> None:
    other = replace(model.cfg, channels=64, num_blocks=2, swin_drop_path=0.3)
    longer = WordPiece([*tokenizer.vocabulary, "more"], max_tokens=32)
    with pytest.raises(ValueError, match="of another size") as caught:
        checkpoint.check_start(folder, other, longer)
    said = str(caught.value)
    before = len(tokenizer.vocabulary)
    assert f"vocab_size {before} (here {before + 1})" in said
    assert "channels 32 (here 64)" in said
    assert "num_blocks 1 (here 2)" in said
    assert "drop" not in said
    assert "\n" not in said


def test_a_start_with_other_words_of_the_same_number_is_refused(
    folder: Path, model: GLIPv2, tokenizer: WordPiece
) -> None:
    other = WordPiece([*tokenizer.vocabulary[:-1], "other"], max_tokens=32)
    with pytest.raises(ValueError, match="another vocabulary of the same size"):
        checkpoint.check_start(folder, model.cfg, other)


def test_heads_that_both_have_must_agree(model: GLIPv2, tokenizer: WordPiece, tmp_path: Path) -> None:
    checkpoint.save(GLIPv2(replace(model.cfg, contrast="paper")), tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"contrast paper \(here reference\)"):
        checkpoint.check_start(tmp_path, replace(model.cfg, contrast="reference"), tokenizer)
