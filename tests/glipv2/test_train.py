"""The optimiser and one step."""

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from glipv2.config import ModelConfig
from glipv2.losses.criterion import Criterion, LossConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.optim import OptimConfig, make_optimizer, make_schedule
from glipv2.sample import Batch, GroundingSample, collate
from glipv2.text.tokenizer import WordPiece
from glipv2.train import backward, freeze_untaught, recompute_activations, update


def test_text_encoder_and_norms_have_rules_of_their_own(model: GLIPv2) -> None:
    cfg = OptimConfig(lr=1e-3, text_lr=1e-4, weight_decay=0.1)
    rules = {
        id(p): (group["lr"], group["weight_decay"])
        for group in make_optimizer(model, cfg).param_groups
        for p in group["params"]
    }
    assert len(rules) == len(list(model.parameters()))
    assert rules[id(model.head.box.weight)] == (1e-3, 0.1)
    assert rules[id(model.head.box.bias)] == (1e-3, 0.0)
    encoder = dict(model.text_encoder.named_parameters())
    assert {rules[id(p)] for p in encoder.values()} == {(1e-4, 0.1), (1e-4, 0.0)}


def test_frozen_parameters_are_left_out(model: GLIPv2) -> None:
    model.text_encoder.requires_grad_(False)
    groups = make_optimizer(model, OptimConfig(lr=1e-3, text_lr=1e-4)).param_groups
    assert {group["lr"] for group in groups} == {1e-3}


def test_scales_temperatures_and_biases_are_not_decayed(tiny: ModelConfig) -> None:
    model = GLIPv2(replace(tiny, contrast="paper", word_head=True))
    groups = make_optimizer(model, OptimConfig(weight_decay=0.1)).param_groups
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert model.contrast_head is not None
    assert id(model.contrast_head.log_temperature) in undecayed
    assert id(model.head.log_scale) in undecayed


@pytest.mark.parametrize(
    ("losses", "frozen"),
    [
        (LossConfig(inter=1.0, mlm=1.0), ()),
        (LossConfig(mlm=1.0), ("contrast_head.",)),
        (LossConfig(inter=1.0), ("word_head.",)),
        (LossConfig(loc=0.0, inter=1.0, mlm=1.0), ("head.box.", "head.centerness.", "head.level_scale")),
    ],
)
def test_a_head_whose_term_is_off_is_frozen(
    tiny: ModelConfig, tokenizer: WordPiece, samples: list[GroundingSample], losses: LossConfig, frozen: tuple[str, ...]
) -> None:
    model = GLIPv2(replace(tiny, contrast="paper", word_head=True))
    criterion = Criterion(model.cfg, losses)
    names = freeze_untaught(model, criterion)
    assert model.training
    assert names == [name for name, _ in model.named_parameters() if name.startswith(frozen)]
    backward(model, criterion, collate(samples[:1], tokenizer, 32))
    assert names == [name for name, p in model.named_parameters() if p.grad is None]


def test_a_step_is_clipped_and_leaves_no_gradient_behind() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([30.0, 40.0])
    norm = update([weight], torch.optim.SGD([weight], lr=1.0), clip_norm=1.0)
    assert norm == 50
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]), atol=1e-6, rtol=0)
    assert weight.grad is None


def test_a_schedule_without_warm_up_starts_at_the_full_rate() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    make_schedule(optimizer, OptimConfig(warmup_steps=0), num_steps=10)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_every_tensor_of_a_batch_is_pinned(
    samples: list[GroundingSample], tokenizer: WordPiece, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = collate(samples[:2], tokenizer, 32)
    pinned: dict[int, torch.Tensor] = {}

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        return pinned.setdefault(id(tensor), tensor.clone())

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    copy = batch.pin_memory()
    for before, after in zip((batch, *batch.targets), (copy, *copy.targets), strict=True):
        for name, value in vars(before).items():
            if name != "targets":
                assert vars(after)[name] is pinned[id(value)], name
                assert torch.equal(vars(after)[name], value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_loader_pins_batches(samples: list[GroundingSample], tokenizer: WordPiece) -> None:
    batches = cast("Dataset[Batch]", [collate(samples[:2], tokenizer, 32)])
    loader = DataLoader(batches, batch_size=None, pin_memory=True)
    batch = next(iter(loader))
    assert batch.pixels.is_pinned()
    assert batch.targets[0].positive_map.is_pinned()


@pytest.mark.parametrize("decay_at", [(0.0,), (0.5, 1.5)])
def test_drops_outside_the_run_are_refused(decay_at: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="give fractions"):
        OptimConfig(decay_at=decay_at)


def gradients(model: GLIPv2) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_recomputing_gives_the_same_gradients(
    tiny: ModelConfig, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    model = GLIPv2(replace(tiny, text_dropout=0.3, swin_drop_path=0.3)).train()
    batch, criterion = collate(samples[:2], tokenizer, 32), Criterion(tiny)
    found = []
    for way in (lambda _: None, recompute_activations):
        way(model)
        torch.manual_seed(1)
        backward(model, criterion, batch)
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_a_loss_that_is_no_number_moves_nothing(
    model: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    values = backward(model, Criterion(model.cfg), collate(samples[:1], tokenizer, 32))
    assert math.isnan(values["loss"])
    assert all(p.grad is None for p in model.parameters())


def test_a_gradient_that_is_no_number_is_thrown_away() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, torch.inf])
    assert not math.isfinite(update([weight], torch.optim.SGD([weight], lr=1.0), clip_norm=1.0))
    assert weight.tolist() == [1, 1]
    assert weight.grad is None


def test_the_gradients_of_a_steps_parts_are_their_mean(
    model: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    model.eval()
    parts, criterion = [collate([sample], tokenizer, 32) for sample in samples[:2]], Criterion(model.cfg)
    apart = []
    for part in parts:
        backward(model, criterion, part)
        apart.append(gradients(model))
    for part in parts:
        backward(model, criterion, part, share=0.5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, (apart[0][name] + apart[1][name]) / 2)


def test_a_step_in_bfloat16_comes_near_the_exact_one(
    model: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    model.eval()
    batch, criterion = collate(samples[:2], tokenizer, 32), Criterion(model.cfg)
    exact, rough = (backward(model, criterion, batch, bf16=bf16)["loss"] for bf16 in (False, True))
    assert exact != rough
    assert rough == pytest.approx(exact, rel=0.02)
