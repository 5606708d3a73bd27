"""Weights under the names of the public GLIP."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from glipv2.checkpoint import load_released
from glipv2.config import ModelConfig, glip_l, glip_t, glip_t_a
from glipv2.model.glipv2 import GLIPv2
from glipv2.released import LEVEL_SCALE, NOT_NEEDED, from_released, to_released, upstream_names

State = dict[str, Tensor]
EXTRAS = {
    "language_backbone.body.model.embeddings.position_ids": torch.arange(512)[None],
    "language_backbone.body.model.pooler.dense.weight": torch.ones(2, 2),
    "backbone.body.layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
    "rpn.anchor_generator.cell_anchors.0": torch.zeros(1, 4),
    "rpn.head.cls_logits.weight": torch.ones(80, 32, 1, 1),
    "rpn.head.mlm_head.bias": torch.ones(7),
    "rpn.loss_evaluator.shallow_log_scale": torch.ones(1),
}


@pytest.fixture
def with_heads(tiny: ModelConfig) -> GLIPv2:
    """A random model with both heads that only training uses."""
    torch.manual_seed(0)
    model = GLIPv2(replace(tiny, contrast="paper", word_head=True)).eval()
    with torch.no_grad():
        model.head.level_scale.uniform_(0.5, 2)
    return model


@pytest.fixture
def released(model: GLIPv2) -> State:
    return {name: value.clone() for name, value in to_released(model).items()}


def assert_same_state(ours: GLIPv2, expected: GLIPv2) -> None:
    state = expected.state_dict()
    assert ours.state_dict().keys() == state.keys()
    assert [name for name, value in ours.state_dict().items() if not torch.equal(value, state[name])] == []


@pytest.mark.parity
@pytest.mark.parametrize(("size", "file"), [(glip_t, "glip_t"), (glip_l, "glip_l"), (glip_t_a, "glip_t_a")])
def test_released_and_our_parameters_cover_each_other(
    goldens: Path, size: Callable[[], ModelConfig], file: str
) -> None:
    manifest = json.loads((goldens / f"{file}_keys.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = GLIPv2(size())
        upstream = {name: torch.empty(shape) for name, (shape, _) in manifest.items()}
    taken = from_released(upstream, model)
    assert {name: value.shape for name, value in taken.items()} == {k: v.shape for k, v in model.state_dict().items()}
    names = list(upstream_names(model).values())
    rest = upstream.keys() - set(names)
    assert len(set(names)) == len(names)
    assert {name for name in rest if not NOT_NEEDED.search(name)} == {f"rpn.head.scales.{i}.scale" for i in range(5)}


@pytest.mark.parity
def test_the_names_of_the_further_heads_are_upstreams(goldens: Path, golden_model: GLIPv2) -> None:
    with torch.no_grad():
        again = load_released(to_released(golden_model), golden_model.cfg)
    assert_same_state(again, golden_model)
    assert golden_model.word_head is not None
    assert golden_model.word_head.decoder.bias.abs().min() > 0  # neither untouched memory nor a fresh head's zeros


def test_weights_written_under_upstream_names_load_unchanged(with_heads: GLIPv2) -> None:
    assert_same_state(load_released(to_released(with_heads), with_heads.cfg), with_heads)


def test_a_loaded_model_computes_what_the_saved_one_does(model: GLIPv2, released: State) -> None:
    pixels, ids = torch.randn(1, 3, 64, 96), torch.tensor([[2, 70, 60, 3]])
    loaded = load_released(released, model.cfg)
    with torch.no_grad():
        ours, expected = (m(pixels, ids, torch.ones_like(ids)).regions.alignment for m in (loaded, model))
    assert torch.equal(ours, expected)
    assert not loaded.training


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_load_with_and_without_module(
    model: GLIPv2, released: State, tmp_path: Path, prefix: str, suffix: str
) -> None:
    path, state = tmp_path / f"weights{suffix}", {prefix + name: value for name, value in released.items()}
    if suffix == ".pth":
        torch.save({"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "iteration": 7}, path)
    else:
        save_file(state, path)
    assert_same_state(load_released(path, model.cfg), model)


@pytest.mark.parametrize("name", EXTRAS)
def test_what_no_model_needs_is_passed_over(model: GLIPv2, released: State, name: str) -> None:
    assert_same_state(load_released({**released, name: EXTRAS[name]}, model.cfg), model)


def test_weights_in_half_precision_become_single(model: GLIPv2, released: State) -> None:
    loaded = load_released({name: value.half() for name, value in released.items()}, model.cfg)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_loaded_model_shares_no_memory_with_what_it_was_given(model: GLIPv2, released: State) -> None:
    loaded = load_released(released, model.cfg)
    for value in released.values():
        value.zero_()
    assert_same_state(loaded, model)


def test_loading_draws_no_random_weights(model: GLIPv2, released: State) -> None:
    before = torch.get_rng_state()
    load_released(released, model.cfg)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("rpn.head.bias0"), "1 missing: rpn.head.bias0;"),
        (lambda s: s.pop("rpn.head.scales.3.scale"), "1 missing: rpn.head.scales.3.scale;"),
        (lambda s: s.update({"rpn.head.more": torch.ones(1)}), "1 left over: rpn.head.more;"),
        (lambda s: s.update({"module.rpn.head.bias0": torch.ones(1)}), "1 left over: module.rpn.head.bias0;"),
        (
            lambda s: s.update({"rpn.head.bias0": torch.ones(3)}),
            "1 of another shape: rpn.head.bias0 (3,) instead of (1,);",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    model: GLIPv2, released: State, change: Callable[[State], None], said: str
) -> None:
    change(released)
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_released(released, model.cfg)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_released_size_are_recognised(model: GLIPv2, released: State) -> None:
    released["backbone.body.patch_embed.proj.weight"] = torch.ones(192, 3, 4, 4)
    with pytest.raises(ValueError, match=r"they look like GLIP-L: use glipv2\.config\.glip_l\(\)"):
        load_released(released, model.cfg)


def test_a_long_list_of_misfits_is_shortened(model: GLIPv2) -> None:
    with pytest.raises(ValueError, match=r"missing: .*, \.\.\.;") as caught:
        load_released({"x": torch.ones(1)}, model.cfg)
    assert len(str(caught.value)) < 500


def test_heads_the_weights_lack_start_as_in_a_new_model(released: State, with_heads: GLIPv2) -> None:
    torch.manual_seed(0)
    loaded = load_released(released, with_heads.cfg, init_missing_heads=True)
    for name, value in with_heads.state_dict().items():
        if name.startswith(("contrast_head.", "word_head.")):
            assert torch.equal(loaded.state_dict()[name], value), name


def test_heads_the_weights_lack_are_missing_unless_asked_for(released: State, with_heads: GLIPv2) -> None:
    with pytest.raises(ValueError, match=r"missing: .*init_missing_heads"):
        load_released(released, with_heads.cfg)


def test_half_a_head_is_missing_the_other_half(with_heads: GLIPv2) -> None:
    released = to_released(with_heads)
    del released["rpn.head.mlm_head.decoder.weight"]
    with pytest.raises(ValueError, match=r"1 missing: rpn\.head\.mlm_head\.decoder\.weight;"):
        load_released(released, with_heads.cfg, init_missing_heads=True)


def test_weights_of_heads_the_model_lacks_are_dropped(model: GLIPv2, with_heads: GLIPv2) -> None:
    loaded = load_released(to_released(with_heads), model.cfg)
    assert loaded.word_head is None
    assert loaded.contrast_head is None
    assert torch.equal(loaded.state_dict()[LEVEL_SCALE], with_heads.head.level_scale)


@pytest.mark.parametrize("change", [{"text_encoder": "clip"}, {"swin_conv_embed": True}])
def test_sizes_never_released_are_refused(tiny: ModelConfig, released: State, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="the public GLIP has no model with"):
        load_released(released, replace(tiny, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "other.pth", "pickled.pth", "absent.pth"])
def test_a_file_that_holds_no_weights_is_refused_in_one_line(tiny: ModelConfig, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("cut"):
        path.write_bytes(b"PK\x03\x04 not all of it")
    elif name == "other.pth":
        torch.save({"epoch": 3}, path)
    elif name == "pickled.pth":
        torch.save({"model": {"x": torch.ones(1)}, "cfg": tiny}, path)
    with pytest.raises(ValueError, match=r"weights|state dict|holds more than tensors") as caught:
        load_released(path, tiny)
    assert "\n" not in str(caught.value)
