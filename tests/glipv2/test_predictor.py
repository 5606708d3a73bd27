"""Detections of a random model: wherever they are, they obey the rules."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from glipv2.checkpoint import save
from glipv2.config import ModelConfig
from glipv2.inference.postprocess import PostprocessConfig, postprocess, suppress
from glipv2.inference.predictor import Prediction, Predictor
from glipv2.inference.query import caption_prompt, make_queries
from glipv2.model.boxes import iou_inclusive
from glipv2.model.glipv2 import GLIPv2
from glipv2.model.heads import Regions
from glipv2.text.prompts import Prompt, build_prompt, chunk_prompts
from glipv2.text.tokenizer import WordPiece

CATEGORIES = {1: "red square", 2: "green disc", 3: "blue triangle"}
EVERYTHING = PostprocessConfig(min_class_score=0.0)


@pytest.fixture
def predictor(model: GLIPv2, tokenizer: WordPiece) -> Predictor:
    return Predictor(model, tokenizer, EVERYTHING)


def paint(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(width), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).convert(mode)


def test_boxes_lie_within_images_of_any_size(predictor: Predictor, prompt: Prompt) -> None:
    images = [paint(*size) for size in ((90, 40), (15, 8), (37, 111), (64, 64), (1, 300))]
    for image, found in zip(images, predictor.detect_prompt(images, prompt), strict=True):
        x1, y1, x2, y2 = found.boxes_xyxy.unbind(1)
        assert 0 < len(found.scores) <= EVERYTHING.max_detections
        assert x1.min() >= 0
        assert y1.min() >= 0
        assert x2.max() <= image.width
        assert y2.max() <= image.height
        assert (x1 < x2).all()
        assert (y1 < y2).all()


def test_a_box_around_the_whole_picture_is_one_around_the_whole_image(predictor: Predictor, prompt: Prompt) -> None:
    everywhere = torch.tensor([0.0, 0.0, 20.0, 20.0])  # exp(20 / 5) anchors wide
    box = predictor.model.head.box
    box.load_state_dict({"weight": torch.zeros_like(box.weight), "bias": everywhere})
    # The sides of the first two are resized by slightly different ratios.
    for size in ((15, 8), (8, 15), (64, 64)):
        boxes = predictor.detect_prompt([paint(*size)], prompt)[0].boxes_xyxy
        torch.testing.assert_close(boxes[0], torch.tensor([0.0, 0.0, *size]), atol=1e-4, rtol=0)


def test_scores_fall_and_belong_to_categories_of_the_prompt(predictor: Predictor) -> None:
    found = predictor.detect_prompt([paint(64, 64)], build_prompt([(40, "red square"), (0, "green disc")]))[0]
    assert found.scores == sorted(found.scores, reverse=True)
    assert set(found.labels) == {0, 40}


def test_an_image_is_found_the_same_alone_and_beside_others_of_all_sizes(predictor: Predictor, prompt: Prompt) -> None:
    images = [paint(*size) for size in ((64, 48), (48, 64), (60, 45), (64, 20), (15, 8), (64, 50))]
    together = predictor.detect_prompt(images, prompt)
    for image, found in zip(images, together, strict=True):
        assert_same(found, predictor.detect_prompt([image], prompt)[0])


def test_permuting_a_batch_permutes_the_results(predictor: Predictor) -> None:
    images = [paint(*size) for size in ((64, 48), (48, 64), (60, 45), (64, 20))]
    captions = ["a red square", "green disc and blue triangle", "a disc", "red and blue and green"]
    spans = [[(2, 12)], [(0, 10), (15, 28)], [(2, 6)], [(0, 3), (8, 12), (17, 22)]]
    order = [2, 0, 3, 1]
    straight = predictor.ground(images, captions, spans)
    permuted = predictor.ground(*([given[i] for i in order] for given in (images, captions, spans)))
    for i, found in zip(order, permuted, strict=True):
        assert_same(found, straight[i])


def test_permuting_categories_permutes_labels_if_each_has_its_own_prompt(predictor: Predictor) -> None:
    names = list(CATEGORIES.values())
    straight = predictor.detect([paint(64, 64)], names, max_categories=1)[0]
    permuted = predictor.detect([paint(64, 64)], names[::-1], max_categories=1)[0]
    assert_same(permuted, replace(straight, labels=[2 - label for label in straight.labels]))


def test_categories_of_one_prompt_see_each_other(predictor: Predictor) -> None:
    # What holds of permutations holds across prompts only: within one the text is another text.
    names = list(CATEGORIES.values())
    straight, permuted = (predictor.detect([paint(64, 64)], order)[0] for order in (names, names[::-1]))
    assert straight.scores != pytest.approx(permuted.scores, abs=1e-6)


def test_three_hundred_categories_score_as_each_does_in_its_own_prompt(model: GLIPv2, tokenizer: WordPiece) -> None:
    names = {1000 + i: f"{['red', 'green', 'blue'][i % 3]} {i}" for i in range(300)}
    everything, tokenizer = replace(EVERYTHING, max_detections=10**6), WordPiece(tokenizer.vocabulary, max_tokens=96)
    predictor = Predictor(model, tokenizer, everything)
    found = predictor.detect([paint(64, 64)], names)[0]
    prompts = chunk_prompts(list(names.items()), tokenizer)
    assert len(prompts) > 10
    alone = [predictor.detect_prompt([paint(64, 64)], prompt)[0] for prompt in prompts]
    for label in names:
        [one] = [part for part in alone if label in part.labels]
        assert _scores(found, label) == pytest.approx(_scores(one, label))
    assert set(found.labels) == set(names)
    best = Predictor(model, tokenizer, EVERYTHING).detect([paint(64, 64)], names)[0]
    assert best.scores == found.scores[: EVERYTHING.max_detections]
    assert best.phrases == [names[label] for label in best.labels]


def test_images_are_encoded_once_and_texts_once_for_all_calls(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = {"encode_image": 0, "encode_text": 0}
    for name in encoded:
        monkeypatch.setattr(predictor.model, name, _counting(getattr(predictor.model, name), encoded, name))
    names, images = [f"red {i}" for i in range(20)], [paint(64, 48), paint(64, 20), paint(60, 45)]
    predictor.detect(images, names)
    assert encoded["encode_image"] == 2  # one per size in the network
    texts = encoded["encode_text"]
    assert texts == len(chunk_prompts(list(enumerate(names)), predictor.tokenizer))
    predictor.detect(images, names)
    assert encoded["encode_text"] == texts


def test_a_forward_pass_holds_no_more_images_than_allowed(
    model: GLIPv2, tokenizer: WordPiece, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda pixels: sizes.append(len(pixels)) or encode(pixels))
    found = Predictor(model, tokenizer, EVERYTHING, batch_size=2).detect([paint(64, 64)] * 5, ["red"])
    assert sizes == [2, 2, 1]
    assert len(found) == 5


def test_remembered_texts_are_bounded(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glipv2.inference.predictor.CACHED_TEXTS", 3)
    first = predictor.detect([paint(64, 64)], [f"red {i}" for i in range(5)], max_categories=1)[0]
    assert len(predictor._texts) == 3
    assert_same(predictor.detect([paint(64, 64)], [f"red {i}" for i in range(5)], max_categories=1)[0], first)


def test_bfloat16_finds_what_single_precision_finds(model: GLIPv2, tokenizer: WordPiece) -> None:
    every_anchor = PostprocessConfig(min_class_score=0.0, nms_iou=1.0, max_detections=10**6)
    images, names = [paint(64, 64), paint(48, 64)], list(CATEGORIES.values())
    single, half = (Predictor(model, tokenizer, every_anchor, bf16=on).detect(images, names) for on in (False, True))
    for exact, rough in zip(single, half, strict=True):
        assert len(exact.scores) == len(rough.scores)
        assert exact.scores != rough.scores
        for label in range(len(names)):
            mine, others = ([i for i, owner in enumerate(p.labels) if owner == label] for p in (exact, rough))
            distance = (exact.boxes_xyxy[mine, None] - rough.boxes_xyxy[others]).abs().amax(2)
            closest = distance.min(1)
            scores = torch.tensor(exact.scores)[mine] - torch.tensor(rough.scores)[others][closest.indices]
            assert closest.values.max() < 0.5  # of 64 px
            assert scores.abs().max() < 0.015


def test_grounding_a_prompt_as_a_caption_finds_the_same(predictor: Predictor, prompt: Prompt) -> None:
    detected = predictor.detect([paint(64, 64)], CATEGORIES)[0]
    grounded = predictor.ground([paint(64, 64)], [prompt.text], [list(prompt.spans.values())])[0]
    torch.testing.assert_close(grounded.boxes_xyxy, detected.boxes_xyxy)
    assert grounded.phrases == detected.phrases
    assert [list(prompt.spans)[label] for label in grounded.labels] == detected.labels


def test_every_image_is_grounded_by_its_own_caption(predictor: Predictor) -> None:
    captions, spans = ["red square", "a blue disc and red"], [[(0, 10)], [(2, 11), (16, 19)]]
    first, second = predictor.ground([paint(64, 64), paint(64, 64)], captions, spans)
    assert set(first.labels) == {0}
    assert set(second.labels) == {0, 1}
    assert_same(first, predictor.ground([paint(64, 64)], captions[:1], spans[:1])[0])


def test_every_box_says_its_phrase_and_where_it_stands(predictor: Predictor) -> None:
    caption = "A red square left of a red square, and a disc."
    found = predictor.ground([paint(64, 64)], [caption])[0]
    assert {(label, span) for label, span in zip(found.labels, found.spans, strict=True)} == {
        (0, (2, 12)),
        (1, (23, 33)),
        (2, (41, 45)),
    }
    assert all(caption[slice(*span)] == said for span, said in zip(found.spans, found.phrases, strict=True))


def test_neighbouring_and_repeated_phrases_keep_their_own_tokens(tokenizer: WordPiece) -> None:
    caption = "red square green disc red square redsquare"  # the last is no word: spelled in pieces
    spans = [(0, 10), (11, 21), (22, 32), (33, 42)]
    [query] = make_queries([caption_prompt(caption, spans)], tokenizer)
    tokens = list(query.tokens.values())
    assert tokens[:3] == [[1, 2], [3, 4], [5, 6]]
    assert tokens[3] == list(range(7, len(query.encoding.ids) - 1))


def test_a_phrase_is_scored_by_its_own_tokens_only(predictor: Predictor) -> None:
    caption, spans = "red square green disc", [(0, 10), (11, 21), (4, 16)]
    found = predictor.ground([paint(64, 64)], [caption], [spans])[0]
    alone = [predictor.ground([paint(64, 64)], [caption], [[span]])[0] for span in spans]
    for label, part in enumerate(alone):
        scores = _scores(found, label)
        assert scores == pytest.approx(part.scores[: len(scores)], abs=1e-6)


def test_phrases_beyond_the_longest_text_are_reported(predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    caption = "red " * 29 + "blue disc green disc"  # 30 words fit: the cut runs through the blue disc
    spans = [(0, 3), (116, 125), (126, 136)]
    found = predictor.ground([paint(64, 64)], [caption], [spans])[0]
    assert set(found.labels) == {0}
    assert found.unseen == [1, 2]
    assert "labels [1, 2]" in caplog.text


def test_names_that_cannot_be_looked_for_are_reported(predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    # A real data set has a category called by two blanks.
    names = {1: "  ", 2: "red square", 3: "(none)", 4: "blue disc", 5: ""}
    found = predictor.detect([paint(64, 64)], names)[0]
    assert set(found.labels) == {2, 4}
    assert found.unseen == [1, 3, 5]
    assert "labels [1, 3, 5]" in caplog.text


def test_a_name_cut_off_by_the_longest_prompt_is_reported(model: GLIPv2, tokenizer: WordPiece) -> None:
    short = WordPiece(tokenizer.vocabulary, max_tokens=8)  # [CLS] red . green . blue . [SEP]
    names = list(enumerate(["red", "green", "blue", "square", "disc"]))
    found = Predictor(model, short, EVERYTHING).detect_prompt([paint(64, 64)], build_prompt(names))[0]
    assert set(found.labels) == {0, 1, 2}
    assert found.unseen == [3, 4]


def test_a_broken_network_is_told_from_one_that_finds_nothing(predictor: Predictor) -> None:
    images = [paint(64, 64), paint(90, 40)]
    assert [found.finite for found in predictor.detect(images, ["red"])] == [True, True]
    torch.nn.init.constant_(predictor.model.head.bias, float("nan"))
    assert [(found.scores, found.finite) for found in predictor.detect(images, ["red"])] == [([], False)] * 2


def test_a_model_folder_is_all_it_takes(model: GLIPv2, tokenizer: WordPiece, tmp_path: Path) -> None:
    save(model, tokenizer, tmp_path)
    loaded = Predictor.load(tmp_path, cfg=EVERYTHING).detect([paint(64, 64)], ["red"])[0]
    assert_same(loaded, Predictor(model, tokenizer, EVERYTHING).detect([paint(64, 64)], ["red"])[0])


def assert_same(ours: Prediction, theirs: Prediction) -> None:
    assert ours.labels == theirs.labels
    assert ours.scores == pytest.approx(theirs.scores, abs=1e-5)
    torch.testing.assert_close(ours.boxes_xyxy, theirs.boxes_xyxy, atol=1e-3, rtol=0)


def _scores(found: Prediction, label: int) -> list[float]:
    return [score for score, owner in zip(found.scores, found.labels, strict=True) if owner == label]


def _counting(function: Callable[..., Tensor], counts: dict[str, int], name: str) -> Callable[..., Tensor]:
    def counted(*arguments: Tensor) -> Tensor:
        counts[name] += 1
        return function(*arguments)

    return counted


def test_suppression_agrees_with_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    for step in (1.0, 0.25):  # whole pixels make overlaps of exactly 0.6, which suppress nothing
        corner, side = (torch.randint(0, 40, (2, 150, 2), generator=generator) * step).unbind()
        boxes, labels = torch.cat([corner, corner + side], 1), torch.randint(0, 3, (150,), generator=generator)
        overlaps = (iou_inclusive(boxes, boxes) > 0.6) & (labels[:, None] == labels)
        kept: list[int] = []
        for index in range(len(boxes)):
            if not overlaps[index, kept].any():
                kept.append(index)
        assert suppress(boxes, labels, 0.6).tolist() == kept
    assert suppress(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 0.6).tolist() == []


def make_regions(alignment: Tensor, deltas: Tensor, centerness: float) -> Regions:
    """Regions of a picture of 64 px; a row of ``alignment`` belongs to an anchor of 32 px on the finest level."""
    return Regions(
        alignment=alignment[None],
        box_deltas=deltas[None],
        centerness=torch.full((1, len(alignment)), centerness),
        text=torch.zeros(1, alignment.shape[1], 1),
        level_sizes=((8, 8), (4, 4), (2, 2), (1, 1), (1, 1)),
    )


def test_overlapping_boxes_of_one_label_are_suppressed_and_of_two_are_not(tiny: ModelConfig) -> None:
    alignment, deltas = torch.full((86, 2), -20.0), torch.zeros(86, 4)
    deltas[28, 0] = -10 * 8 / 32  # one stride to the left, in anchor widths: the box of anchor 27
    alignment[27:29, 0] = torch.tensor([2.0, 1.0])
    alignment[28, 1] = 3.0
    regions = make_regions(alignment, deltas, centerness=20.0)
    found = postprocess(regions, [[[0], [1]]], [(64, 64)], tiny, PostprocessConfig())[0]
    assert found.labels.tolist() == [1, 0]
    torch.testing.assert_close(found.boxes_xyxy[0], found.boxes_xyxy[1])
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0]).sigmoid().sqrt(), atol=1e-5, rtol=0)


def test_a_label_is_scored_by_the_mean_of_its_tokens_and_the_centerness(tiny: ModelConfig) -> None:
    alignment = torch.full((86, 3), -20.0)
    alignment[27] = torch.tensor([2.0, -2.0, 0.0])
    regions = make_regions(alignment, torch.zeros(86, 4), centerness=0.0)
    found = postprocess(regions, [[[0, 1], [2]]], [(64, 64)], tiny, PostprocessConfig())[0]
    # sigmoid(2) and sigmoid(-2) average to one half, as does sigmoid(0); centerness is one half as well.
    assert found.scores.tolist() == pytest.approx([0.5, 0.5])


def test_candidates_are_chosen_before_centerness_counts(tiny: ModelConfig) -> None:
    alignment = torch.full((86, 1), -20.0)
    alignment[27] = torch.tensor(0.06).logit()
    regions = make_regions(alignment, torch.zeros(86, 4), centerness=-3.0)
    found = postprocess(regions, [[[0]]], [(64, 64)], tiny, PostprocessConfig())[0]
    assert found.scores.tolist() == pytest.approx([(0.06 * 0.047426) ** 0.5], rel=1e-3)
