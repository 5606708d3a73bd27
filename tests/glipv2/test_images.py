"""Pixels and boxes on their way into a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from glipv2.config import ModelConfig
from glipv2.image import pad_pictures, padded_size, prepare, scale_boxes, target_size, to_rgb
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


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (2, 5000), (3, 10**6)])
def test_no_side_shrinks_to_nothing_or_grows_without_bound(size: tuple[int, int]) -> None:
    width, height = target_size(*size, 800, 1333)
    assert min(width, height) >= 1
    assert max(width, height) <= 2 * 1333  # rounding a short side of a pixel or two down doubles the long one


def test_images_of_one_padded_size_are_told_from_others(tiny: ModelConfig) -> None:
    for size in ((64, 48), (48, 64), (15, 8), (5000, 1)):
        batch = pad_pictures([prepare(Image.new("RGB", size), tiny)], tiny.pad_multiple_px)
        assert padded_size(size, tiny) == (batch.shape[3], batch.shape[2])


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


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_images_of_any_mode_keep_their_brightness(mode: str) -> None:
    grey = Image.new("RGB", (8, 8), (153, 153, 153) if mode != "1" else (255, 255, 255))
    image = grey.convert("L").convert(mode) if mode in ("I", "F") else grey.convert(mode)
    assert np.asarray(ImageChops.difference(to_rgb(image), grey)).max() <= 2


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_sixteen_bits_are_scaled_not_clipped(dtype: str) -> None:
    image = Image.fromarray(np.array([[0, 255, 16448, 32896, 65535]], dtype=dtype))
    assert image.mode.startswith("I")
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 64, 128, 255]


@pytest.mark.parametrize("white", [1, 255, 65535, 3e9])
def test_floats_are_scaled_by_the_range_they_fill(white: float) -> None:
    image = Image.fromarray(np.array([[0, white / 2, white, np.nan, np.inf, -1]], dtype=np.float32))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == pytest.approx([0, 127.5, 255, 0, 0, 0], abs=0.5)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 1), (9, 9, 9, 255))
    rgb = to_rgb(image.convert(mode))
    assert rgb.getpixel((0, 0)) == (255, 255, 255)
    assert max(rgb.getpixel((1, 1))) < 16


def test_an_animation_shows_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert to_rgb(Image.open(tmp_path / "a.gif")).getpixel((0, 0)) == (255, 0, 0)


def test_pixels_are_taken_as_stored_whatever_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert to_rgb(Image.open(tmp_path / "a.jpg")).size == (8, 4)
