"""Every loss, the reference's variant of L_inter included, and the gradients of all parameters, against the goldens."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from glipv2.config import ModelConfig
from glipv2.losses import contrast
from glipv2.losses.contrast import ContrastConfig, as_reference, choose_regions, compare
from glipv2.losses.criterion import Criterion, LossConfig
from glipv2.model.glipv2 import GLIPv2
from glipv2.released import WORD_BIAS
from glipv2.sample import NOT_PREDICTED, Batch

pytestmark = pytest.mark.parity
Arrays = dict[str, Tensor]
Case = Any  # conftest.Case, which a test module cannot import

DECODER_BIAS = "rpn.head.mlm_head.decoder.bias"
PADDED, FILLED = ContrastConfig(), ContrastConfig(random_pads=True)
VARIANTS = {
    "base": LossConfig(no_object_token=True),
    "shallow_zero_pad": LossConfig(no_object_token=True, inter=1.0, contrast=PADDED),
    "shallow_neg_pad": LossConfig(no_object_token=True, inter=1.0, contrast=FILLED),
    "mlm": LossConfig(no_object_token=True, mlm=1.0),
    "mlm_all_tokens": LossConfig(no_object_token=True, mlm=1.0),
    "mlm_shallow_zero": LossConfig(no_object_token=True, inter=1.0, mlm=1.0, contrast=PADDED),
}
UPSTREAM = {
    "loss_token": "loss_dot_product_token",
    "loss_box": "loss_reg",
    "loss_centerness": "loss_centerness",
    "loss_inter": "loss_shallow_contrastive",
    "loss_mlm": "mlm_loss",
}


def batch_of(case: Case, variant: str) -> Batch:
    """The case with its categories, and with the words masked that the variant masks."""
    inputs, masked = case.inputs, f"train.{variant}.mlm_labels" in case.expected
    labels = inputs["original_od_label"].split(inputs["boxes_per_image"].tolist())
    return replace(
        case.batch,
        ids=case.expected[f"train.{variant}.input_ids_masked"] if masked else case.batch.ids,
        masked_words=case.expected[f"train.{variant}.mlm_labels"] if masked else case.batch.masked_words,
        token_categories=inputs["positive_map_for_od_labels"].long(),
        targets=tuple(replace(t, categories=c) for t, c in zip(case.batch.targets, labels, strict=True)),
    )


def replay(facts: Mapping[str, Any]) -> Callable[[Tensor, int, int], Tensor]:
    """Draw what the reference drew and in its order: every image's regions, then every image's further negatives.

    Where an image has too many regions, those too were drawn, so they stand among the recorded calls once more.
    """
    regions, calls = facts.get("positive_indices", []), facts["random_sample_calls"]
    chosen = [sorted(draw) for draw in regions]
    draws = iter([*regions, *(draw for draw in calls if not draw or sorted(draw) not in chosen)])

    def sample(pool: Tensor, count: int, seed: int) -> Tensor:
        draw = next(draws)
        assert len(draw) == min(count, len(pool))
        assert set(draw) <= set(pool.tolist())
        return torch.tensor(draw, dtype=torch.long)

    return sample


def test_every_variant_of_the_case_is_compared(case: Case) -> None:
    assert case.facts["train"].keys() <= VARIANTS.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_equal_the_reference(
    case: Case,
    variant: str,
    golden_model: GLIPv2,
    cfg: ModelConfig,
    renamed: Callable[[Mapping[str, Tensor]], Arrays],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts, batch = case.trained(variant), batch_of(case, variant)
    monkeypatch.setattr(contrast, "sample", replay(facts))
    golden_model.zero_grad(set_to_none=True)
    outputs = golden_model(batch.pixels, batch.ids, batch.mask, batch.masked_words != NOT_PREDICTED)
    losses = Criterion(cfg, VARIANTS[variant])(outputs, batch)
    expected = {name: value for name, value in facts["losses"].items() if name != "loss_cls"}
    assert {UPSTREAM[name]: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=2e-5)

    torch.stack(list(losses.values())).sum().backward()
    norms = {name: p.grad.norm()[None] for name, p in golden_model.named_parameters() if p.grad is not None}
    # The reference names the decoder's bias, which it holds twice, once.
    given = {name.replace(WORD_BIAS, DECODER_BIAS): norm for name, norm in facts["grad_norms"].items()}
    stored = renamed({name: torch.tensor([norm]) for name, norm in given.items() if norm is not None})
    golden_model.zero_grad(set_to_none=True)
    assert norms.keys() == stored.keys()
    for name, norm in stored.items():
        # A bias on the keys of a text layer shifts all logits of its softmax alike: the gradient is mere rounding.
        # (One on the keys of the fusion does not, as its logits also have a softmax over the positions.)
        if not name.endswith(".key.bias"):
            torch.testing.assert_close(norms[name], norm.norm()[None], rtol=1e-3, atol=1e-6, msg=f"{variant}: {name}")


@pytest.mark.parametrize("variant", ["shallow_zero_pad", "shallow_neg_pad"])
def test_regions_are_compared_with_the_words_of_all_images_as_in_the_reference(
    case: Case, variant: str, golden_model: GLIPv2, cfg: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrast, "sample", replay(case.trained(variant)))
    batch, counting = batch_of(case, variant), as_reference(VARIANTS[variant].contrast)
    with torch.no_grad():
        outputs = golden_model(batch.pixels, batch.ids, batch.mask)
    owners = Criterion(cfg).match(outputs.regions.level_sizes, batch).owners
    owners = owners.where(owners > 0, -1)
    ours, _ = compare(outputs.contrast, owners, choose_regions(owners, batch, counting), batch)

    logits = case.expected[f"train.{variant}.image_logits"][0]
    positive = case.expected[f"train.{variant}.image_positive_map"][0]
    valid = batch.mask.flatten() > 0
    rows = (logits[:, valid] > -1e5).all(1)  # elsewhere the reference masks with -1e6; here nothing stands there
    torch.testing.assert_close(ours.logits, logits[rows][:, valid], atol=5e-4, rtol=1e-5)
    partners = ours.positive.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(ours.positive / partners, positive[rows][:, valid], atol=1e-6, rtol=0)
    assert positive[~rows].sum() == positive[:, ~valid].sum() == 0


def test_the_contrast_reads_the_text_that_the_reference_reads(case: Case, golden_model: GLIPv2) -> None:
    case.trained("shallow_zero_pad")
    assert golden_model.contrast_head is not None
    read: list[Tensor] = []
    hook = golden_model.contrast_head.word_projection.register_forward_pre_hook(lambda _, given: read.extend(given))
    with torch.no_grad():
        golden_model(case.batch.pixels, case.batch.ids, case.batch.mask)
    hook.remove()
    valid = case.batch.mask > 0
    expected = case.expected["train.shallow_zero_pad.shallow_text_emb"]
    torch.testing.assert_close(read[0][valid], expected[valid], atol=5e-4, rtol=0)
