"""Properties of the network that hold whatever its weights are."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from glipv2.config import ModelConfig
from glipv2.model.boxes import decode, encode, iou_inclusive, level_sizes, to_half_open, to_inclusive
from glipv2.model.deform import gathered_deform_conv
from glipv2.model.glipv2 import GLIPv2
from glipv2.model.heads import Regions


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


IDS = torch.tensor([[2, 70, 60, 61, 3, 0], [2, 80, 81, 82, 83, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])


def assert_same(ours: Regions, expected: Regions, tokens: int) -> None:
    torch.testing.assert_close(ours.alignment[:, :, :tokens], expected.alignment[:, :, :tokens], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.box_deltas, expected.box_deltas, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.centerness, expected.centerness, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_forward_is_its_three_parts_in_turn(model: GLIPv2, pixels: Tensor) -> None:
    pyramid, text = model.encode_image(pixels), model.encode_text(IDS, MASK)
    parts = model.fuse(pyramid, text, MASK)
    assert_same(parts, model(pixels, IDS, MASK).regions, tokens=6)
    assert [tuple(x.shape[2:]) for x in pyramid] == list(parts.level_sizes) == [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    assert parts.level_sizes == level_sizes(pixels.shape[2], pixels.shape[3], model.cfg.strides)


@torch.no_grad()
def test_an_image_gives_the_same_alone_and_in_a_batch(model: GLIPv2, pixels: Tensor) -> None:
    together = model(pixels, IDS, MASK).regions
    for row, length in enumerate(MASK.sum(1).tolist()):
        alone = model(pixels[row : row + 1], IDS[row : row + 1, :length], MASK[row : row + 1, :length]).regions
        assert_same(alone, _row(together, row), tokens=length)


@torch.no_grad()
def test_longer_text_padding_changes_no_valid_output(model: GLIPv2, pixels: Tensor) -> None:
    padded_ids, padded_mask = (torch.nn.functional.pad(x, (0, 20)) for x in (IDS, MASK))
    padded_ids[:, 6:] = 17  # whatever stands under a mask of 0 must not matter
    assert_same(model(pixels, padded_ids, padded_mask).regions, model(pixels, IDS, MASK).regions, tokens=5)


@torch.no_grad()
def test_the_text_decides_what_is_found(model: GLIPv2, pixels: Tensor) -> None:
    other = torch.where(IDS == 60, 62, IDS)
    first, second = model(pixels, IDS, MASK).regions, model(pixels, other, MASK).regions
    assert (first.box_deltas[0] - second.box_deltas[0]).abs().max() > 1e-3
    assert torch.equal(first.box_deltas[1], second.box_deltas[1])


def test_every_parameter_gets_a_gradient(model: GLIPv2, pixels: Tensor) -> None:
    regions = model(pixels, IDS, MASK).regions
    (regions.alignment.sum() + regions.box_deltas.square().sum() + regions.centerness.square().sum()).backward()
    # A parameter without one would make distributed training wait for ever.
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("size", "stride", "reach"),
    [((7, 5), 1, 1.0), ((9, 6), 2, 3.0), ((1, 1), 1, 2.0), ((2, 3), 2, 1.0), ((6, 7), 1, 40.0)],
)
def test_gathered_deformable_convolution_equals_torchvision(size: tuple[int, int], stride: int, reach: float) -> None:
    draw = torch.Generator().manual_seed(0)
    out = [-(-side // stride) for side in size]
    shapes = ((2, 4, *size), (2, 18, *out), (2, 9, *out), (6, 4, 3, 3), (6,))
    # Double precision: at the border of the image one rounding decides on a whole corner.
    x, offset, mask, weight, bias = (torch.randn(s, generator=draw, dtype=torch.double) for s in shapes)
    inputs = [t.requires_grad_() for t in (x, offset * reach, mask.sigmoid(), weight, bias)]
    x, offset, mask, weight, bias = inputs
    ours = gathered_deform_conv(x, offset, mask, weight, bias, stride)
    theirs = deform_conv2d(x, offset, weight, bias, stride, padding=1, mask=mask)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(ours.shape, generator=draw, dtype=torch.double)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_boxes_cross_the_border_to_the_model_and_back() -> None:
    stored = torch.tensor([[0.0, 0.0, 64.0, 48.0], [3.5, 4.25, 9.5, 5.25]])
    inclusive = to_inclusive(stored)
    assert inclusive[0].tolist() == [0, 0, 63, 47]
    assert torch.equal(to_half_open(inclusive), stored)


def test_decoding_inverts_encoding() -> None:
    boxes = torch.tensor([[0.0, 0.0, 63.0, 47.0], [3.5, 4.25, 9.5, 30.0], [5.0, 5.0, 5.0, 5.0]])
    anchors = torch.tensor([[-28.0, -28.0, 35.0, 35.0]]).expand(3, 4)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, atol=1e-4, rtol=0)


def test_overlap_counts_the_inclusive_pixel() -> None:
    one_pixel, left_half = torch.tensor([[5.0, 5.0, 5.0, 5.0]]), torch.tensor([[5.0, 5.0, 6.0, 5.0]])
    assert iou_inclusive(one_pixel, one_pixel).item() == 1
    assert iou_inclusive(one_pixel, left_half).item() == 0.5
    assert iou_inclusive(one_pixel, one_pixel + 1).item() == 0


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"text_heads": 5}, "choose a multiple"),
        ({"fusion_heads": 7}, "choose a multiple"),
        ({"swin_num_heads": (2, 4, 5, 8)}, "stage 2 of Swin is 64, which 5 heads"),
        ({"min_size_px": 4000}, "raise the latter"),
        ({"pad_multiple_px": 0}, "give at least 1"),
        ({"max_tokens": 513}, "give fewer"),
    ],
)
def test_impossible_sizes_are_refused(tiny: ModelConfig, change: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        replace(tiny, **change)


def test_a_thin_picture_can_be_trained_on_with_drop_block(tiny: ModelConfig) -> None:
    trained = GLIPv2(replace(tiny, fpn_drop_block=0.3)).train()
    regions = trained(torch.randn(1, 3, 32, 96), IDS[:1], MASK[:1]).regions
    regions.alignment.sum().backward()
    assert torch.isfinite(regions.alignment).all()


def _row(regions: Regions, row: int) -> Regions:
    one = slice(row, row + 1)
    return Regions(
        alignment=regions.alignment[one],
        box_deltas=regions.box_deltas[one],
        centerness=regions.centerness[one],
        text=regions.text[one],
        level_sizes=regions.level_sizes,
    )
