"""A tuned prompt on its own: the same detections without the text encoder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glipv2 import checkpoint
from glipv2.inference.postprocess import PostprocessConfig
from glipv2.inference.predictor import Predictor
from glipv2.model.glipv2 import GLIPv2
from glipv2.text.prompts import Prompt
from glipv2.text.tokenizer import WordPiece
from glipv2.transfer.feature_cache import FeatureCache
from glipv2.transfer.tuned_prompt import TunedPrompt, make_tuned_prompt

EVERYTHING = PostprocessConfig(min_class_score=0.0)


@pytest.fixture
def offset(model: GLIPv2, tokenizer: WordPiece, prompt: Prompt) -> torch.Tensor:
    tokens = len(tokenizer([prompt.text])[0].ids)
    return torch.randn(tokens, model.cfg.text_dim, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tuned(model: GLIPv2, tokenizer: WordPiece, prompt: Prompt, offset: torch.Tensor) -> TunedPrompt:
    return make_tuned_prompt(model, tokenizer, prompt, offset, {"dataset": "shapes", "shots": "3"})


@pytest.fixture
def folder(model: GLIPv2, tokenizer: WordPiece, tmp_path: Path) -> Path:
    checkpoint.save(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def blind(folder: Path) -> Predictor:
    return Predictor(*checkpoint.load(folder, text_encoder=False), EVERYTHING)


def test_a_file_gives_back_what_was_saved(tuned: TunedPrompt, tmp_path: Path) -> None:
    tuned.save(tmp_path / "shapes.safetensors")
    loaded = TunedPrompt.load(tmp_path / "shapes.safetensors")
    assert torch.equal(loaded.features, tuned.features)
    assert replace(loaded, features=tuned.features) == tuned
    assert (tmp_path / "shapes.safetensors").stat().st_size < 10_000


def test_detections_without_the_text_encoder_are_those_with_offset_and_encoder(
    model: GLIPv2, tokenizer: WordPiece, folder: Path, tuned: TunedPrompt, offset: torch.Tensor, drawings: list[Any]
) -> None:
    images = [drawing.image for drawing in drawings[:2]]
    whole = Predictor(model, tokenizer, EVERYTHING).detect_prompt(images, tuned.prompt, offset)
    for found, expected in zip(blind(folder).detect_tuned(images, tuned), whole, strict=True):
        torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-4, rtol=0)
        assert found.scores == pytest.approx(expected.scores, abs=1e-6)
        assert found.labels == expected.labels


def test_a_tuned_prompt_finds_other_things_than_its_words_alone(
    model: GLIPv2, tokenizer: WordPiece, tuned: TunedPrompt, drawings: list[Any]
) -> None:
    predictor, images = Predictor(model, tokenizer, EVERYTHING), [drawings[0].image]
    plain = predictor.detect_prompt(images, tuned.prompt)[0].scores
    assert predictor.detect_tuned(images, tuned)[0].scores != plain
    assert predictor.detect_prompt(images, tuned.prompt)[0].scores == plain


def test_a_model_without_its_text_encoder_has_none_of_its_weights_and_refuses_texts(
    folder: Path, prompt: Prompt, drawings: list[Any]
) -> None:
    predictor = blind(folder)
    assert not list(predictor.model.text_encoder.parameters())
    with pytest.raises(ValueError, match=r"without its text encoder.*; load it whole") as caught:
        predictor.detect_prompt([drawings[0].image], prompt)
    assert "\n" not in str(caught.value)


def test_another_model_is_refused(model: GLIPv2, tokenizer: WordPiece, tuned: TunedPrompt, drawings: list[Any]) -> None:
    with torch.no_grad():
        model.head.bias.add_(1)
    with pytest.raises(ValueError, match=r"the tuned prompt is for the model \w{12}, but this one is \w{12}; load"):
        Predictor(model, tokenizer).detect_tuned([drawings[0].image], tuned)


def test_another_text_encoder_does_not_matter(model: GLIPv2, tuned: TunedPrompt) -> None:
    with torch.no_grad():
        for parameter in model.text_encoder.parameters():
            parameter.add_(1)
    assert checkpoint.fingerprint(model) == tuned.model


def test_another_vocabulary_is_refused(
    model: GLIPv2, tokenizer: WordPiece, tuned: TunedPrompt, drawings: list[Any]
) -> None:
    turned = WordPiece([*tokenizer.vocabulary[:5], *reversed(tokenizer.vocabulary[5:])], max_tokens=32)
    with pytest.raises(ValueError, match="other tokens of the tuned prompt"):
        Predictor(model, turned).detect_tuned([drawings[0].image], tuned)


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/config.json", "nowhere"])
def test_a_file_that_is_no_tuned_prompt_is_refused_in_one_line(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be read as a tuned prompt") as caught:
        TunedPrompt.load(folder.parent / name)
    assert "\n" not in str(caught.value)


def test_an_offset_of_zero_finds_what_the_words_alone_find(
    model: GLIPv2, tokenizer: WordPiece, prompt: Prompt, offset: torch.Tensor, drawings: list[Any]
) -> None:
    predictor, images = Predictor(model, tokenizer, EVERYTHING), [drawing.image for drawing in drawings[:2]]
    plain, zero = predictor.detect_prompt(images, prompt), predictor.detect_prompt(images, prompt, 0 * offset)
    for found, expected in zip(zero, plain, strict=True):
        assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)
        assert found.scores == expected.scores


def test_images_asked_again_are_encoded_once(
    model: GLIPv2, tokenizer: WordPiece, prompt: Prompt, drawings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[torch.Size] = []
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda pixels: (sizes.append(pixels.shape), encode(pixels))[1])
    # Of one colour, so that all bytes agree; only the shape tells these two apart.
    images = [drawings[0].image, *(Image.new("RGB", size, "white") for size in ((32, 64), (64, 32)))]
    predictor = Predictor(model, tokenizer, EVERYTHING)
    plain = predictor.detect_prompt(images, prompt)
    sizes.clear()
    with FeatureCache(10) as cache:
        predictor.image_cache = cache
        for _ in range(3):
            for found, expected in zip(predictor.detect_prompt(images, prompt), plain, strict=True):
                assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)
                assert found.scores == expected.scores
    assert len(sizes) == 3
