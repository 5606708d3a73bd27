"""Detections of a random model: wherever they are, they obey the rules."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from glipv2.config import ModelConfig
from glipv2.inference.postprocess import PostprocessConfig, postprocess
from glipv2.inference.predictor import Predictor
from glipv2.model.glipv2 import GLIPv2
from glipv2.model.heads import Regions
from glipv2.text.prompts import Prompt, build_prompt
from glipv2.text.tokenizer import WordPiece

EVERYTHING = PostprocessConfig(min_class_score=0.0)


@pytest.fixture
def predictor(model: GLIPv2, tokenizer: WordPiece) -> Predictor:
    return Predictor(model, tokenizer, EVERYTHING)


def paint(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(width), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).convert(mode)


def test_boxes_lie_within_images_of_any_size(predictor: Predictor, prompt: Prompt) -> None:
    images = [paint(*size) for size in ((90, 40), (15, 8), (37, 111), (64, 64), (1, 300))]
    for image, found in zip(images, predictor.detect(images, prompt), strict=True):
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
        boxes = predictor.detect([paint(*size)], prompt)[0].boxes_xyxy
        torch.testing.assert_close(boxes[0], torch.tensor([0.0, 0.0, *size]), atol=1e-4, rtol=0)


def test_images_of_any_mode_are_read(predictor: Predictor, prompt: Prompt) -> None:
    found = predictor.detect([paint(64, 64, mode) for mode in ("L", "P", "RGBA", "CMYK", "1")], prompt)
    assert all(len(f.scores) > 0 for f in found)


def test_scores_fall_and_belong_to_categories_of_the_prompt(predictor: Predictor) -> None:
    found = predictor.detect([paint(64, 64)], build_prompt([(40, "red square"), (0, "green disc")]))[0]
    assert found.scores == sorted(found.scores, reverse=True)
    assert set(found.labels) == {0, 40}


def test_a_name_without_letters_never_fires(predictor: Predictor) -> None:
    # A real data set has a category called by two blanks.
    names = [(1, "  "), (2, "red square"), (3, "(none)"), (4, "blue disc"), (5, "")]
    assert set(predictor.detect([paint(64, 64)], build_prompt(names))[0].labels) == {2, 4}


def test_a_prompt_without_categories_finds_nothing(predictor: Predictor) -> None:
    found = predictor.detect([paint(64, 64)], build_prompt([]))[0]
    assert found.labels == found.scores == []
    assert found.boxes_xyxy.shape == (0, 4)


def test_a_name_cut_off_by_the_longest_prompt_never_fires(model: GLIPv2, tokenizer: WordPiece) -> None:
    short = WordPiece(tokenizer.vocabulary, max_tokens=8)  # [CLS] red . green . blue . [SEP]
    names = list(enumerate(["red", "green", "blue", "square", "disc"]))
    assert set(Predictor(model, short, EVERYTHING).detect([paint(64, 64)], build_prompt(names))[0].labels) == {0, 1, 2}


def test_an_image_is_found_the_same_alone_and_beside_its_equals(predictor: Predictor, prompt: Prompt) -> None:
    images = [paint(64, 48), paint(64, 48).transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    for alone, together in zip(
        [predictor.detect([image], prompt)[0] for image in images], predictor.detect(images, prompt), strict=True
    ):
        torch.testing.assert_close(alone.boxes_xyxy, together.boxes_xyxy, atol=1e-3, rtol=0)
        assert alone.labels == together.labels


def test_grounding_a_prompt_as_a_caption_finds_the_same(predictor: Predictor, prompt: Prompt) -> None:
    detected = predictor.detect([paint(64, 64)], prompt)[0]
    grounded = predictor.ground([paint(64, 64)], [prompt.text], [list(prompt.spans.values())])[0]
    torch.testing.assert_close(grounded.boxes_xyxy, detected.boxes_xyxy)
    assert [list(prompt.spans)[label] for label in grounded.labels] == detected.labels


def test_every_image_is_grounded_by_its_own_caption(predictor: Predictor) -> None:
    captions, spans = ["red square", "a blue disc and red"], [[(0, 10)], [(2, 11), (16, 19)]]
    first, second = predictor.ground([paint(64, 64), paint(64, 64)], captions, spans)
    assert set(first.labels) == {0}
    assert set(second.labels) == {0, 1}
    alone = predictor.ground([paint(64, 64)], captions[:1], spans[:1])[0]
    torch.testing.assert_close(torch.tensor(first.scores), torch.tensor(alone.scores), atol=1e-5, rtol=0)


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
