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
from glipv2.inference.postprocess import PostprocessConfig, postprocess
from glipv2.losses.assign import assign, centerness_targets
from glipv2.losses.criterion import Criterion, LossConfig
from glipv2.model.boxes import make_anchors
from glipv2.model.glipv2 import GLIPv2
from glipv2.text.positive_map import positive_map
from glipv2.text.tokenizer import WordPiece

pytestmark = pytest.mark.parity
Arrays = dict[str, Tensor]
ATOL = 5e-4  # the reference's own float32 noise is 3e-5
LEVELS = ("P3", "P4", "P5", "P6", "P7")
CPU = torch.device("cpu")
Case = Any  # conftest.Case, which a test module cannot import


def test_swin_and_pyramid_equal_the_reference(case: Case, golden_model: GLIPv2) -> None:
    with torch.no_grad():
        stages = golden_model.swin(case.batch.pixels)
        pyramid = golden_model.fpn(stages)
    for number, stage in zip((3, 4, 5), stages, strict=True):
        case.assert_close(f"swin.stage{number}", stage)
    for level, x in zip(LEVELS, pyramid, strict=True):
        case.assert_close(f"fpn.{level}", x)


def test_text_encoder_equals_the_reference(case: Case, golden_model: GLIPv2) -> None:
    with torch.no_grad():
        hidden = golden_model.encode_text(case.batch.ids, case.batch.mask)
    valid = case.batch.mask > 0
    torch.testing.assert_close(hidden[valid], case.expected["text.hidden"][valid], atol=ATOL, rtol=0)


def test_every_layer_of_the_tower_equals_the_reference(case: Case, cfg: ModelConfig) -> None:
    valid = case.batch.mask > 0
    for block in range(cfg.num_blocks):
        fused, expected = case.taps[f"layer{block}.fuse.rows"], case.rows(f"layer{block}.fuse")
        torch.testing.assert_close(fused, expected, atol=ATOL, rtol=0)
        for layer in ("fuse", "bert"):
            tap = f"layer{block}.{layer}.text"
            torch.testing.assert_close(case.taps[tap][valid], case.expected[tap][valid], atol=ATOL, rtol=0)
        for level in LEVELS:
            case.assert_close(f"layer{block}.dyconv.{level}", case.taps[f"layer{block}.dyconv.{level}"])


def test_predictions_of_the_head_equal_the_reference(case: Case) -> None:
    alignment = torch.cat([case.expected[f"head.dot_logits.{level}"] for level in LEVELS], 1)
    valid = (case.batch.mask > 0)[:, None].expand_as(alignment)
    torch.testing.assert_close(case.regions.alignment[valid], alignment[valid], atol=ATOL, rtol=0)
    torch.testing.assert_close(case.regions.box_deltas, case.rows("head.bbox_reg"), atol=ATOL, rtol=0)
    torch.testing.assert_close(case.regions.centerness, case.rows("head.centerness")[..., 0], atol=ATOL, rtol=0)


def test_anchors_equal_the_reference(case: Case, cfg: ModelConfig) -> None:
    expected = torch.cat([case.expected[f"anchors.{level}"] for level in LEVELS])
    assert torch.equal(_anchors(case, cfg), expected)


def test_detections_equal_the_reference_as_a_set(case: Case, cfg: ModelConfig) -> None:
    label_tokens = list(case.facts["label_to_token"].values())
    sizes = [(width, height) for height, width in case.inputs["image_sizes_hw"].tolist()]
    found = postprocess(case.regions, [label_tokens] * len(sizes), sizes, cfg, PostprocessConfig())
    for image, ours in enumerate(found):
        boxes, scores, labels = (case.expected[f"det.{image}.{part}"] for part in ("boxes", "scores", "labels"))
        same = (
            ((ours.boxes_xyxy[:, None] - boxes).abs().amax(-1) < 5e-3)
            & ((ours.scores[:, None] - scores).abs() < 1e-5)
            & (ours.labels[:, None] + 1 == labels)
        )
        assert len(ours.scores) == len(scores)
        assert (same.sum(0) == 1).all(), f"case {case.name}, image {image}: {int((same.sum(0) != 1).sum())} differ"


def test_assignment_equals_the_reference(case: Case, cfg: ModelConfig) -> None:
    anchors = _anchors(case, cfg)
    lengths = [height * width for height, width in case.regions.level_sizes]
    centerness = []
    for image, target in enumerate(case.batch.targets):
        owner = assign(anchors, lengths, target.boxes_xyxy)
        assert torch.equal(owner, case.expected["train.assign.gt_index"][image])
        positive = owner >= 0
        centerness.append(centerness_targets(anchors[positive], target.boxes_xyxy[owner[positive]]))
    expected = case.expected["train.centerness_targets_of_positives"]
    # The reference takes the box's way through its code and back, hence the rounding.
    torch.testing.assert_close(torch.cat(centerness), expected, atol=2e-5, rtol=0)


def test_losses_and_gradients_equal_the_reference(
    case: Case, golden_model: GLIPv2, cfg: ModelConfig, renamed: Callable[[Arrays], Arrays]
) -> None:
    base = case.facts["train"]["base"]
    golden_model.zero_grad(set_to_none=True)
    outputs = golden_model(case.batch.pixels, case.batch.ids, case.batch.mask)
    losses = Criterion(cfg, LossConfig(no_object_token=True)).grounding(outputs.regions, case.batch)
    for ours, upstream in (
        ("loss_token", "loss_dot_product_token"),
        ("loss_box", "loss_reg"),
        ("loss_centerness", "loss_centerness"),
    ):
        assert losses[ours].item() == pytest.approx(base["losses"][upstream], rel=2e-5), ours
    torch.stack(list(losses.values())).sum().backward()

    gradients = {name: p.grad for name, p in golden_model.named_parameters() if p.grad is not None}
    stored = renamed({name: torch.tensor([n]) for name, n in base["grad_norms"].items() if n is not None})
    assert gradients.keys() == stored.keys()
    for name, norm in stored.items():
        # A bias on the keys shifts all logits of a softmax alike: its gradient is nothing but rounding.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(gradients[name].norm()[None], norm.norm()[None], rtol=1e-3, atol=1e-6)
    arrays = {n.removeprefix("train.base.grad."): g for n, g in case.expected.items() if "train.base.grad." in n}
    for name, expected in renamed({n: g for n, g in arrays.items() if ".scales." not in n}).items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-3, atol=ATOL)
    for number in (0, 2):
        expected = arrays[f"rpn.head.scales.{number}.scale"]
        torch.testing.assert_close(gradients["head.level_scale"][number : number + 1], expected, rtol=1e-3, atol=1e-5)


def test_tokens_and_positive_maps_of_the_captions_equal_the_reference(case: Case, golden_tokenizer: WordPiece) -> None:
    for row, encoding in enumerate(golden_tokenizer(case.facts["captions"])):
        assert encoding.ids == case.batch.ids[row][case.batch.mask[row] > 0].tolist()
        spans = [[(begin, end) for begin, end in box] for box in case.facts["tokens_positive"][row]]
        ours = positive_map(encoding.offsets, spans, num_tokens=256)
        assert torch.equal(ours, case.batch.targets[row].positive_map)


def test_pixels_equal_the_reference_after_normalising_and_padding(case: Case, cfg: ModelConfig) -> None:
    raw = [x for name, x in case.inputs.items() if name.startswith("raw_rgb_u8")]
    pictures = [
        # At its own short side an image is not resized.
        prepare(Image.fromarray(x.permute(1, 2, 0).numpy()), replace(cfg, min_size_px=min(x.shape[1:])))
        for x in raw
    ]
    padded = pad_pictures(pictures, case.facts["size_divisible"] or 1)
    torch.testing.assert_close(padded, case.inputs["images"], atol=1e-5, rtol=0)


def _anchors(case: Case, cfg: ModelConfig) -> Tensor:
    return make_anchors(case.regions.level_sizes, cfg.strides, cfg.anchor_scale, CPU)
