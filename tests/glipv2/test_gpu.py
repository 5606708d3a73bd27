"""What a GPU computes is what the CPU computes: golden cases, deformable convolution, Predictor, compilation, training.

In single precision without TF32, only the order of sums differs; two hundred layers of it cost some 1e-4.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from PIL import Image
from torch import Tensor

from glipv2.config import ModelConfig
from glipv2.inference.postprocess import PostprocessConfig, postprocess
from glipv2.inference.predictor import Prediction, Predictor
from glipv2.losses.criterion import LOSSES, Criterion, LossConfig
from glipv2.model.dyhead import ModulatedBranch
from glipv2.model.glipv2 import GLIPv2
from glipv2.optim import OptimConfig, make_optimizer
from glipv2.sample import GroundingSample, collate
from glipv2.text.tokenizer import WordPiece
from glipv2.train import backward, freeze_untaught, update

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
GPU = torch.device("cuda")
Case = Any  # conftest.Case, which a test module cannot import
NAMES = ["red square", "green disc", "blue triangle"]


@pytest.fixture(autouse=True)
def _single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    # By default convolutions round their inputs to 10 bits there (TF32).
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def golden_on_gpu(golden_model: GLIPv2) -> Iterator[GLIPv2]:
    yield deepcopy(golden_model).to(GPU)
    torch.cuda.empty_cache()


@pytest.mark.parity
def test_golden_cases_on_the_gpu_equal_the_reference(case: Case, golden_on_gpu: GLIPv2, cfg: ModelConfig) -> None:
    batch, valid = case.batch.to(GPU), case.batch.mask > 0
    with torch.no_grad():
        regions = golden_on_gpu(batch.pixels, batch.ids, batch.mask).regions
        losses = Criterion(cfg, LossConfig(no_object_token=True)).grounding(regions, batch)
    alignment = regions.alignment.cpu().transpose(1, 2)[valid]
    close(alignment, case.regions.alignment.transpose(1, 2)[valid], atol=2e-3)
    close(regions.box_deltas.cpu(), case.rows("head.bbox_reg"), atol=2e-3)
    close(regions.centerness.cpu(), case.rows("head.centerness")[..., 0], atol=2e-3)
    expected = case.trained("base")["losses"]
    assert losses["loss_token"].item() == pytest.approx(expected["loss_dot_product_token"], rel=1e-3)
    assert losses["loss_box"].item() == pytest.approx(expected["loss_reg"], rel=1e-3)
    assert losses["loss_centerness"].item() == pytest.approx(expected["loss_centerness"], rel=1e-3)


@pytest.mark.parity
def test_detections_on_the_gpu_are_those_of_the_reference(case: Case, golden_on_gpu: GLIPv2, cfg: ModelConfig) -> None:
    batch = case.batch.to(GPU)
    with torch.no_grad():
        regions = golden_on_gpu(batch.pixels, batch.ids, batch.mask).regions
    for image, found in enumerate(postprocess(regions, case.label_tokens, case.sizes, cfg, PostprocessConfig())):
        boxes, scores, labels = (case.expected[f"det.{image}.{part}"] for part in ("boxes", "scores", "labels"))
        same = share_found(
            (boxes, scores, labels - 1), (found.boxes_xyxy.cpu(), found.scores.cpu(), found.labels.cpu()), 0.1, 1e-3
        )
        assert same > 0.95  # one on a threshold may fall to the other side, and take what it suppresses with it


@pytest.mark.parametrize(("stride", "size"), [(1, (7, 6)), (1, (4, 3)), (2, (13, 12))])
def test_deformable_convolution_on_the_gpu_equals_the_gathered_one(stride: int, size: tuple[int, int]) -> None:
    """Offsets are of a map of 7 x 6 positions: one of 4 x 3 reads the flat prefix of them."""
    torch.manual_seed(0)
    on_cpu = ModulatedBranch(channels=8, stride=stride, groups=2)
    on_gpu = deepcopy(on_cpu).to(GPU)
    inputs = torch.randn(2, 8, *size), 2 * torch.randn(2, 18, 7, 6), torch.rand(2, 9, 7, 6)
    ours = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.to(GPU).requires_grad_() for x in inputs]
    expected, out = on_cpu(*ours), on_gpu(*theirs)
    close(out.cpu(), expected, atol=1e-4)
    expected.square().sum().backward()
    out.square().sum().backward()
    for mine, other in zip([*ours, on_cpu.conv.weight], [*theirs, on_gpu.conv.weight], strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        close(other.grad.cpu(), mine.grad, atol=1e-3)


@pytest.mark.parametrize(("bf16", "px", "score", "share"), [(False, 0.05, 1e-3, 0.95), (True, 1.0, 0.02, 0.9)])
def test_the_predictor_finds_on_the_gpu_what_it_finds_on_the_cpu(
    model: GLIPv2, tokenizer: WordPiece, bf16: bool, px: float, score: float, share: float
) -> None:
    # All anchors of all labels are kept, so that no threshold decides. Images are 64 px wide.
    everything = PostprocessConfig(min_class_score=0.0, nms_iou=1.0, max_detections=10_000)
    on_gpu = Predictor(deepcopy(model).to(GPU), tokenizer, everything, bf16=bf16)
    on_cpu = Predictor(model, tokenizer, everything)
    images = [paint(64, 64), paint(64, 40)]
    captions, spans = ["a red square", "green disc and blue triangle"], [[(2, 12)], [(0, 10), (15, 28)]]
    pairs = [*zip(on_cpu.detect(images, NAMES), on_gpu.detect(images, NAMES), strict=True)]
    pairs += zip(on_cpu.ground(images, captions, spans), on_gpu.ground(images, captions, spans), strict=True)
    for expected, found in pairs:
        assert len(found.scores) == len(expected.scores) > 50
        assert share_found(parts(expected), parts(found), px, score) >= share


def test_the_compiled_model_equals_the_plain_one(model: GLIPv2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of shapes are not to be compiled
    model = model.to(GPU)
    torch.manual_seed(0)
    pixels, ids = torch.randn(2, 3, 64, 96, device=GPU), torch.randint(5, 12, (2, 6), device=GPU)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        text = model.encode_text(ids, mask)
        plain = model.fuse(model.encode_image(pixels), text, mask)
        compiled = torch.compile(model.fuse)(torch.compile(model.encode_image)(pixels), text, mask)
    for name in ("alignment", "box_deltas", "centerness"):
        close(getattr(compiled, name), getattr(plain, name), atol=2e-3)
    assert compiled.level_sizes == plain.level_sizes


@pytest.mark.parametrize(("bf16", "rel"), [(False, 1e-3), (True, 0.05)])
def test_a_training_step_with_all_losses_on_the_gpu_is_that_of_the_cpu(
    tiny: ModelConfig, samples: list[GroundingSample], tokenizer: WordPiece, bf16: bool, rel: float
) -> None:
    torch.manual_seed(0)
    on_cpu = GLIPv2(replace(tiny, contrast="paper", word_head=True)).train()
    on_gpu = deepcopy(on_cpu).to(GPU)
    criterion = Criterion(on_cpu.cfg, LossConfig(inter=1.0, mlm=1.0))
    batch = collate(samples[:2], tokenizer, 32, mask_words=0.5)
    expected = backward(on_cpu, criterion, batch)
    assert not freeze_untaught(on_gpu, criterion)
    optimizer = make_optimizer(on_gpu, OptimConfig(warmup_steps=0))
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        losses = backward(on_gpu, criterion, batch.to(GPU))
    assert losses.keys() == {"loss", *LOSSES}
    assert losses == pytest.approx(expected, rel=rel, abs=rel)
    before = [parameter.detach().clone() for parameter in on_gpu.parameters()]
    assert 0 < update(on_gpu.parameters(), optimizer, clip_norm=1.0) < float("inf")
    after = list(on_gpu.parameters())
    assert all(torch.isfinite(x).all() for x in after)
    assert sum(not torch.equal(x, y) for x, y in zip(before, after, strict=True)) > 0.9 * len(after)


def close(ours: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(ours, expected, atol=atol, rtol=1e-3)


def paint(width: int, height: int) -> Image.Image:
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(width), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


Found = tuple[Tensor, Tensor, Tensor]


def parts(found: Prediction) -> Found:
    return found.boxes_xyxy, torch.tensor(found.scores), torch.tensor(found.labels)


def share_found(expected: Found, found: Found, px: float, score: float) -> float:
    """Say how many of those expected are found within these distances, as a share."""
    same = (
        ((expected[0][:, None] - found[0]).abs().amax(-1) < px)
        & ((expected[1][:, None] - found[1]).abs() < score)
        & (expected[2][:, None] == found[2])
    )
    return same.any(1).double().mean().item() if len(expected[0]) else 1.0
