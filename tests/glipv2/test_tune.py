"""Tuning on eight drawings: what is learned, what is kept, and what it costs."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glipv2.config import ModelConfig
from glipv2.losses.criterion import Criterion
from glipv2.model.glipv2 import GLIPv2
from glipv2.released import upstream_names
from glipv2.sample import GroundingSample, collate
from glipv2.text.tokenizer import WordPiece
from glipv2.transfer.feature_cache import FeatureCache
from glipv2.transfer.learners import PromptLearner, WeightLearner, is_learned
from glipv2.transfer.protocol import Mode, TuningConfig
from glipv2.transfer.tune import DivergedError, TuneResult, Validate, tune
from glipv2.transfer.views import View

PROMPT = TuningConfig(mode="prompt", lr=0.05, weight_decay=0.25, max_epochs=3)
FULL = TuningConfig(mode="full", lr=2e-3, text_lr=1e-3, weight_decay=0.05, max_epochs=3)
LINEAR = replace(FULL, mode="linear")
Tuner = Callable[..., TuneResult]


@pytest.fixture
def run(model: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample]) -> Tuner:
    """Tune the model on four samples with a validation that has nothing to say."""

    def tuned(
        cfg: TuningConfig,
        validate: Validate = lambda _: 0.0,
        given: Sequence[GroundingSample] = samples[:4],
        seed: int = 3,
    ) -> TuneResult:
        return tune(model, tokenizer, given, cfg, validate, seed=seed)

    return tuned


class Script:
    """A validation that was written before: APs in turn, and what was looked at."""

    def __init__(self, model: GLIPv2, *aps: float) -> None:
        self.model, self.aps = model, list(aps)
        self.offsets: list[Tensor | None] = []
        self.states: list[dict[str, Tensor]] = []
        self.training: list[bool] = []

    def __call__(self, offset: Tensor | None) -> float:
        self.offsets.append(offset)
        self.states.append(state(self.model))
        self.training.append(any(module.training for module in self.model.modules()))
        return self.aps.pop(0)


def state(model: GLIPv2) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def losses(result: TuneResult) -> list[float]:
    return [seen.loss for seen in result.history if seen.loss is not None]


@pytest.mark.parametrize("cfg", [PROMPT, FULL, LINEAR])
def test_the_loss_falls(run: Tuner, cfg: TuningConfig) -> None:
    found = losses(run(replace(cfg, max_epochs=5)))
    assert found[-1] < found[0] - 0.05


def test_prompt_tuning_changes_the_offset_alone(run: Tuner, model: GLIPv2) -> None:
    before = state(model)
    result = run(PROMPT)
    assert not changed(before, state(model))
    assert result.offset is not None
    assert result.offset.abs().max() > 0
    assert result.history[-1].offset_norm == pytest.approx(result.offset.norm().item())


def test_the_untuned_model_is_measured_first(
    run: Tuner, model: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    script = Script(model, 10, 20, 30, 40)
    before = state(model)
    result = run(PROMPT, script)
    num_tokens = len(tokenizer([samples[0].text])[0].ids)
    assert script.offsets[0] is not None
    assert torch.equal(script.offsets[0], torch.zeros(num_tokens, model.cfg.text_dim))
    assert not changed(before, script.states[0])
    assert (result.history[0].epoch, result.history[0].val_ap, result.history[0].loss) == (0, 10, None)


@pytest.mark.parametrize(("aps", "best"), [((10, 30, 20, 20), 1), ((10, 30, 30, 5), 2), ((10, 9, 9, 9), 0)])
def test_the_last_of_the_best_offsets_is_kept(run: Tuner, model: GLIPv2, aps: tuple[float, ...], best: int) -> None:
    script = Script(model, *aps)
    result = run(PROMPT, script)
    assert (result.best_epoch, result.best_val_ap) == (best, max(aps))
    assert result.offset is not None
    assert script.offsets[best] is not None
    assert torch.equal(result.offset, script.offsets[best])


@pytest.mark.parametrize("cfg", [FULL, LINEAR])
def test_the_model_gets_the_best_weights_back(run: Tuner, model: GLIPv2, cfg: TuningConfig) -> None:
    script = Script(model, 10, 30, 20, 20)
    result = run(cfg, script)
    assert result.offset is None
    assert script.offsets == [None] * 4
    assert changed(script.states[0], script.states[1])
    assert changed(script.states[1], script.states[3])
    assert not changed(script.states[1], state(model))


@pytest.mark.parametrize("cfg", [PROMPT, FULL, LINEAR])
def test_the_model_is_measured_in_eval_mode_and_returned_as_it_was(
    run: Tuner, model: GLIPv2, cfg: TuningConfig
) -> None:
    model.fpn.requires_grad_(False)
    script = Script(model, 10, 20, 30, 40)
    random_state = torch.get_rng_state()
    run(cfg, script)
    assert not any(script.training)
    assert not model.training
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith("fpn.")
    }
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_linear_tuning_learns_the_layers_the_reference_does(run: Tuner, model: GLIPv2) -> None:
    layers = (
        *("bbox_pred", "cls_logits", "centerness", "cosine_scale", "dot_product_projection_text"),
        *("head.log_scale", "head.bias_lang", "head.bias0"),
    )
    before = state(model)
    run(replace(LINEAR, max_epochs=1))
    expected = {ours for ours, theirs in upstream_names(model).items() if any(layer in theirs for layer in layers)}
    assert changed(before, state(model)) == expected


def test_full_tuning_leaves_patch_embedding_and_first_stage_alone(run: Tuner, model: GLIPv2) -> None:
    frozen = ("backbone.body.patch_embed.", "backbone.body.layers.0.")
    names = upstream_names(model)
    assert {name for name in names if not is_learned(name, "full")} == {
        ours for ours, theirs in names.items() if theirs.startswith(frozen)
    }
    before = state(model)
    run(replace(FULL, max_epochs=1))
    moved = changed(before, state(model))
    assert all(is_learned(name, "full") for name in moved)
    assert {name.split(".")[0] for name in moved} == {"swin", "fpn", "text_encoder", "tower", "head"}


def test_what_is_frozen_is_in_eval_mode(model: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample]) -> None:
    training: dict[Mode, dict[str, bool]] = {}
    for cfg in (FULL, LINEAR):
        WeightLearner(model, tokenizer, samples, cfg).prepare()
        training[cfg.mode] = {name: module.training for name, module in model.named_modules()}
    for name in ("swin.patch_embed", "swin.stages.0.0", "swin.stages.1.0"):
        assert not training["full"][name], name
    for name in ("swin.stages.1.1", "text_encoder", "fpn", "tower.0.fusion.dropout", "head.box"):
        assert training["full"][name], name
    assert [name for name, on in training["linear"].items() if on and name.split(".")[0] not in ("", "head")] == []
    assert training["linear"]["head.box"]


def test_every_image_is_encoded_once_and_the_prompt_once(
    run: Tuner, model: GLIPv2, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    image, text = model.encode_image, model.encode_text
    monkeypatch.setattr(model, "encode_image", lambda *given: (calls.append("image"), image(*given))[1])
    monkeypatch.setattr(model, "encode_text", lambda *given: (calls.append("text"), text(*given))[1])
    result = run(replace(PROMPT, copies=3))
    assert sorted(calls) == ["image"] * 4 + ["text"]
    assert result.steps == 9
    positions = sum(side**2 for side in (8, 4, 2, 1, 1))
    assert result.memory_bytes == 4 * positions * model.cfg.channels * 4


def test_views_are_cached_apart(
    run: Tuner, model: GLIPv2, samples: list[GroundingSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Size] = []
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda pixels: (seen.append(pixels.shape[2:]), encode(pixels))[1])
    run(replace(PROMPT, flip=0.5, scales=(0.5, 1.0), copies=20, max_epochs=1), given=samples[:1])
    assert len(seen) == 2 * 2
    assert set(seen) == {torch.Size([32, 32]), torch.Size([64, 64])}


def test_where_features_are_kept_changes_no_loss(run: Tuner, tmp_path: Path) -> None:
    in_memory = run(PROMPT)
    again = run(replace(PROMPT, cache_mib=0))
    in_files = run(replace(PROMPT, cache_mib=0, cache_folder=tmp_path))
    assert (again.memory_bytes, again.mapped_bytes) == (0, 0)
    assert (in_files.memory_bytes, in_files.mapped_bytes) == (0, in_memory.memory_bytes)
    assert losses(in_memory) == losses(again) == losses(in_files)


def test_half_precision_features_teach_nearly_the_same(run: Tuner) -> None:
    exact, rough = losses(run(PROMPT)), losses(run(replace(PROMPT, cache_bf16=True)))
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.02)


@torch.no_grad()
def test_a_step_from_the_cache_is_a_step_through_the_whole_model(
    model: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    views = [View(index=index, flip=False, scale=1.0) for index in range(4)]
    batch = collate(samples[:4], tokenizer, model.cfg.pad_multiple_px)
    whole = Criterion(model.cfg)(model(batch.pixels, batch.ids, batch.mask), batch)
    with FeatureCache(10) as cache, torch.enable_grad():
        learner = PromptLearner(model, tokenizer, samples, PROMPT, cache)
        assert learner.backward(views) == pytest.approx(sum(value.item() for value in whole.values()), rel=1e-5)


@pytest.mark.parametrize("mode", ["full", "prompt"])
def test_a_box_weighs_the_same_whatever_passes_the_model_beside_its_image(
    monkeypatch: pytest.MonkeyPatch,
    model: GLIPv2,
    tokenizer: WordPiece,
    samples: list[GroundingSample],
    mode: Mode,
) -> None:
    views = [View(index=index, flip=False, scale=scale) for index, scale in enumerate((1.0, 0.5, 1.0, 1.0))]
    first, *others = samples
    fewer = replace(first, boxes_xyxy=first.boxes_xyxy[:1], tokens_positive=first.tokens_positive[:1])
    given, found = [fewer, *others], []
    for together in (True, False):
        if not together:
            monkeypatch.setattr("glipv2.transfer.learners._groups", lambda items, _: [[item] for item in items])
        with FeatureCache(10) as cache:
            learner = (
                PromptLearner(model, tokenizer, given, PROMPT, cache)
                if mode == "prompt"
                else WeightLearner(model, tokenizer, given, FULL)
            )
            model.eval()  # no dropout
            loss = learner.backward(views)
        found.append((loss, [parameter.grad.clone() for parameter in learner.parameters if parameter.grad is not None]))
        model.zero_grad(set_to_none=True)
    (whole, gradients), (parts, added) = found
    assert parts == pytest.approx(whole, rel=1e-5)
    assert len(gradients) == len(added) > 0
    for one, other in zip(gradients, added, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_the_same_seed_learns_the_same_and_another_does_not(
    tiny: ModelConfig, tokenizer: WordPiece, samples: Any
) -> None:
    found = []
    for seed in (3, 3, 30):
        torch.manual_seed(0)
        model = GLIPv2(replace(tiny, text_dropout=0.1, fusion_dropout=0.1))
        torch.manual_seed(seed)  # of the caller: it must not matter
        found.append(losses(tune(model, tokenizer, samples[:2], replace(FULL, max_epochs=2), lambda _: 0.0, seed=seed)))
    assert found[0] == found[1] != found[2]


def test_tuning_stops_when_ap_has_long_been_below_the_best(run: Tuner, model: GLIPv2) -> None:
    script = Script(model, 10, 30, *[20] * 50)
    result = run(replace(PROMPT, stop_patience=3, step_patience=1, max_epochs=50), script)
    assert [seen.epoch for seen in result.history] == [0, 1, 2, 3, 4]
    assert [seen.lr for seen in result.history] == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.005])


def test_a_cosine_lowers_the_rate_to_nearly_nothing_and_goes_on_whatever_ap_does(run: Tuner, model: GLIPv2) -> None:
    script = Script(model, 10, 30, *[20] * 10)
    result = run(replace(PROMPT, decay="cosine", stop_patience=1, step_patience=0, max_epochs=4), script)
    assert [seen.lr for seen in result.history[1:]] == pytest.approx([0.05, 0.0426777, 0.025, 0.0073223], rel=1e-4)
    assert result.best_epoch == 1


def test_an_evaluation_comes_every_so_many_epochs_and_at_the_end(run: Tuner) -> None:
    result = run(replace(PROMPT, evaluate_every=2, max_epochs=5))
    assert [seen.epoch for seen in result.history] == [0, 2, 4, 5]


def blacken(sample: GroundingSample) -> GroundingSample:
    """Spoil a picture so that no loss of it is a number."""
    pixels = torch.full_like(sample.picture.pixels, torch.nan)
    return replace(sample, picture=replace(sample.picture, pixels=pixels))


@pytest.mark.parametrize("cfg", [PROMPT, FULL])
def test_a_step_without_a_finite_loss_is_skipped_and_counted(
    run: Tuner, samples: list[GroundingSample], caplog: pytest.LogCaptureFixture, cfg: TuningConfig
) -> None:
    with caplog.at_level(logging.WARNING):
        result = run(replace(cfg, batch_size=1), given=[samples[0], blacken(samples[1])])
    assert (result.steps, result.skipped_steps) == (6, 3)
    assert caplog.text.count("the step is skipped") == 3
    assert all(loss > 0 for loss in losses(result))


@pytest.mark.parametrize("cfg", [PROMPT, FULL])
def test_an_epoch_without_a_finite_step_is_an_error_and_changes_nothing(
    run: Tuner, model: GLIPv2, samples: list[GroundingSample], cfg: TuningConfig
) -> None:
    before = state(model)
    with pytest.raises(DivergedError, match=r"no step of epoch 1 had a finite loss and gradient; lower lr"):
        run(cfg, given=[blacken(sample) for sample in samples[:2]])
    assert not changed(before, state(model))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("ap", [float("nan"), -1.0, 101.0])
def test_a_validation_without_an_ap_is_refused(run: Tuner, ap: float) -> None:
    with pytest.raises(ValueError, match=r"validation of epoch 0 gave an AP of .*; give a validation split with boxes"):
        run(PROMPT, lambda _: ap)


def test_no_sample_is_refused(run: Tuner) -> None:
    with pytest.raises(ValueError, match="there is no sample to tune with; give at least one"):
        run(PROMPT, given=[])


def test_samples_of_different_texts_are_refused_in_prompt_tuning(run: Tuner, samples: list[GroundingSample]) -> None:
    other = replace(samples[1], text=samples[1].text + " and")
    with pytest.raises(ValueError, match=r"sample 1 has the text .*; prompt tuning learns one text"):
        run(PROMPT, given=[samples[0], other])


def test_images_without_boxes_can_be_learned_from(run: Tuner, samples: list[GroundingSample]) -> None:
    empty = replace(samples[0], boxes_xyxy=torch.zeros(0, 4), tokens_positive=[])
    for cfg in (PROMPT, FULL):
        assert run(cfg, given=[empty, samples[1]]).skipped_steps == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cfg", [PROMPT, FULL, LINEAR])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_learns_nearly_what_a_processor_does(run: Tuner, model: GLIPv2, cfg: TuningConfig, bf16: bool) -> None:
    before = state(model)
    expected = losses(run(replace(cfg, max_epochs=2)))
    model.load_state_dict(before)
    model.cuda()
    result = run(replace(cfg, max_epochs=2, bf16=bf16))
    assert losses(result) == pytest.approx(expected, rel=0.05 if bf16 else 1e-3)
    assert (result.offset is not None) == (cfg.mode == "prompt")
