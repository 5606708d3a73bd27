"""Prompt tuning: nothing but the offset is learned."""

from typing import Any

import pytest
import torch

from glipv2.inference.postprocess import PostprocessConfig
from glipv2.inference.predictor import Predictor
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import GroundingSample, collate
from glipv2.text.prompts import Prompt
from glipv2.text.tokenizer import WordPiece
from glipv2.transfer.prompt import CachedBatch, PromptTuning, PromptTuningConfig, cache


@pytest.fixture
def batches(model: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample]) -> list[CachedBatch]:
    return [cache(model, collate(samples[i : i + 4], tokenizer, 32)) for i in (0, 4)]


def start(model: GLIPv2, batches: list[CachedBatch]) -> PromptTuning:
    return PromptTuning(model, num_tokens=batches[0].text.shape[1], cfg=PromptTuningConfig())


def test_tuning_starts_from_the_untuned_model(
    model: GLIPv2, tokenizer: WordPiece, prompt: Prompt, drawings: list[Any], batches: list[CachedBatch]
) -> None:
    predictor = Predictor(model, tokenizer, PostprocessConfig(min_class_score=0.0))
    images = [drawing.image for drawing in drawings[:2]]
    for tuned, untuned in zip(
        predictor.detect_prompt(images, prompt, start(model, batches).offset),
        predictor.detect_prompt(images, prompt),
        strict=True,
    ):
        assert torch.equal(tuned.boxes_xyxy, untuned.boxes_xyxy)
        assert tuned.scores == untuned.scores


def test_the_loss_falls_and_only_the_offset_changes(model: GLIPv2, batches: list[CachedBatch]) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuning = start(model, batches)
    losses = [tuning.epoch(batches) for _ in range(8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert tuning.offset.abs().max() > 0


def test_the_learned_offset_changes_what_is_found(
    model: GLIPv2, tokenizer: WordPiece, prompt: Prompt, drawings: list[Any], batches: list[CachedBatch]
) -> None:
    tuning = start(model, batches)
    tuning.epoch(batches)
    predictor = Predictor(model, tokenizer, PostprocessConfig(min_class_score=0.0))
    images = [drawings[0].image]
    tuned, untuned = (
        predictor.detect_prompt(images, prompt, tuning.offset)[0],
        predictor.detect_prompt(images, prompt)[0],
    )
    assert tuned.scores[:5] != untuned.scores[:5]


def test_a_step_from_the_cache_is_a_step_through_the_whole_model(
    model: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample], batches: list[CachedBatch]
) -> None:
    batch = collate(samples[:4], tokenizer, 32)
    tuning = start(model, batches)
    outputs = model(batch.pixels, batch.ids, batch.mask)
    whole = torch.stack(list(tuning.criterion(outputs, batch).values())).sum().item()
    assert tuning.epoch(batches[:1]) == pytest.approx(whole, rel=1e-5)


def test_the_rate_drops_tenfold_on_a_plateau(model: GLIPv2, batches: list[CachedBatch]) -> None:
    tuning = start(model, batches)
    tuning.decay_lr()
    assert [group["lr"] for group in tuning.optimizer.param_groups] == pytest.approx([0.005])
