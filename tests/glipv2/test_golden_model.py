"""The whole model against the public reference: every tap, detection, loss and gradient of the golden cases."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from glipv2.config import ModelConfig
from glipv2.image import pad_pictures, prepare
from glipv2.inference.postprocess import Detections, PostprocessConfig, postprocess
from glipv2.losses.assign import assign, centerness_targets, of_owner
from glipv2.losses.criterion import Criterion, LossConfig
from glipv2.model.boxes import encode, make_anchors
from glipv2.model.glipv2 import GLIPv2
from glipv2.released import LEVEL_SCALE
from glipv2.text.positive_map import positive_map
from glipv2.text.tokenizer import WordPiece

pytestmark = pytest.mark.parity
Arrays = dict[str, Tensor]
ATOL, RTOL = 5e-4, 1e-5  # the reference's own float32 noise is 3e-5
LEVELS = ("P3", "P4", "P5", "P6", "P7")
CPU = torch.device("cpu")
Case = Any  # conftest.Case, which a test module cannot import


def test_swin_and_pyramid_equal_the_reference(case: Case, golden_model: GLIPv2) -> None:
    with torch.no_grad():
        stages = golden_model.swin(case.batch.pixels)
        pyramid = golden_model.fpn(stages)
    case.assert_close("swin.stage2", case.taps["swin.stage2"])
    for number, stage in zip((3, 4, 5), stages, strict=True):
        case.assert_close(f"swin.stage{number}", stage)
    for level, x in zip(LEVELS, pyramid, strict=True):
        case.assert_close(f"fpn.{level}", x)


def test_text_encoder_equals_the_reference(case: Case, golden_model: GLIPv2) -> None:
    with torch.no_grad():
        hidden = golden_model.encode_text(case.batch.ids, case.batch.mask)
    valid = case.batch.mask > 0
    assert torch.equal(case.batch.mask, case.expected["text.masks"])
    torch.testing.assert_close(hidden[valid], case.expected["text.hidden"][valid], atol=ATOL, rtol=RTOL)


def test_masked_text_features_and_their_mean_equal_the_reference(
    case: Case, golden_model: GLIPv2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_model.text_encoder, "masked", True)  # as in a model without deep fusion
    with torch.no_grad():
        embedded = golden_model.encode_text(case.batch.ids, case.batch.mask)
    case.assert_close("text.embedded", embedded)
    # Ours has no such mean, as nothing in the reference reads it.
    case.assert_close("text.aggregate", embedded.sum(1) / case.batch.mask.sum(1, keepdim=True))


def test_every_layer_of_the_tower_equals_the_reference(case: Case, cfg: ModelConfig) -> None:
    valid = case.batch.mask > 0
    for block in range(cfg.num_blocks):
        fused, expected = case.taps[f"layer{block}.fuse.rows"], case.rows(f"layer{block}.fuse")
        torch.testing.assert_close(fused, expected, atol=ATOL, rtol=RTOL)
        for layer in ("fuse", "bert"):
            tap = f"layer{block}.{layer}.text"
            torch.testing.assert_close(case.taps[tap][valid], case.expected[tap][valid], atol=ATOL, rtol=RTOL)
        for level in LEVELS:
            case.assert_close(f"layer{block}.dyconv.{level}", case.taps[f"layer{block}.dyconv.{level}"])


def test_predictions_of_the_head_equal_the_reference(case: Case) -> None:
    alignment = torch.cat([case.expected[f"head.dot_logits.{level}"] for level in LEVELS], 1)
    valid = (case.batch.mask > 0)[:, None].expand_as(alignment)
    torch.testing.assert_close(case.regions.alignment[valid], alignment[valid], atol=ATOL, rtol=RTOL)
    torch.testing.assert_close(case.regions.box_deltas, case.rows("head.bbox_reg"), atol=ATOL, rtol=RTOL)
    torch.testing.assert_close(case.regions.centerness, case.rows("head.centerness")[..., 0], atol=ATOL, rtol=RTOL)


def test_anchors_equal_the_reference(case: Case, cfg: ModelConfig) -> None:
    expected = torch.cat([case.expected[f"anchors.{level}"] for level in LEVELS])
    assert torch.equal(_anchors(case, cfg), expected)


def test_candidates_before_suppression_equal_the_reference_as_a_set(case: Case, cfg: ModelConfig) -> None:
    keeps_all = PostprocessConfig(nms_iou=1.0, max_detections=5 * PostprocessConfig().candidates_per_level)
    for image, ours in enumerate(postprocess(case.regions, case.label_tokens, case.sizes, cfg, keeps_all)):
        assert_same_set(case, f"pre_nms.{image}", ours)


def test_detections_equal_the_reference_as_a_set(case: Case, cfg: ModelConfig) -> None:
    found = postprocess(case.regions, case.label_tokens, case.sizes, cfg, PostprocessConfig())
    for image, ours in enumerate(found):
        assert_same_set(case, f"det.{image}", ours)


def assert_same_set(case: Case, tap: str, ours: Detections) -> None:
    """Compare as sets: each has an equal one on the other side."""
    boxes, scores, labels = (case.expected[f"{tap}.{part}"] for part in ("boxes", "scores", "labels"))
    assert len(ours.scores) == len(scores), f"{tap} of case {case.name}"
    same = (
        ((ours.boxes_xyxy[:, None] - boxes).abs().amax(-1) < 5e-3)
        & ((ours.scores[:, None] - scores).abs() < 1e-5)
        & (ours.labels[:, None] + 1 == labels)
    )
    alone = [int((~same.any(side)).sum()) for side in (0, 1)]
    assert alone == [0, 0], f"{tap} of case {case.name}: {alone[0]} of the reference and {alone[1]} of ours are alone"


def test_assignment_equals_the_reference(case: Case, cfg: ModelConfig) -> None:
    anchors = _anchors(case, cfg)
    lengths = [height * width for height, width in case.regions.level_sizes]
    classes = case.inputs["gt_labels"].split(case.inputs["boxes_per_image"].tolist())
    centerness = []
    for image, target in enumerate(case.batch.targets):
        owner = assign(anchors, lengths, target.boxes_xyxy)
        assert torch.equal(owner, case.expected["train.assign.gt_index"][image])
        assert torch.equal(of_owner(classes[image], owner, 0), case.expected["train.assign.labels"][image])
        positive = owner >= 0
        boxes = target.boxes_xyxy[owner[positive]]
        codes = case.expected["train.assign.reg_targets"][image][positive]
        torch.testing.assert_close(encode(boxes, anchors[positive]), codes, atol=2e-5, rtol=1e-5)
        centerness.append(centerness_targets(anchors[positive], boxes))
    expected = case.expected["train.centerness_targets_of_positives"]
    # The reference takes the box's way through its code and back, hence the rounding.
    torch.testing.assert_close(torch.cat(centerness), expected, atol=2e-5, rtol=0)


def test_gradients_of_small_parameters_equal_the_reference_number_by_number(
    case: Case, golden_model: GLIPv2, cfg: ModelConfig, renamed: Callable[[Arrays], Arrays]
) -> None:
    case.trained("base")
    golden_model.zero_grad(set_to_none=True)
    outputs = golden_model(case.batch.pixels, case.batch.ids, case.batch.mask)
    losses = Criterion(cfg, LossConfig(no_object_token=True)).grounding(outputs.regions, case.batch)
    torch.stack(list(losses.values())).sum().backward()
    ours = {name: p.grad for name, p in golden_model.named_parameters() if p.grad is not None}
    golden_model.zero_grad(set_to_none=True)

    stored = {n.removeprefix("train.base.grad."): g for n, g in case.expected.items() if "train.base.grad." in n}
    scales = {int(name.split(".")[-2]): g for name, g in stored.items() if ".scales." in name}
    expected = renamed({name: g for name, g in stored.items() if ".scales." not in name})
    assert len(expected) + len(scales) == len(stored)
    for level, gradient in scales.items():
        torch.testing.assert_close(ours[LEVEL_SCALE][level : level + 1], gradient, rtol=1e-3, atol=1e-5)
    for name, gradient in expected.items():
        rounding = 1e-4 * gradient.abs().max().item() + 1e-6
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=rounding, msg=lambda m, n=name: f"{n}: {m}")


def test_tokens_and_positive_maps_of_the_captions_equal_the_reference(case: Case, golden_tokenizer: WordPiece) -> None:
    for row, encoding in enumerate(golden_tokenizer(case.facts["captions"])):
        assert encoding.ids == case.batch.ids[row][case.batch.mask[row] > 0].tolist()
        spans = [[(begin, end) for begin, end in box] for box in case.facts["tokens_positive"][row]]
        ours = positive_map(encoding.offsets, spans, num_tokens=256)
        assert torch.equal(ours, case.batch.targets[row].positive_map)


def test_pixels_equal_the_reference_after_normalising_and_padding(case: Case, cfg: ModelConfig) -> None:
    raw = [case.inputs[f"raw_rgb_u8.{image}"] for image in range(len(case.sizes))]
    pictures = [
        # At its own short side an image is not resized.
        prepare(Image.fromarray(x.permute(1, 2, 0).numpy()), replace(cfg, min_size_px=min(x.shape[1:])))
        for x in raw
    ]
    padded = pad_pictures(pictures, case.facts["size_divisible"] or 1)
    torch.testing.assert_close(padded, case.inputs["images"], atol=1e-5, rtol=0)


def _anchors(case: Case, cfg: ModelConfig) -> Tensor:
    return make_anchors(case.regions.level_sizes, cfg.strides, cfg.anchor_scale, CPU)
