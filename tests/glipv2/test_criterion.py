"""The objective: what counts, what does not, and that workers share one normaliser."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from glipv2.config import ModelConfig
from glipv2.image import Picture
from glipv2.losses.assign import assign, centerness_targets
from glipv2.losses.criterion import Criterion
from glipv2.model.boxes import encode, iou_inclusive, make_anchors
from glipv2.model.glipv2 import GLIPv2
from glipv2.model.heads import Regions
from glipv2.sample import GroundingSample, collate
from glipv2.text.tokenizer import WordPiece
from glipv2.train import backward

LEVELS = ((8, 8), (4, 4), (2, 2), (1, 1), (1, 1))
ANCHORS = 86
CPU = torch.device("cpu")


def make_regions(images: int, tokens: int, seed: int = 0) -> Regions:
    draw = torch.Generator().manual_seed(seed)
    return Regions(
        alignment=torch.randn(images, ANCHORS, tokens, generator=draw).requires_grad_(),
        box_deltas=torch.randn(images, ANCHORS, 4, generator=draw).requires_grad_(),
        centerness=torch.randn(images, ANCHORS, generator=draw).requires_grad_(),
        text=torch.zeros(images, tokens, 1),
        level_sizes=LEVELS,
    )


def make_sample(text: str, spans: list[tuple[int, int]], unknown: list[tuple[int, int]]) -> GroundingSample:
    """An image of 64 px with one box per span."""
    boxes = torch.tensor([[8.0, 8.0, 40.0, 44.0], [30.0, 12.0, 60.0, 60.0]])[: len(spans)]
    picture = Picture(pixels=torch.zeros(3, 64, 64), scale_xy=(1.0, 1.0), original_size=(64, 64))
    tokens_positive = [[span] for span in spans]
    return GroundingSample(
        picture=picture, text=text, boxes_xyxy=boxes, tokens_positive=tokens_positive, unknown=unknown
    )


def token_gradient(sample: GroundingSample, tiny: ModelConfig, tokenizer: WordPiece) -> Tensor:
    """Per token, how much the loss cares for its alignment."""
    batch = collate([sample], tokenizer, 32)
    regions = make_regions(1, batch.ids.shape[1])
    torch.stack(list(Criterion(tiny).grounding(regions, batch).values())).sum().backward()
    assert regions.alignment.grad is not None
    return regions.alignment.grad[0].abs().sum(0)


TEXT = "red square and blue disc"  # tokens: [CLS] red square and blue disc [SEP]


def test_words_of_an_unknown_phrase_are_not_taught(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    gradient = token_gradient(make_sample(TEXT, [(0, 10)], unknown=[(15, 24)]), tiny, tokenizer)
    assert (gradient > 0).tolist() == [True, True, True, True, False, False, True]


def test_words_of_a_phrase_known_to_be_absent_are_taught(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    gradient = token_gradient(make_sample(TEXT, [(0, 10)], unknown=[]), tiny, tokenizer)
    assert (gradient > 0).all()


def test_a_word_with_a_box_is_taught_even_within_an_unknown_phrase(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    gradient = token_gradient(make_sample(TEXT, [(4, 10)], unknown=[(0, 10)]), tiny, tokenizer)
    assert (gradient > 0).tolist() == [True, False, True, True, True, True, True]


def test_text_padding_is_not_taught(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    batch = collate([make_sample(TEXT, [(0, 10)], []), make_sample("red", [(0, 3)], [])], tokenizer, 32)
    regions = make_regions(2, batch.ids.shape[1])
    torch.stack(list(Criterion(tiny).grounding(regions, batch).values())).sum().backward()
    assert regions.alignment.grad is not None
    assert regions.alignment.grad[1, :, 3:].abs().max() == 0


def test_images_without_boxes_train_with_the_others(
    model: GLIPv2, tiny: ModelConfig, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    losses = backward(model, Criterion(tiny), collate([_boxless(samples[0]), samples[1]], tokenizer, 32))
    assert min(losses.values()) > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_batch_without_any_box_still_teaches_what_is_absent(
    model: GLIPv2, tiny: ModelConfig, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    losses = backward(model, Criterion(tiny), collate([_boxless(s) for s in samples[:2]], tokenizer, 32))
    assert losses["loss_token"] > 0
    assert losses["loss_box"] == losses["loss_centerness"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_perfect_regions_cost_next_to_nothing(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    batch = collate([make_sample(TEXT, [(0, 10), (15, 24)], [])], tokenizer, 32)
    target = batch.targets[0]
    anchors = make_anchors(LEVELS, tiny.strides, tiny.anchor_scale, CPU)
    owner = assign(anchors, [h * w for h, w in LEVELS], target.boxes_xyxy)
    positive = owner >= 0
    alignment = torch.where(positive[:, None], target.positive_map[owner], 0.0) * 40 - 20
    central = centerness_targets(anchors, target.boxes_xyxy[owner]).clamp(1e-4, 1 - 1e-4)
    regions = Regions(
        alignment=alignment[None],
        box_deltas=encode(target.boxes_xyxy[owner], anchors)[None],
        centerness=torch.where(positive, central.logit(), 0.0)[None],
        text=torch.zeros(1, alignment.shape[1], 1),
        level_sizes=LEVELS,
    )
    losses = Criterion(tiny).grounding(regions, batch)
    assert losses["loss_token"] < 1e-6
    assert losses["loss_box"] < 1e-4
    # Its targets lie between 0 and 1, where the cross entropy cannot reach 0: compare with the entropy itself.
    c = central[positive]
    entropy = -(c * c.log() + (1 - c) * (1 - c).log()).mean()
    torch.testing.assert_close(losses["loss_centerness"], entropy, atol=1e-3, rtol=0)


def test_a_contested_anchor_goes_to_the_box_it_overlaps_most(tiny: ModelConfig) -> None:
    anchors, lengths = make_anchors(LEVELS, tiny.strides, tiny.anchor_scale, CPU), [h * w for h, w in LEVELS]
    exact, loose = anchors[27], anchors[27] + 4
    assert assign(anchors, lengths, loose[None])[27] == 0
    both = assign(anchors, lengths, torch.stack([loose, exact]))
    assert both[27] == 1
    assert set(both.tolist()) == {-1, 0, 1}


def test_a_box_gets_the_anchors_the_rule_of_atss_gives_it(tiny: ModelConfig) -> None:
    anchors, lengths = make_anchors(LEVELS, tiny.strides, tiny.anchor_scale, CPU), [h * w for h, w in LEVELS]
    corners = torch.rand(300, 2, 2, generator=torch.Generator().manual_seed(0)) * 64
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 4], 1)
    for box in boxes:
        owner = assign(anchors, lengths, box[None])
        assert (owner == 0).nonzero()[:, 0].tolist() == _atss(anchors, lengths, box)


def _atss(anchors: Tensor, lengths: list[int], box: Tensor) -> list[int]:
    """The rule for a single box, spelled out: nine nearest per level, overlap over mean plus deviation, inside."""
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    distances = (centres - (box[:2] + box[2:]) / 2).norm(dim=1).tolist()
    starts = [sum(lengths[:level]) for level in range(len(lengths))]
    candidates = [
        index
        for start, length in zip(starts, lengths, strict=True)
        for index in sorted(range(start, start + length), key=distances.__getitem__)[:9]
    ]
    overlaps = dict(zip(candidates, iou_inclusive(anchors[candidates], box[None])[:, 0].tolist(), strict=True))
    threshold = statistics.mean(overlaps.values()) + statistics.stdev(overlaps.values())
    return sorted(
        index
        for index in candidates
        if overlaps[index] >= threshold
        and min((centres[index] - box[:2]).min(), (box[2:] - centres[index]).min()) > 0.01
    )


def test_without_boxes_everything_is_background(tiny: ModelConfig) -> None:
    anchors = make_anchors(LEVELS, tiny.strides, tiny.anchor_scale, CPU)
    assert (assign(anchors, [h * w for h, w in LEVELS], torch.zeros(0, 4)) == -1).all()


def test_half_precision_gives_nearly_the_same_losses(
    model: GLIPv2, tiny: ModelConfig, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    batch = collate(samples[:2], tokenizer, 32)
    expected = backward(model, Criterion(tiny), batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert backward(model, Criterion(tiny), batch) == pytest.approx(expected, rel=0.05)


def test_a_loss_that_is_not_finite_is_an_error(
    model: GLIPv2, tiny: ModelConfig, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    batch = collate(samples[:1], tokenizer, 32)
    broken = replace(batch, pixels=batch.pixels * float("nan"))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        backward(model, Criterion(tiny), broken)


def test_two_workers_get_the_loss_of_one_with_the_whole_batch(
    tiny: ModelConfig, tokenizer: WordPiece, tmp_path: Path
) -> None:
    # The second worker has no box at all: normalisers of its own would weigh the first one's boxes differently.
    shares = [[make_sample(TEXT, [(0, 10), (15, 24)], [])] * 2, [make_sample(TEXT, [], [(0, 10)])] * 2]
    batches = [collate(share, tokenizer, 32) for share in shares]
    whole = collate([sample for share in shares for sample in share], tokenizer, 32)
    regions = make_regions(4, whole.ids.shape[1])
    expected = Criterion(tiny).grounding(regions, whole)
    for rank, batch in enumerate(batches):
        torch.save((tiny, _part(regions, slice(2 * rank, 2 * rank + 2)), batch), tmp_path / f"share{rank}.pt")

    found = _run_workers(tmp_path)
    for name, loss in expected.items():
        # Distributed training averages the workers' gradients, so the mean of their losses is the objective.
        assert sum(losses[name] for losses in found) / 2 == pytest.approx(loss.item(), rel=1e-5), name


def _run_workers(folder: Path) -> list[dict[str, float]]:
    here = Path(__file__).resolve()
    environment = {**os.environ, "PYTHONPATH": str(here.parents[2])}
    command = [sys.executable, str(here.with_name("two_workers.py")), str(folder)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    return [json.loads((folder / f"losses{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def _part(regions: Regions, images: slice) -> Regions:
    return Regions(
        alignment=regions.alignment[images].detach(),
        box_deltas=regions.box_deltas[images].detach(),
        centerness=regions.centerness[images].detach(),
        text=regions.text[images],
        level_sizes=regions.level_sizes,
    )


def _boxless(sample: GroundingSample) -> GroundingSample:
    return replace(sample, boxes_xyxy=torch.zeros(0, 4), tokens_positive=[])
