"""L_inter: who belongs to whom across images, who is compared at all, and that the sum is the paper's."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from glipv2.config import ModelConfig
from glipv2.image import Picture
from glipv2.losses.assign import assign
from glipv2.losses.contrast import ContrastConfig, as_reference, choose_regions, compare, inter_image_loss
from glipv2.model.boxes import make_anchors
from glipv2.model.heads import ContrastFeatures
from glipv2.sample import Batch, GroundingSample, collate
from glipv2.text.tokenizer import CharSpan, WordPiece

LEVELS = ((8, 8), (4, 4), (2, 2), (1, 1), (1, 1))
ANCHORS = 86
BOXES = torch.tensor([[8.0, 8.0, 40.0, 44.0], [30.0, 12.0, 60.0, 60.0], [2.0, 30.0, 30.0, 62.0]])
SQUARE, DISC, TRIANGLE = 1, 2, 3
PROMPT = "red square. green disc"  # tokens: [CLS] red square . green disc [SEP]
SPANS = {SQUARE: (0, 10), DISC: (12, 22)}
SENTENCE = "red square and blue triangle"  # tokens: [CLS] red square and blue triangle [SEP]


def picture() -> Picture:
    return Picture(pixels=torch.zeros(3, 64, 64), scale_xy=(1.0, 1.0), original_size=(64, 64))


def detection(*categories: int) -> GroundingSample:
    """An image with one box per category, and the prompt of two of them."""
    return GroundingSample(
        picture=picture(),
        text=PROMPT,
        boxes_xyxy=BOXES[: len(categories)],
        tokens_positive=[[SPANS[category]] for category in categories],
        categories=list(categories),
        category_spans={category: [span] for category, span in SPANS.items()},
    )


def sentence(*spans: CharSpan) -> GroundingSample:
    boxes = BOXES.flip(0)[: len(spans)]
    return GroundingSample(
        picture=picture(), text=SENTENCE, boxes_xyxy=boxes, tokens_positive=[[span] for span in spans]
    )


def owners_of(batch: Batch, tiny: ModelConfig) -> Tensor:
    anchors = make_anchors(LEVELS, tiny.strides, tiny.anchor_scale, torch.device("cpu"))
    return torch.stack([assign(anchors, [h * w for h, w in LEVELS], t.boxes_xyxy) for t in batch.targets])


def make_features(batch: Batch, seed: int = 0) -> ContrastFeatures:
    draw = torch.Generator().manual_seed(seed)
    images, tokens = batch.ids.shape
    regions, words = (
        torch.nn.functional.normalize(torch.randn(images, n, 4, generator=draw, dtype=torch.double), dim=-1)
        for n in (ANCHORS, tokens)
    )
    return ContrastFeatures(
        regions=regions.requires_grad_(),
        words=words.requires_grad_(),
        log_temperature=torch.tensor([-1.0], dtype=torch.double, requires_grad=True),
    )


def partners(
    samples: list[GroundingSample], tiny: ModelConfig, tokenizer: WordPiece
) -> dict[tuple[int, int], list[list[int]]]:
    """Per (image, box) the words it belongs to, as token positions image by image."""
    batch = collate(samples, tokenizer, 32)
    owners = owners_of(batch, tiny)
    chosen = choose_regions(owners, batch, ContrastConfig())
    by_region, by_word = compare(make_features(batch), owners, chosen, batch)
    assert torch.equal(by_region.positive, by_word.positive.T)
    keys = [(image, int(owners[image, anchor])) for image, anchors in enumerate(chosen) for anchor in anchors]
    lengths = batch.loss_mask.sum(1).tolist()
    return {
        key: [words.nonzero()[:, 0].tolist() for words in row.split(lengths)]
        for key, row in zip(keys, by_region.positive, strict=True)
    }


def loss_and_gradient(
    samples: list[GroundingSample], tiny: ModelConfig, tokenizer: WordPiece, cfg: ContrastConfig | None = None
) -> tuple[float, Tensor, Tensor, Batch]:
    """The loss, and how much it cares for every anchor and every token."""
    batch = collate(samples, tokenizer, 32)
    features = make_features(batch)
    loss = inter_image_loss(features, owners_of(batch, tiny), batch, cfg or ContrastConfig())
    loss.backward()
    assert features.regions.grad is not None
    assert features.words.grad is not None
    return loss.item(), features.regions.grad.abs().sum(2), features.words.grad.abs().sum(2), batch


def test_a_region_belongs_to_its_category_in_other_prompts_but_never_in_a_sentence(
    tiny: ModelConfig, tokenizer: WordPiece
) -> None:
    found = partners([detection(SQUARE, DISC), detection(DISC), sentence((0, 10))], tiny, tokenizer)
    assert found[0, 0] == [[1, 2], [1, 2], []]  # "red square" stands in the sentence too
    assert found[0, 1] == found[1, 0] == [[4, 5], [4, 5], []]


def test_a_region_of_a_sentence_belongs_to_its_own_phrase_alone(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    found = partners([sentence((0, 10), (15, 28)), sentence((0, 10)), detection(SQUARE)], tiny, tokenizer)
    assert found[0, 0] == [[1, 2], [], []]
    assert found[0, 1] == [[4, 5], [], []]


def test_the_loss_is_the_cross_entropy_in_both_directions_spelled_out(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    samples = [detection(SQUARE, DISC), sentence((0, 10)), detection(DISC)]
    batch = collate(samples, tokenizer, 32)
    features, owners = make_features(batch), owners_of(batch, tiny)
    belonging = partners(samples, tiny, tokenizer)
    regions = [(image, int(a)) for image in range(3) for a in (owners[image] >= 0).nonzero()[:, 0]]
    words = [(image, position) for image in range(3) for position in range(int(batch.mask[image].sum()))]
    similarity = torch.stack([torch.stack([features.regions[r] @ features.words[w] for w in words]) for r in regions])
    logits = similarity / torch.exp(features.log_temperature)
    together = torch.tensor(
        [[p in belonging[i, int(owners[i, a])][image] for image, p in words] for i, a in regions], dtype=torch.double
    )

    def direction(logits: Tensor, together: Tensor) -> Tensor:
        terms = [
            -sum(x.log_softmax(0)[partner] for partner in row.nonzero()[:, 0]) / row.sum()
            for x, row in zip(logits, together, strict=True)
            if row.any()
        ]
        return sum(terms, torch.zeros(())) / len(terms)

    expected = direction(logits, together) + direction(logits.T, together.T)
    loss = inter_image_loss(features, owners, batch, ContrastConfig())
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_its_gradient_is_that_of_finite_differences(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    batch = collate([detection(SQUARE, DISC), sentence((0, 10))], tokenizer, 32)
    owners, features = owners_of(batch, tiny), make_features(batch)

    def loss(regions: Tensor, words: Tensor, log_temperature: Tensor) -> Tensor:
        made = ContrastFeatures(regions=regions, words=words, log_temperature=log_temperature)
        return inter_image_loss(made, owners, batch, ContrastConfig(max_regions=3))

    inputs = (features.regions, features.words, features.log_temperature)
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_only_the_reference_loses_the_first_box(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    samples = [detection(SQUARE, DISC)]
    first = owners_of(collate(samples, tokenizer, 32), tiny)[0] == 0
    _, regions, _, _ = loss_and_gradient(samples, tiny, tokenizer)
    assert (regions[0, first] > 0).all()
    _, regions, _, _ = loss_and_gradient(samples, tiny, tokenizer, as_reference(ContrastConfig()))
    assert regions[0, first].abs().max() == 0


def test_an_image_with_one_box_contributes(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    loss, _, _, _ = loss_and_gradient([detection(SQUARE)], tiny, tokenizer)
    assert loss > 0


def test_words_of_an_unknown_phrase_are_nobodys_negatives(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    unsure = replace(sentence((0, 10)), unknown=[(15, 28)])
    _, _, words, _ = loss_and_gradient([unsure, detection(SQUARE)], tiny, tokenizer)
    assert (words[0] > 0).tolist() == [True, True, True, True, False, False, True]


def test_words_of_which_some_objects_have_boxes_keep_those(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    partly = replace(detection(SQUARE, DISC), incomplete=[SPANS[DISC]])
    _, _, words, batch = loss_and_gradient([partly], tiny, tokenizer)
    assert batch.loss_mask[0].tolist() == [True, True, True, True, False, False, True]
    assert (words[0] > 0).all()


def test_text_padding_takes_no_part(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    short = GroundingSample(picture=picture(), text="red", boxes_xyxy=BOXES[:1], tokens_positive=[[(0, 3)]])
    _, _, words, _ = loss_and_gradient([short, sentence((0, 10))], tiny, tokenizer)
    assert words[0, 3:].max() == 0


def test_the_order_of_images_changes_nothing(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    samples = [detection(SQUARE, DISC), sentence((0, 10)), detection(DISC)]
    batch, cfg = collate(samples, tokenizer, 32), ContrastConfig(max_regions=5)
    features = make_features(batch)
    turned = collate(samples[::-1], tokenizer, 32)
    mirrored = ContrastFeatures(
        regions=features.regions.flip(0), words=features.words.flip(0), log_temperature=features.log_temperature
    )
    expected = inter_image_loss(features, owners_of(batch, tiny), batch, cfg)
    torch.testing.assert_close(inter_image_loss(mirrored, owners_of(turned, tiny), turned, cfg), expected)


def test_at_most_so_many_regions_of_an_image_take_part(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    samples = [detection(SQUARE, DISC), sentence((0, 10))]
    _, regions, _, batch = loss_and_gradient(samples, tiny, tokenizer, ContrastConfig(max_regions=3))
    assert (owners_of(batch, tiny) >= 0).sum(1).min() > 3
    assert (regions > 0).sum(1).tolist() == [3, 3]


def test_which_regions_are_drawn_hangs_on_the_image_alone(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    both = collate([detection(DISC), detection(SQUARE, DISC)], tokenizer, 32)
    alone = collate([detection(SQUARE, DISC)], tokenizer, 32)
    cfg = ContrastConfig(max_regions=4)
    drawn = [choose_regions(owners_of(batch, tiny), batch, cfg)[-1] for batch in (both, alone)]
    assert torch.equal(*drawn)


def test_random_pads_are_further_negatives_of_the_words(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    samples = [detection(SQUARE, DISC), detection(SQUARE)]
    batch = collate(samples, tokenizer, 32)
    owners = owners_of(batch, tiny)
    counts = (owners >= 0).sum(1)
    padded = choose_regions(owners, batch, ContrastConfig(random_pads=True))
    assert [len(anchors) for anchors in padded] == [int(counts.max())] * 2
    assert (owners[1, padded[1]] >= 0).sum() == counts[1]
    without, *_ = loss_and_gradient(samples, tiny, tokenizer)
    assert loss_and_gradient(samples, tiny, tokenizer, ContrastConfig(random_pads=True))[0] > without


def test_half_and_normaliser_are_those_of_the_reference_on_demand(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    batch = collate([detection(SQUARE, DISC), sentence((0, 10))], tokenizer, 32)
    owners, features = owners_of(batch, tiny), make_features(batch)
    whole = inter_image_loss(features, owners, batch, ContrastConfig())
    half = inter_image_loss(features, owners, batch, ContrastConfig(half=True))
    torch.testing.assert_close(half, whole / 2)

    few = ContrastConfig(max_regions=2, per_positive=True)
    directions = compare(features, owners, choose_regions(owners, batch, few), batch)
    total = sum(direction.cross_entropy()[0] for direction in directions)
    torch.testing.assert_close(inter_image_loss(features, owners, batch, few), total / (owners >= 0).sum())


def test_similarities_are_sharpened_a_hundredfold_at_most(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    batch = collate([detection(SQUARE, DISC)], tokenizer, 32)
    features, owners = make_features(batch), owners_of(batch, tiny)
    frozen, floor = (
        inter_image_loss(
            replace(features, log_temperature=torch.tensor([temperature])), owners, batch, ContrastConfig()
        )
        for temperature in (-30.0, -torch.tensor(100.0).log().item())
    )
    torch.testing.assert_close(frozen, floor, rtol=1e-5, atol=0)


@pytest.mark.parametrize("start", [-4.7, -30.0])
def test_a_temperature_beyond_the_limit_comes_back_and_goes_no_further(
    tiny: ModelConfig, tokenizer: WordPiece, start: float
) -> None:
    batch = collate([detection(SQUARE, DISC)], tokenizer, 32)
    features, owners = make_features(batch), owners_of(batch, tiny)
    assert start < -torch.tensor(100.0).log()

    def gradient(sign: float) -> float:
        temperature = torch.tensor([start], requires_grad=True)
        made = replace(features, log_temperature=temperature)
        (sign * inter_image_loss(made, owners, batch, ContrastConfig())).backward()
        assert temperature.grad is not None
        return temperature.grad.item()

    assert gradient(1) < 0  # features at random are best not compared sharply: a step raises the temperature
    assert gradient(-1) == 0


def test_half_precision_does_not_blur_the_similarities(tiny: ModelConfig, tokenizer: WordPiece) -> None:
    batch = collate([detection(SQUARE, DISC)], tokenizer, 32)
    features, owners = make_features(batch), owners_of(batch, tiny)
    single = ContrastFeatures(
        regions=features.regions.float(), words=features.words.float(), log_temperature=torch.tensor([-4.0])
    )
    expected = inter_image_loss(single, owners, batch, ContrastConfig())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inter_image_loss(single, owners, batch, ContrastConfig()), expected)


@pytest.mark.parametrize("cfg", [ContrastConfig(), as_reference(ContrastConfig(random_pads=True))])
def test_a_batch_without_boxes_costs_nothing_and_has_a_gradient(
    cfg: ContrastConfig, tiny: ModelConfig, tokenizer: WordPiece
) -> None:
    loss, regions, words, _ = loss_and_gradient([sentence(), sentence()], tiny, tokenizer, cfg)
    assert loss == regions.abs().max() == words.abs().max() == 0


def test_texts_without_a_counted_token_cost_nothing_and_have_a_gradient(
    tiny: ModelConfig, tokenizer: WordPiece
) -> None:
    batch = collate([detection(SQUARE)], tokenizer, 32)
    target = replace(batch.targets[0], positive_map=torch.zeros_like(batch.targets[0].positive_map))
    blank = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask), targets=(target,))
    features = make_features(blank)
    loss = inter_image_loss(features, owners_of(blank, tiny), blank, ContrastConfig())
    loss.backward()
    assert loss == 0
    assert features.words.grad is not None
    assert features.words.grad.abs().max() == 0


def test_no_regions_at_all_are_refused_as_a_setting() -> None:
    with pytest.raises(ValueError, match="give at least 1"):
        ContrastConfig(max_regions=0)
