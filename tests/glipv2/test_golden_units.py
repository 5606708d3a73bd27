"""Single parts against arrays of the public reference (the README beside them says how they were made).

Not compared, because nothing of ours does it: `g2od.MAX`, `.ONEHOT` and `g2od_v2.POWER`, other ways to a class score
that no released model uses; `contrast_align`, a loss of MDETR's; `giou.sum_when_weight_all_zero`, a sum without weights
that assignment rules out, as a positive anchor's centre lies inside its box; `greenlight` and `od_labels` of a positive
map, as ours hides whole words and knows categories in prompts only; `od_to_grounding_sampled`, drawn by other
generators than ours; and `optim_groups_*`, parameter groups of recipes that are not here yet.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from glipv2.config import ModelConfig
from glipv2.image import Picture, prepare, scale_boxes, target_size
from glipv2.inference.postprocess import _class_scores, suppress
from glipv2.losses.assign import centerness_targets
from glipv2.losses.contrast import Comparison
from glipv2.losses.grounding import giou_loss, token_focal_loss
from glipv2.model.boxes import (
    CODE_WEIGHTS,
    MAX_LOG_SIZE,
    decode,
    encode,
    make_anchors,
    to_half_open,
    to_inclusive,
)
from glipv2.model.deform import gathered_deform_conv
from glipv2.model.dyhead import DynamicConv, ModulatedBranch
from glipv2.model.fusion import Fusion
from glipv2.model.language import TextLayer
from glipv2.optim import OptimConfig, make_schedule
from glipv2.text.positive_map import positive_map, tokens_of_span
from glipv2.text.prompts import Prompt, Wording, build_prompt
from glipv2.text.tokenizer import WordPiece

pytestmark = pytest.mark.parity
Arrays = dict[str, Tensor]
PartOf = Callable[[Arrays, str, str], Arrays]


def assert_close(ours: Tensor, expected: Tensor, atol: float = 5e-6) -> None:
    torch.testing.assert_close(ours, expected, atol=atol, rtol=1e-6)


def test_box_coder_encodes_and_decodes(units: Arrays) -> None:
    anchors = units["boxcoder.anchors"]
    assert_close(encode(units["boxcoder.gt"], anchors), units["boxcoder.encoded"])
    assert_close(decode(units["boxcoder.codes"], anchors), units["boxcoder.decoded"])
    assert_close(decode(units["boxcoder.encoded"], anchors), units["boxcoder.roundtrip"])


def test_box_codes_have_the_weights_and_the_clamp_of_the_reference(unit_facts: dict[str, Any]) -> None:
    assert list(CODE_WEIGHTS) == unit_facts["boxcoder"]["weights"]
    assert unit_facts["boxcoder"]["dw_dh_clamp"] == MAX_LOG_SIZE


def test_anchors_lie_on_the_grid(units: Arrays, unit_facts: dict[str, Any]) -> None:
    facts = unit_facts["anchors"]
    sizes, strides = tuple(map(tuple, facts["grid_sizes_hw"])), tuple(facts["strides"])
    scale = facts["sizes"][0] / strides[0]
    cpu = torch.device("cpu")
    grid = torch.cat([units[f"anchors.grid.{level}"] for level in range(len(strides))])
    assert torch.equal(make_anchors(sizes, strides, scale, cpu), grid)
    cells = torch.cat([units[f"anchors.cell.{level}"] for level in range(len(strides))])
    assert torch.equal(make_anchors(((1, 1),) * len(strides), strides, scale, cpu), cells)


def test_giou_of_decoded_boxes(units: Arrays) -> None:
    predicted, boxes = (decode(units[f"giou.{name}"], units["giou.anchor"]) for name in ("pred", "target"))
    each = giou_loss(predicted, boxes)
    assert_close(each, units["giou.each"])
    assert_close((each * units["giou.weight"]).sum(), units["giou.weighted_sum"])


def test_centerness_targets(units: Arrays) -> None:
    anchors = units["centerness.anchors"]
    boxes = decode(units["centerness.reg_targets"], anchors)
    assert_close(centerness_targets(anchors, boxes), units["centerness.targets"])


def test_token_focal_loss_and_its_gradient(units: Arrays, unit_facts: dict[str, Any]) -> None:
    logits, targets = units["focal.logits"].requires_grad_(), units["focal.targets"]
    counted, facts = units["focal.text_mask"] > 0, unit_facts["focal"]
    loss = token_focal_loss(logits, targets, counted)
    loss.backward()
    assert loss.item() == pytest.approx(facts["masked_sum"], rel=1e-6)
    everything = token_focal_loss(logits, targets, torch.ones_like(counted)).item()
    assert everything == pytest.approx(facts["unmasked_sum"], rel=1e-6)
    assert logits.grad is not None
    assert_close(logits.grad[0, :, :32], units["focal.grad_image0_first32"])


def test_token_focal_loss_of_each_image_anchor_and_token(units: Arrays, unit_facts: dict[str, Any]) -> None:
    logits, targets, facts = units["focal.logits"], units["focal.targets"], unit_facts["focal"]
    counted = units["focal.text_mask"] > 0
    for image, name in enumerate(("image0_masked_sum", "image1_full_length_sum")):
        only = slice(image, image + 1)
        assert token_focal_loss(logits[only], targets[only], counted[only]).item() == pytest.approx(facts[name])
    lone = (units[f"focal.{name}"][0].reshape(-1, 1, 1) for name in ("logits", "targets"))
    each = torch.stack(
        [token_focal_loss(x[None], y[None], torch.ones(1, 1).bool()) for x, y in zip(*lone, strict=True)]
    )
    assert_close(each.view(7, -1), units["focal.elementwise_unmasked_image0"][0])


@pytest.mark.parametrize(("name", "weight_scale"), [("fusion", 1.0), ("fusion_clamped", 3000.0)])
def test_fusion(units: Arrays, part_of: PartOf, name: str, weight_scale: float) -> None:
    fusion = Fusion(image_dim=16, text_dim=12, dim=32, heads=4, dropout=0.1, scale=1.0).eval()
    weights = part_of(units, "fusion.param.", "fusion")
    for projection in ("image_query.weight", "text_key.weight"):
        weights[projection] = weights[projection] * weight_scale
    fusion.load_state_dict(weights)
    rows = torch.cat([units[f"fusion.v{level}"].flatten(2) for level in range(5)], 2).transpose(1, 2)
    image, text = fusion(rows, units["fusion.l"], units["fusion.mask"])
    expected = torch.cat([units[f"{name}.out_v{level}"].flatten(2) for level in range(5)], 2).transpose(1, 2)
    assert_close(image, expected)
    assert_close(text, units[f"{name}.out_l"])


def test_text_layer(units: Arrays, part_of: PartOf) -> None:
    layer = TextLayer(dim=12, heads=3, ffn_dim=20, dropout=0.1).eval()
    layer.load_state_dict(part_of(units, "bertlayer.param.", "text_layer"))
    out = layer(units["fusion.l"], units["fusion.mask"])
    assert_close(out, units["bertlayer.out"])


@pytest.mark.parametrize(("x", "stride", "out"), [("x", 1, "out_stride1"), ("x_finer", 2, "out_stride2")])
def test_deformable_convolution(units: Arrays, x: str, stride: int, out: str) -> None:
    offset, mask, weight, bias = (units[f"dcn.{name}"] for name in ("offset", "mask", "weight", "bias"))
    assert_close(gathered_deform_conv(units[f"dcn.{x}"], offset, mask, weight, bias, stride), units[f"dcn.{out}"])


def test_coarser_branch_reads_the_flat_prefix_of_its_offsets(units: Arrays) -> None:
    branch = ModulatedBranch(channels=5, stride=1, groups=1)
    # The stored convolution has four outputs, ours as many as inputs: give it an idle fifth.
    weight, bias = torch.zeros(5, 5, 3, 3), torch.zeros(5)
    weight[:4], bias[:4] = units["dcn.weight"], units["dcn.bias"]
    branch.conv.load_state_dict({"weight": weight, "bias": bias})
    branch.norm = nn.Identity()  # type: ignore[assignment]
    out = branch(units["dcn.x_coarser"], units["dcn.offset"], units["dcn.mask"])
    assert_close(out[:, :4], units["dcn.out_coarser_flat_prefix"])


def test_dynamic_convolution(units: Arrays, part_of: PartOf) -> None:
    layer = DynamicConv(channels=16, groups=4)
    layer.load_state_dict(part_of(units, "dyconv.param.", "dynamic_conv"))
    for level, out in enumerate(layer([units[f"dyconv.in{level}"] for level in range(5)])):
        assert_close(out, units[f"dyconv.out{level}"])


def test_suppression_counts_the_inclusive_pixel(units: Arrays, unit_facts: dict[str, Any]) -> None:
    order = units["nms.scores"].argsort(descending=True, stable=True)
    kept = suppress(units["nms.boxes"][order], units["nms.labels"][order], unit_facts["nms"]["threshold"])
    assert order[kept].sort().values.tolist() == units["nms.keep_ascending"].tolist()
    assert len(kept) < len(units["nms.keep_if_no_plus_one_convention"])


def test_pixels_are_resized_and_normalised(units: Arrays, unit_facts: dict[str, Any], tiny: ModelConfig) -> None:
    facts = unit_facts["preproc"]
    image = Image.fromarray(units["preproc.rgb_u8"].permute(1, 2, 0).numpy())
    picture = prepare(image, replace(tiny, min_size_px=facts["min_size"], max_size_px=facts["max_size"]))
    assert_close(picture.pixels, units["preproc.out"])
    assert_close(scale_boxes(units["preproc.box_in"], picture), units["preproc.box_out"])


def test_boxes_are_mirrored_with_their_image(units: Arrays) -> None:
    _, height, width = units["preproc.rgb_u8"].shape
    picture = Picture(pixels=torch.zeros(3, height, width), scale_xy=(1.0, 1.0), original_size=(width, height))
    mirrored = scale_boxes(to_half_open(units["preproc.box_in"]), picture, flip=True)
    assert_close(to_inclusive(mirrored), units["preproc.box_hflip"])


def test_target_sizes(unit_facts: dict[str, Any]) -> None:
    for case in unit_facts["resize_get_size"]:
        width, height = case["wh"]
        assert list(target_size(width, height, 800, 1333)) == case["hw_out"][::-1], case["wh"]


def label_tokens(prompt: Prompt, tokenizer: WordPiece) -> dict[str, list[int]]:
    encoding = tokenizer([prompt.text])[0]
    return {str(label): tokens_of_span(encoding.offsets, span) for label, span in prompt.spans.items()}


def worded(labels: list[int], wordings: list[dict[str, str]] | None) -> dict[int, Wording]:
    return {label: Wording(**wording) for label, wording in zip(labels, wordings or [], strict=False)}


def test_prompts_have_the_tokens_of_the_reference(unit_facts: dict[str, Any], golden_tokenizer: WordPiece) -> None:
    for case in unit_facts["prompt_builder"]:
        prompt = build_prompt(
            list(zip(case["labels"], case["names"], strict=True)),
            case["separation"],
            wordings=worded(case["labels"], case["caption_prompt"]),
            distractors=case["additional_labels"] or (),
        )
        # Ours has no blank where a bracketed remark stood; no token sees it.
        assert golden_tokenizer([prompt.text])[0].ids == case["input_ids"]
        assert label_tokens(prompt, golden_tokenizer) == case["label_to_tokens"]


def test_prompts_of_the_demo_have_the_tokens_of_the_reference(
    unit_facts: dict[str, Any], golden_tokenizer: WordPiece
) -> None:
    for case in unit_facts["prompt_builder_demo_list"]:
        prompt = build_prompt(list(enumerate(case["input"], start=1)), " . ")
        assert label_tokens(prompt, golden_tokenizer) == case["label_to_tokens"]


def test_entities_of_a_sentence_have_the_tokens_of_the_reference(
    unit_facts: dict[str, Any], golden_tokenizer: WordPiece
) -> None:
    for case in unit_facts["prompt_builder_demo_custom_entity"]:
        spans = {}
        for label, entity in enumerate(case["custom_entity"], start=1):
            begin = case["caption"].index(entity["span"]) if "span" in entity else entity["char_bounds"][0]
            spans[label] = (begin, begin + len(entity["span"]) if "span" in entity else entity["char_bounds"][1])
        prompt = Prompt(text=case["caption"], spans=spans)
        assert label_tokens(prompt, golden_tokenizer) == case["label_to_tokens"]


def test_detection_prompts_of_training_have_the_spans_of_the_reference(
    unit_facts: dict[str, Any], golden_tokenizer: WordPiece
) -> None:
    for case in unit_facts["od_to_grounding_simple"]:
        names = [(int(label), name) for label, name in case["ind_to_class"].items()]
        wordings = worded([label for label, _ in names], case["kwargs"].get("caption_prompt"))
        if case["kwargs"].get("add_detection_prompt"):
            wordings[names[0][0]] = Wording(name=names[0][1], prefix="object detection : ")
        prompt = build_prompt(names, case["kwargs"]["separation_tokens"], wordings=wordings)
        assert prompt.text.rstrip() == case["caption"].rstrip()
        for label, [(begin, end)] in zip(case["box_labels"], case["tokens_positive"], strict=True):
            assert prompt.text[slice(*prompt.spans[label])] == case["caption"][begin:end].strip()


def test_class_scores_are_means_over_the_tokens_of_a_class(units: Arrays, unit_facts: dict[str, Any]) -> None:
    by_label = {int(label): tokens for label, tokens in unit_facts["g2od.positive_map"].items()}
    width = units["g2od.MEAN"].shape[-1]
    tokens = [by_label.get(label, []) for label in range(1, width + 1)]
    some = units["g2od_v2.MEAN"].shape[-1]
    for image in range(2):
        scores = _class_scores(units["g2od.token_prob"][image].logit(), tokens)
        assert_close(scores, units["g2od.MEAN"][image])
        assert_close(scores[:, :some], units["g2od_v2.MEAN"][image])


def test_a_label_without_tokens_scores_nothing_where_the_reference_has_no_number(units: Arrays) -> None:
    reference = units["g2od.empty_token_list"]
    blind = reference.isnan().any(0).any(0)
    assert blind.tolist() == [False, True, False]
    assert _class_scores(units["g2od.token_prob"][0].logit(), [[1], [], [2]])[:, 1].tolist() == [0.0] * 6


def test_contrast_weighs_all_partners_of_a_region_alike(units: Arrays, unit_facts: dict[str, Any]) -> None:
    comparison = Comparison(logits=units["contrast.logits"][0], positive=units["contrast.positive_map"][0].float())
    assert_close(comparison.cross_entropy()[0], torch.tensor(unit_facts["contrast.nll_sum"]))
    for row, expected in enumerate(units["contrast.nll"][0].sum(1)):
        one = Comparison(logits=comparison.logits[row : row + 1], positive=comparison.positive[row : row + 1])
        assert_close(one.cross_entropy()[0], expected)


def test_spans_become_tokens(unit_facts: dict[str, Any], golden_tokenizer: WordPiece) -> None:
    for case in unit_facts["positive_map"]:
        encoding = golden_tokenizer([case["caption"]])[0]
        assert encoding.ids == case["input_ids"]
        spans = [[(begin, end) for begin, end in box] for box in case["spans"]]
        rows = positive_map(encoding.offsets, spans, len(encoding.ids))
        assert [row.nonzero()[:, 0].tolist() for row in rows] == case["rows"]


def test_learning_rate_follows_the_schedule(unit_facts: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = make_schedule(optimizer, OptimConfig(), num_steps=10_000).lr_lambdas[0]
    for step, expected in unit_facts["warmup_multistep_lr_factor"]:
        assert factor(step) == pytest.approx(expected), step
