"""The rewrites that make the model fast give the numbers of the plain way, with and without gradients."""

import pytest
import torch
from torch import Tensor, nn

from glipv2.model import backbone, deform, fusion
from glipv2.model.backbone import SwinBlock
from glipv2.model.fusion import CLAMP, Fusion
from glipv2.model.glipv2 import GLIPv2
from tests.bench.reference_way import reference_way

CHANNELS, TEXT, HEADS = 16, 12, 4


@pytest.fixture
def block() -> Fusion:
    torch.manual_seed(0)
    made = Fusion(CHANNELS, TEXT, 32, HEADS, dropout=0.0, scale=0.5)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return made


def streams(tokens: int = 7, positions: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(2, tokens, dtype=torch.long)
    mask[1, tokens - 2 :] = 0
    return torch.randn(2, positions, CHANNELS, generator=draw), torch.randn(2, tokens, TEXT, generator=draw), mask


def compare(block: Fusion, image: Tensor, text: Tensor, mask: Tensor) -> None:
    """Compare the three ways: unfolded, folded, and folded in chunks. Text padding is nobody's business."""
    with reference_way():
        plain = block(image, text, mask)
    folded = block(image, text, mask)
    with torch.no_grad():
        chunked = block(image, text, mask)
    for way in (folded, chunked):
        torch.testing.assert_close(way[0], plain[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(way[1][mask > 0], plain[1][mask > 0], atol=2e-5, rtol=1e-4)


def attend(block: Fusion, image: Tensor, text: Tensor, mask: Tensor) -> object:
    image, text = block.image_norm(image), block.text_norm(text)
    padding = torch.where(mask > 0, 0.0, fusion.PADDING)
    return fusion._attend_in_chunks(image, *block._fold(text), padding)


def test_folded_and_chunked_fusion_equal_the_plain_one(block: Fusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "CHUNK", 16)  # the last chunk is a short one
    image, text, mask = streams()
    with torch.no_grad():
        assert attend(block, image, text, mask) is not None
    compare(block, image, text, mask)


def test_a_token_far_below_all_others_is_left_to_the_general_way(block: Fusion) -> None:
    image, text, mask = streams()
    with torch.no_grad():
        block.image_query.weight.zero_()
        block.image_query.bias.mul_(400)  # a token's logits are the same everywhere, and far from another token's
        assert attend(block, image, text, mask) is None
    compare(block, image, text, mask)


def test_logits_beyond_the_clamp_are_left_to_the_general_way(block: Fusion) -> None:
    image, text, mask = streams()
    with torch.no_grad():
        block.text_key.weight.mul_(2 * CLAMP)
        assert attend(block, image, text, mask) is None
        image_update, _ = block(image, text, mask)
    assert torch.isfinite(image_update).all()


def test_a_text_of_nothing_but_padding_gives_finite_numbers(block: Fusion) -> None:
    image, text, mask = streams()
    mask[0] = 0
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert all(torch.isfinite(x).all() for x in block(image, text, mask))


def test_dropout_reaches_the_bias_of_the_folded_value_projection(block: Fusion) -> None:
    image, text, _ = streams()
    keys, bias, values = block._fold(block.text_norm(text))
    ones = torch.ones_like(image)
    _, text_sum, weight = fusion._attend(ones, keys, bias, values, torch.zeros(2, 7), nn.Dropout(0.5))
    assert weight.std() > 0.05
    torch.testing.assert_close(text_sum[..., 0], weight)


@pytest.mark.parametrize("shift", [0, 2])
def test_a_swin_block_in_chunks_of_windows_equals_the_rolled_one(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "CHUNK", 32)
    torch.manual_seed(0)
    made = SwinBlock(
        dim=8, input_resolution=(4, 4), num_heads=2, window_size=4, shift_size=shift, always_partition=True,
        dynamic_mask=True,
    ).eval()  # fmt: skip
    nn.init.normal_(made.attn.relative_position_bias_table)
    x = torch.randn(2, 11, 6, 8)
    with reference_way():
        plain = made(x)
    with torch.no_grad():
        torch.testing.assert_close(made(x), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(made(x), plain, atol=1e-5, rtol=0)


def test_the_whole_model_equals_the_plain_one_forward_and_backward(
    model: GLIPv2, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (backbone, deform, fusion):
        monkeypatch.setattr(module, "CHUNK", 24)
    pixels, ids = torch.randn(2, 3, 64, 96), torch.randint(5, 12, (2, 6))
    mask = torch.ones_like(ids)

    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad(set_to_none=True)
        regions = model(pixels, ids, mask).regions
        (regions.alignment.square().sum() + regions.box_deltas.sum() + regions.centerness.sum()).backward()
        return regions.alignment.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    with reference_way():
        plain, expected = gradients()
    ours, found = gradients()
    with torch.no_grad():
        quick = model(pixels, ids, mask).regions.alignment
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(quick, plain, atol=1e-4, rtol=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if not name.endswith(".key.bias"):  # of a text layer: zero but for rounding, as its softmax does not see it
            scale = gradient.abs().max().item()
            torch.testing.assert_close(found[name], gradient, atol=2e-3 * scale + 1e-4, rtol=0, msg=name)


def test_bfloat16_does_not_blur_large_logits(block: Fusion) -> None:
    image, text, mask = streams()
    with torch.no_grad():
        block.image_query.weight.mul_(100)  # logits of some hundred: bfloat16 would be off by one
        exact, _ = block(image, text, mask)
        with torch.autocast("cpu", torch.bfloat16):
            half, _ = block(image, text, mask)
    torch.testing.assert_close(half, exact, atol=0.02, rtol=0)
