"""The objective: what counts, what does not, and that workers share one normaliser."""

import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glipv2.config import ModelConfig
from glipv2.image import Picture
from glipv2.losses.assign import assign, centerness_targets
from glipv2.losses.contrast import ContrastConfig
from glipv2.losses.criterion import LOSSES, Criterion, LossConfig
from glipv2.model.boxes import encode, iou_inclusive, make_anchors
from glipv2.model.glipv2 import GLIPv2
from glipv2.model.heads import Regions
from glipv2.sample import NOT_PREDICTED, Batch, GroundingSample, collate
from glipv2.text.tokenizer import CharSpan, WordPiece
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


@pytest.fixture
def full(tiny: ModelConfig) -> GLIPv2:
    """A model with every head."""
    torch.manual_seed(0)
    return GLIPv2(replace(tiny, contrast="paper", word_head=True)).eval()


FULL = LossConfig(inter=1.0, mlm=1.0)
TERMS = {
    "intra": {"loss_token"},
    "loc": {"loss_box", "loss_centerness"},
    "inter": {"loss_inter"},
    "mlm": {"loss_mlm"},
}


@pytest.mark.parametrize("term", TERMS)
def test_every_term_can_be_weighed_and_switched_off(
    full: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample], term: str
) -> None:
    batch = collate(samples[:2], tokenizer, 32, mask_words=0.5)
    outputs = full(batch.pixels, batch.ids, batch.mask, batch.masked_words != NOT_PREDICTED)
    whole = Criterion(full.cfg, FULL)(outputs, batch)
    assert whole.keys() == set(LOSSES)
    without = Criterion(full.cfg, replace(FULL, **{term: 0.0}))(outputs, batch)
    assert without == {name: loss for name, loss in whole.items() if name not in TERMS[term]}
    double = Criterion(full.cfg, replace(FULL, **{term: 2.0}))(outputs, batch)
    assert {name for name in LOSSES if not torch.equal(double[name], whole[name])} == TERMS[term]


def test_only_grounding_is_taught_unless_asked_for(
    full: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    values = backward(full, Criterion(full.cfg), collate(samples[:2], tokenizer, 32))
    assert values.keys() == {"loss", "loss_token", "loss_box", "loss_centerness"}


@pytest.mark.parametrize("losses", [LossConfig(inter=1.0), LossConfig(mlm=1.0)])
def test_a_term_whose_head_the_model_lacks_is_refused(tiny: ModelConfig, losses: LossConfig) -> None:
    with pytest.raises(ValueError, match="set the model's"):
        Criterion(tiny, losses)


@pytest.mark.parametrize("weights", [{"loc": -1.0}, {"inter": float("nan")}, {"intra": 0.0, "loc": 0.0}])
def test_weights_that_teach_nothing_or_its_opposite_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"give a weight|switch one of them on"):
        LossConfig(**weights)


def test_all_losses_are_defined_without_boxes_words_or_a_text(full: GLIPv2, tokenizer: WordPiece) -> None:
    batch = collate([make_sample("", [], []), make_sample(TEXT, [], [])], tokenizer, 32)
    values = backward(full, Criterion(full.cfg, FULL), batch)
    assert values["loss_token"] > 0
    assert values["loss_inter"] == values["loss_mlm"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in full.parameters())


def test_an_image_whose_text_is_nothing_but_padding_trains_with_the_others(
    full: GLIPv2, tokenizer: WordPiece, samples: list[GroundingSample]
) -> None:
    batch = collate(samples[:2], tokenizer, 32)
    batch.mask[0], batch.loss_mask[0], batch.targets[0].positive_map[:] = 0, False, 0
    values = backward(full, Criterion(full.cfg, FULL), batch)
    assert values["loss_inter"] > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in full.parameters())


@pytest.mark.parametrize("no_object_token", [False, True])
def test_background_is_taught_the_last_token_of_a_full_text_only_on_demand(
    tiny: ModelConfig, tokenizer: WordPiece, no_object_token: bool
) -> None:
    batch = collate([make_sample(TEXT, [(0, 10)], [])], tokenizer, 32)
    words = torch.nn.functional.pad(batch.targets[0].positive_map, (0, 256 - batch.ids.shape[1]))
    full = torch.ones_like(batch.ids[:, :1]).expand(1, 256)
    filled = replace(
        batch,
        ids=full,
        mask=full,
        loss_mask=full > 0,
        token_categories=-full,
        masked_words=NOT_PREDICTED * full,
        targets=(replace(batch.targets[0], positive_map=words),),
    )
    regions = make_regions(1, 256)
    criterion = Criterion(tiny, LossConfig(no_object_token=no_object_token))
    criterion.grounding(regions, filled)["loss_token"].backward()
    assert regions.alignment.grad is not None
    wanted = regions.alignment.grad[0, :, 255] < 0  # the loss falls where the logit rises
    background = criterion.match(regions.level_sizes, filled).owners[0] < 0
    assert torch.equal(wanted, background & no_object_token)


LONGER = "red square and blue disc and green triangle"
SETTINGS = {
    "paper": (FULL, "paper"),
    "reference": (replace(FULL, contrast=ContrastConfig(random_pads=True, max_regions=3)), "reference"),
    "without boxes": (FULL, "paper"),
    "without L_loc": (replace(FULL, loc=0.0), "paper"),
    "without L_intra": (replace(FULL, intra=0.0, mlm=0.0), "paper"),
}


@pytest.fixture(scope="module")
def in_two_processes(
    tiny: ModelConfig, tokenizer: WordPiece, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, list[Any]]]:
    """Per case what one worker finds in the whole batch, and what each of two finds in its share.

    The shares differ in everything that is normalised or padded: the second has no box in its first image, no masked
    word, and longer texts.
    """
    folder = tmp_path_factory.mktemp("workers")
    first = [_in_categories(make_sample(TEXT, [(0, 10), (15, 24)], [])), make_sample(TEXT, [(15, 24)], [(0, 10)])]
    second = [make_sample(LONGER, [], [(0, 10)]), _in_categories(make_sample(LONGER, [(15, 24)], []))]
    cases, alone = [], {}
    for name, (losses, variant) in SETTINGS.items():
        shares = [[_boxless(s) for s in share] for share in (first, second)] if "boxes" in name else [first, second]
        cfg = replace(tiny, contrast=variant, word_head=True)
        torch.manual_seed(0)
        model, criterion = GLIPv2(cfg).eval(), Criterion(cfg, losses)
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        batches = [_mask_words(collate(share, tokenizer, 32), number == 0) for number, share in enumerate(shares)]
        cases.append((cfg, losses, weights, batches))
        whole = collate([*shares[0], *shares[1]], tokenizer, 32)
        whole.masked_words[:2, : batches[0].ids.shape[1]] = batches[0].masked_words
        values = backward(model, criterion, whole)
        alone[name] = (values, {key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    torch.save(cases, folder / "cases.pt")
    _run_workers(folder)
    found = [torch.load(folder / f"found{rank}.pt", weights_only=False) for rank in range(2)]
    return {name: (alone[name], [one[number] for one in found]) for number, name in enumerate(SETTINGS)}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_workers_get_the_losses_of_one_with_the_whole_batch(
    in_two_processes: dict[str, tuple[Any, list[Any]]], name: str
) -> None:
    (expected, _), found = in_two_processes[name]
    # Distributed training averages the workers' gradients, so the mean of their losses is the objective.
    mean = {loss: sum(values[loss] for values, _ in found) / 2 for loss in expected}
    assert mean == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_workers_get_the_gradients_of_one_with_the_whole_batch(
    in_two_processes: dict[str, tuple[Any, list[Any]]], name: str
) -> None:
    (_, expected), found = in_two_processes[name]
    for _, gradients in found:
        assert gradients.keys() == expected.keys()
        for key, gradient in gradients.items():
            # atol: rounding in the gradients of attention keys' biases, which are zero
            torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=2e-6, msg=f"{name}: {key}")


def _in_categories(sample: GroundingSample) -> GroundingSample:
    """The same as detection: 'red square' is category 1, 'blue disc' category 2."""
    spans: dict[int, CharSpan] = {1: (0, 10), 2: (15, 24)}
    categories = [category for [span] in sample.tokens_positive for category, s in spans.items() if s == span]
    return replace(sample, categories=categories, category_spans={key: [span] for key, span in spans.items()})


def _mask_words(batch: Batch, some: bool) -> Batch:
    """Ask for two words of the first text and one of the second; the ids stay, which is a mask's third fate."""
    if some:
        for image, position in ((0, 1), (0, 5), (1, 2)):
            batch.masked_words[image, position] = batch.ids[image, position]
    return batch


def _run_workers(folder: Path) -> None:
    here = Path(__file__).resolve()
    environment = {**os.environ, "PYTHONPATH": str(here.parents[2])}
    command = [sys.executable, str(here.with_name("two_workers.py")), str(folder)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]


def _boxless(sample: GroundingSample) -> GroundingSample:
    return replace(sample, boxes_xyxy=torch.zeros(0, 4), tokens_positive=[], categories=[])
