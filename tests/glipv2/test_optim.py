"""What moves the weights: groups, schedules, and the running mean."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from glipv2.config import ModelConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.optim import OptimConfig, RunningMean, drop_weight_decay, make_optimizer


def rules(model: GLIPv2, cfg: OptimConfig) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in make_optimizer(model, cfg).param_groups
        for p in group["params"]
    }


def test_norms_biases_scales_and_position_tables_are_not_decayed(model: GLIPv2) -> None:
    found = rules(model, OptimConfig(weight_decay=0.1))
    spared = {name for name, (_, decay) in found.items() if decay == 0}
    assert {name for name in found if name.endswith("bias") or "norm" in name.lower()} <= spared
    assert {name for name in found if "position" in name} <= spared
    assert any("relative_position_bias_table" in name for name in spared)
    assert "head.box.weight" not in spared
    assert not any("word_embeddings" in name for name in spared)


def test_the_references_rule_goes_by_its_names(model: GLIPv2) -> None:
    found = rules(model, OptimConfig(lr=1e-3, text_lr=1e-4, weight_decay=0.1, groups="reference"))
    tables = [name for name in found if "relative_position_bias_table" in name]
    assert tables
    assert {found[name] for name in tables} == {(2e-3, 0.0)}
    assert found["head.text_bias"] == (2e-3, 0.0)
    assert found["swin.patch_norm.weight"] == (1e-3, 0.1)
    encoder = {rule for name, rule in found.items() if name.startswith("text_encoder.")}
    assert encoder == {(2e-4, 0.0), (1e-4, 0.1)}


def test_the_references_rule_needs_a_model_the_reference_has(tiny: ModelConfig) -> None:
    clip = GLIPv2(replace(tiny, text_encoder="clip"))
    with pytest.raises(ValueError, match="the public GLIP has no model"):
        make_optimizer(clip, OptimConfig(groups="reference"))


def test_the_weight_decay_drops_before_each_drop_of_the_rate() -> None:
    cfg = OptimConfig(weight_decay=1.0, weight_decay_drops=True, decay_at=(0.6,))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5, weight_decay=1.0)
    decays = []
    for step in range(10):
        drop_weight_decay(optimizer, cfg, step, 10)
        decays.append(optimizer.param_groups[0]["weight_decay"])
    assert decays == [1.0] * 5 + [0.1] + [1.0] + [0.1] * 3


def test_the_running_mean_follows_the_weights_slowly_and_can_be_taken_up() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    mean = RunningMean(layer, 0.9)
    nn.init.ones_(layer.weight)
    mean.update(layer)
    mean.update(layer)
    assert mean.mean["weight"].item() == pytest.approx(1 - 0.9**2)
    other = RunningMean(layer, 0.9)
    other.load(mean.mean)
    assert torch.equal(other.mean["weight"], mean.mean["weight"])
    assert layer.weight.item() == 1


def test_a_memory_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="below 1"):
        OptimConfig(ema_decay=1.0)
