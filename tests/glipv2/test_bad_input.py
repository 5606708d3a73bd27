"""Whatever is given: a defined result, or one clear error that says what was given and what to give."""

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from glipv2.config import ModelConfig
from glipv2.image import Picture
from glipv2.inference.postprocess import PostprocessConfig
from glipv2.inference.predictor import Prediction, Predictor
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import GroundingSample, collate
from glipv2.text.tokenizer import WordPiece

PICTURE = Image.effect_noise((64, 48), 90)
NAMES = ["red square", "green disc"]


@pytest.fixture
def predictor(model: GLIPv2, tokenizer: WordPiece) -> Predictor:
    return Predictor(model, tokenizer, PostprocessConfig(min_class_score=0.0))


def is_empty(found: Prediction) -> bool:
    return found.boxes_xyxy.shape == (0, 4) and found.labels == found.scores == found.phrases == found.spans == []


def truncated(suffix: str) -> Image.Image:
    whole = io.BytesIO()
    PICTURE.save(whole, suffix)
    return Image.open(io.BytesIO(whole.getvalue()[: len(whole.getvalue()) // 2]))


def test_no_images_give_no_predictions(predictor: Predictor) -> None:
    assert predictor.detect([], NAMES) == []
    assert predictor.ground([], []) == []


@pytest.mark.parametrize("names", [[], [""], ["  ", "(none)"]])
def test_without_a_name_nothing_is_found(predictor: Predictor, names: list[str]) -> None:
    [found] = predictor.detect([PICTURE], names)
    assert is_empty(found)
    assert found.unseen == list(range(len(names)))


def test_a_name_given_twice_is_two_labels(predictor: Predictor) -> None:
    [found] = predictor.detect([PICTURE], ["red", "green", "red"])
    assert set(found.labels) == {0, 1, 2}
    assert set(found.phrases) == {"red", "green"}


def test_names_of_any_characters_are_looked_for(predictor: Predictor) -> None:
    # Unknown letters are one unknown token each; a name longer than a whole prompt is looked for by its beginning.
    [found] = predictor.detect([PICTURE], ["\u5317\u4eac", "caf\u00e9\u0301", "\U0001f600", "red. green", "red " * 99])
    assert set(found.labels) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("caption", ["", "   ", "of", "...", "\u200b"])
def test_a_caption_without_phrases_has_no_boxes(predictor: Predictor, caption: str) -> None:
    assert is_empty(predictor.ground([PICTURE], [caption])[0])


def test_captions_with_and_without_phrases_share_a_batch(predictor: Predictor) -> None:
    nothing, something = predictor.ground([PICTURE, PICTURE], ["", "a red square"])
    assert is_empty(nothing)
    assert set(something.phrases) == {"red square"}


def test_a_span_of_blanks_is_reported_as_unseen(predictor: Predictor) -> None:
    [found] = predictor.ground([PICTURE], ["red   square"], [[(3, 6), (0, 3)]])
    assert found.unseen == [0]
    assert set(found.labels) == {1}


@pytest.mark.parametrize("span", [(0, 0), (3, 2), (-1, 3), (0, 99)])
def test_a_span_outside_its_caption_is_refused(predictor: Predictor, span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"span .* is not within the 10 characters .* 'red square'; give \[begin"):
        predictor.ground([PICTURE], ["red square"], [[span]])


def test_lists_of_different_lengths_are_refused(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="2 images, but 1 captions; give one caption for each image"):
        predictor.ground([PICTURE, PICTURE], ["red"])
    with pytest.raises(ValueError, match="1 captions, but 2 lists of spans; give one list for each"):
        predictor.ground([PICTURE], ["red"], [[], []])


def test_a_single_text_is_no_list_of_texts(predictor: Predictor) -> None:
    with pytest.raises(TypeError, match="categories is the text 'cat'; give a list"):
        predictor.detect([PICTURE], "cat")
    with pytest.raises(TypeError, match="captions is the text 'a cat'; give a list"):
        predictor.ground([PICTURE], "a cat")


@pytest.mark.parametrize("names", [["red square", ...], ["red square", 3], {4: None}])
def test_a_name_that_is_no_text_is_refused(predictor: Predictor, names: Any) -> None:
    with pytest.raises(TypeError, match=r"categories\[\d\] is .*; give a text"):
        predictor.detect([PICTURE], names)


def test_a_single_picture_is_no_list_of_pictures(predictor: Predictor) -> None:
    for ask in (lambda one: predictor.detect(one, NAMES), lambda one: predictor.ground(one, ["a disc"])):
        with pytest.raises(TypeError, match="images is one picture; give a list"):
            ask(PICTURE)


@pytest.mark.parametrize("wrong", [{"min_class_score": -1}, {"nms_iou": 1.5}, {"max_detections": 0}])
def test_impossible_thresholds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give (a number between 0 and 1|at least 1)"):
        PostprocessConfig(**wrong)


def test_boxes_found_may_be_changed(predictor: Predictor) -> None:
    boxes = predictor.detect([PICTURE], NAMES)[0].boxes_xyxy
    boxes[:, 2:] -= boxes[:, :2]
    assert (boxes[:, 2:] > 0).all()


def test_what_is_no_picture_is_refused(predictor: Predictor) -> None:
    with pytest.raises(TypeError, match=r"images\[1\] is a str; give PIL images"):
        predictor.detect([PICTURE, "photo.jpg"], NAMES)  # type: ignore[list-item]


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "GIF", "TIFF"])
def test_a_file_that_ends_too_early_is_refused(predictor: Predictor, suffix: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read to its end .*; fetch it again, or leave it out"):
        predictor.detect([truncated(suffix)], NAMES)


@pytest.mark.parametrize("size", [(0, 5), (0, 0)])
def test_an_image_without_pixels_is_refused(predictor: Predictor, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"an image is 0 x {size[1]} px, at least 1 x 1 is needed; leave it out"):
        predictor.detect([Image.new("RGB", size)], NAMES)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("pad_multiple_px", [1, 32])
def test_images_of_extreme_shape_have_boxes_within(
    tiny: ModelConfig, model: GLIPv2, tokenizer: WordPiece, size: tuple[int, int], pad_multiple_px: int
) -> None:
    other = GLIPv2(replace(tiny, pad_multiple_px=pad_multiple_px))
    other.load_state_dict(model.state_dict())
    predictor = Predictor(other, tokenizer, PostprocessConfig(min_class_score=0.0))
    [found] = predictor.detect([Image.new("RGB", size)], NAMES)
    assert len(found.scores) > 0
    assert torch.isfinite(found.boxes_xyxy).all()
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= torch.tensor(size * 2)).all()


def test_an_impossible_batch_is_refused(model: GLIPv2, tokenizer: WordPiece) -> None:
    with pytest.raises(ValueError, match="batch_size is 0; give at least 1"):
        Predictor(model, tokenizer, batch_size=0)


def test_a_prompt_of_no_categories_at_a_time_is_refused(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="max_categories is 0; give at least 1"):
        predictor.detect([PICTURE], NAMES, max_categories=0)


def test_a_text_that_is_all_padding_gives_finite_regions(model: GLIPv2) -> None:
    ids, mask = torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)
    regions = model(torch.zeros(1, 3, 64, 64), ids, mask).regions
    for values in (regions.alignment, regions.box_deltas, regions.centerness):
        assert torch.isfinite(values).all()


@pytest.mark.parametrize(
    "box", [(70.0, 8.0, 90.0, 20.0), (8.0, 8.0, 8.0, 20.0), (20.0, 8.0, 10.0, 20.0), (8.0, -9.0, 20.0, 0.0),
            (float("nan"), 8.0, 20.0, 20.0)],
)  # fmt: skip
def test_a_box_that_covers_nothing_of_the_picture_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"covers nothing of the picture of 64 x 64 px; give"):
        make_sample([box], [[(0, 3)]])


def test_a_box_over_the_edge_is_cut_off_there(tokenizer: WordPiece) -> None:
    batch = collate([make_sample([(-5.0, 10.0, 70.0, 80.0)], [[(0, 3)]])], tokenizer, 32)
    assert batch.targets[0].boxes_xyxy.tolist() == [[0.0, 10.0, 63.0, 63.0]]


@pytest.mark.parametrize("span", [(0, 0), (4, 2), (-1, 3), (0, 99)])
def test_a_span_that_is_not_within_the_text_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is not within the 10 characters"):
        make_sample([(8.0, 8.0, 40.0, 40.0)], [[span]])


@pytest.mark.parametrize(("spans", "categories"), [([], []), ([[(0, 3)], [(4, 10)]], []), ([[(0, 3)]], [1, 2])])
def test_boxes_spans_and_categories_of_different_numbers_are_refused(
    spans: list[list[tuple[int, int]]], categories: list[int]
) -> None:
    with pytest.raises(ValueError, match="give one list of spans per box"):
        make_sample([(8.0, 8.0, 40.0, 40.0)], spans, categories)


def test_a_sample_without_boxes_and_text_is_a_batch(tokenizer: WordPiece) -> None:
    picture = Picture(pixels=torch.zeros(3, 64, 64), scale_xy=(1.0, 1.0), original_size=(64, 64))
    batch = collate(
        [GroundingSample(picture=picture, text="", boxes_xyxy=torch.zeros(0, 4), tokens_positive=[])], tokenizer, 32
    )
    assert batch.ids.shape == (1, 2)
    assert batch.targets[0].boxes_xyxy.shape == (0, 4)


def make_sample(
    boxes: list[tuple[float, ...]], spans: list[list[tuple[int, int]]], categories: list[int] | None = None
) -> GroundingSample:
    picture = Picture(pixels=torch.zeros(3, 64, 64), scale_xy=(1.0, 1.0), original_size=(64, 64))
    return GroundingSample(
        picture=picture,
        text="red square",
        boxes_xyxy=torch.tensor(boxes),
        tokens_positive=spans,
        categories=categories or [],
    )
