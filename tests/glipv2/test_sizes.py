"""The sizes: what their docstrings promise, and the parts only the larger ones have."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from glipv2 import config
from glipv2.config import ModelConfig
from glipv2.model.backbone import Swin
from glipv2.model.glipv2 import GLIPv2
from glipv2.model.language import TextEncoder

Size = Callable[[], ModelConfig]
SIZES = (config.nano, config.glip_t, config.glip_t_a, config.glip_l, config.t, config.b, config.h)


def on_meta(cfg: ModelConfig) -> GLIPv2:
    with torch.device("meta"):
        return GLIPv2(cfg).eval()


@pytest.mark.parametrize("size", SIZES)
def test_the_docstring_tells_the_number_of_parameters(size: Size) -> None:
    promised = re.search(r"([\d.]+) M parameters", size.__doc__ or "")
    assert promised
    assert f"{sum(p.numel() for p in on_meta(size()).parameters()) / 1e6:.1f}" == promised[1]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_the_shapes_of_a_detector(size: Size) -> None:
    cfg = size()
    model, device = on_meta(cfg), torch.device("meta")
    ids = torch.ones(2, cfg.max_tokens, dtype=torch.long, device=device)
    pyramid = model.encode_image(torch.empty(2, 3, 100, 161, device=device))
    assert [x.shape[1:] for x in pyramid] == [(cfg.channels, -(-100 // s), -(-161 // s)) for s in cfg.strides]
    # BERT looks whether a mask hides anything; without one it does not.
    bert = model.text_encoder.bert
    text = model.encode_text(ids, ids) if bert is None else bert(input_ids=ids).last_hidden_state
    regions = model.fuse(pyramid, text, ids)
    anchors = sum(height * width for height, width in regions.level_sizes)
    assert regions.alignment.shape == (2, anchors, cfg.max_tokens)
    assert regions.text.shape == (2, cfg.max_tokens, cfg.text_dim)
    assert regions.box_deltas.shape == (2, anchors, 4)


def test_h_comes_near_florences_published_counts() -> None:
    model = on_meta(config.h())
    image, text = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.swin, model.text_encoder))
    assert image == pytest.approx(637, rel=0.01)
    assert text == pytest.approx(256, rel=0.03)


@pytest.fixture
def conv_swin(tiny: ModelConfig) -> Swin:
    torch.manual_seed(0)
    return Swin(replace(tiny, swin_conv_embed=True)).eval()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 33), (5, 1)])
@torch.no_grad()
def test_convolutional_embedding_halves_every_size_rounding_up(conv_swin: Swin, height: int, width: int) -> None:
    maps = conv_swin(torch.randn(1, 3, height, width))
    assert [x.shape[2:] for x in maps] == [(-(-height // s), -(-width // s)) for s in (8, 16, 32)]


@torch.no_grad()
def test_convolutional_embedding_overlaps(conv_swin: Swin) -> None:
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[:, :, 0, 4] = 1  # in the second patch; the first one's kernel reaches columns -2 to 4
    changed = (conv_swin.patch_embed(pixels) - conv_swin.patch_embed(torch.zeros_like(pixels))).abs().sum((0, 1))
    assert (changed[0, :2] > 0).all()


@pytest.fixture
def clip(tiny: ModelConfig) -> ModelConfig:
    return replace(tiny, text_encoder="clip")


@pytest.fixture
def clip_text(clip: ModelConfig) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(clip).eval()


IDS = torch.tensor([[5, 6, 7, 8, 0, 0], [5, 9, 10, 11, 12, 13]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


@torch.no_grad()
def test_padding_never_influences_clip_text(clip_text: TextEncoder) -> None:
    alone = clip_text(IDS[:1, :4], MASK[:1, :4])
    torch.testing.assert_close(clip_text(IDS, MASK)[:1, :4], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clip_text(IDS + (1 - MASK) * 3, MASK)[:1, :4], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_clip_text_looks_in_both_directions(clip_text: TextEncoder) -> None:
    def hidden(ids: Tensor) -> Tensor:
        found: Tensor = clip_text(ids, torch.ones_like(ids))
        return found

    first_changed, last_changed = IDS[1:].clone(), IDS[1:].clone()
    first_changed[0, 0], last_changed[0, -1] = 20, 20
    assert (hidden(first_changed)[0, -1] - hidden(IDS[1:])[0, -1]).abs().max() > 1e-4
    assert (hidden(last_changed)[0, 0] - hidden(IDS[1:])[0, 0]).abs().max() > 1e-4


@torch.no_grad()
def test_clip_text_tells_positions_apart(clip_text: TextEncoder) -> None:
    same = torch.full((1, 3), 7)
    hidden = clip_text(same, torch.ones_like(same))
    assert (hidden[0, 0] - hidden[0, 1]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["bert", "clip"])
@torch.no_grad()
def test_a_text_that_is_all_padding_gives_numbers(tiny: ModelConfig, kind: str) -> None:
    encoder = TextEncoder(replace(tiny, text_encoder=kind)).eval()  # type: ignore[arg-type]
    assert encoder(IDS, torch.zeros_like(MASK)).isfinite().all()


def test_a_clip_model_trains_every_parameter(clip: ModelConfig) -> None:
    model = GLIPv2(clip)
    regions = model(torch.randn(2, 3, 64, 64), IDS, MASK).regions
    (regions.alignment.sum() + regions.box_deltas.square().sum() + regions.centerness.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_without_deep_fusion_the_head_reads_masked_text(tiny: ModelConfig) -> None:
    model = GLIPv2(replace(tiny, deep_fusion=False)).eval()
    text = model.encode_text(IDS, MASK)
    assert (text[0, 4:] == 0).all()
    assert torch.equal(model(torch.randn(2, 3, 64, 64), IDS, MASK).regions.text, text)
