"""Pixels and boxes on their way into a batch."""

import pytest
import torch
from PIL import Image

from glipv2.config import ModelConfig
from glipv2.image import pad_pictures, prepare, scale_boxes, target_size
from glipv2.sample import GroundingSample, collate
from glipv2.text.tokenizer import WordPiece


def paint_box(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A black image with one white box, half open as stored."""
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), box)
    return image


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_follow_their_pixels_when_resized_and_mirrored(tiny: ModelConfig, flip: bool) -> None:
    box = (8, 16, 40, 64)
    picture = prepare(paint_box((128, 96), box), tiny, flip=flip)
    assert picture.size == (64, 48)
    assert picture.scale_xy == (0.5, 0.5)
    x1, y1, x2, y2 = scale_boxes(torch.tensor([box], dtype=torch.float32), picture, flip=flip)[0].int().tolist()
    white = picture.pixels[0] > picture.pixels[0].mean()
    inside = torch.zeros_like(white)
    inside[y1:y2, x1:x2] = True
    assert (white == inside).float().mean() > 0.95  # the resized edge is blurred


def test_red_is_the_last_channel(tiny: ModelConfig) -> None:
    pixels = prepare(Image.new("RGB", (64, 64), (255, 0, 0)), tiny).pixels
    expected = [(0 - 103.53) / 57.375, (0 - 116.28) / 57.12, (255 - 123.675) / 58.395]
    assert pixels[:, 0, 0].tolist() == pytest.approx(expected)


def test_the_longest_side_wins_over_the_shortest() -> None:
    assert target_size(2000, 100, 800, 1333) == (1340, 67)  # 67 = round(1333 / 20); the long side follows it
    assert target_size(1, 5000, 800, 1333) == (1, 5000)


def test_padding_is_zero_to_the_right_and_below(tiny: ModelConfig) -> None:
    wide, tall = (prepare(Image.new("RGB", size, "white"), tiny) for size in ((64, 30), (20, 64)))
    batch = pad_pictures([wide, tall], 32)
    assert batch.shape == (2, 3, 64, 64)
    assert torch.equal(batch[0, :, :30, :], wide.pixels)
    assert torch.equal(batch[1, :, :, :20], tall.pixels)
    assert batch[0, :, 30:].abs().max() == batch[1, :, :, 20:].abs().max() == 0


def test_a_batch_holds_inclusive_boxes_and_padded_texts(
    tokenizer: WordPiece, samples: list[GroundingSample], tiny: ModelConfig
) -> None:
    short = GroundingSample(
        picture=samples[0].picture, text="red", boxes_xyxy=torch.tensor([[1.0, 2.0, 11.0, 22.0]]), tokens_positive=[[]]
    )
    batch = collate([samples[1], short], tokenizer, tiny.pad_multiple_px)
    assert batch.targets[1].boxes_xyxy.tolist() == [[1, 2, 10, 21]]
    assert batch.targets[1].positive_map.shape == (1, batch.ids.shape[1])
    assert batch.mask.sum(1).tolist() == [batch.ids.shape[1], 3]
    assert torch.equal(batch.loss_mask, batch.mask > 0)
    assert (batch.ids[1, 3:] == tokenizer.pad_id).all()
