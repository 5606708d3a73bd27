"""Mirrored and resized samples, and the order in which they come."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from glipv2.config import ModelConfig
from glipv2.image import prepare, scale_boxes
from glipv2.sample import GroundingSample
from glipv2.transfer.protocol import protocol_for
from glipv2.transfer.views import View, draw_steps, take_view

PLAIN = View(index=0, flip=False, scale=1.0)
FULL = protocol_for("full", 1)


def test_the_plain_view_is_the_sample(samples: list[GroundingSample], tiny: ModelConfig) -> None:
    seen = take_view(samples[0], PLAIN, tiny)
    assert torch.equal(seen.picture.pixels, samples[0].picture.pixels)
    assert torch.equal(seen.boxes_xyxy, samples[0].boxes_xyxy)


def test_a_mirrored_view_is_the_mirrored_image(
    samples: list[GroundingSample], drawings: list[Any], tiny: ModelConfig
) -> None:
    seen = take_view(samples[0], replace(PLAIN, flip=True), tiny)
    mirrored = prepare(drawings[0].image, tiny, flip=True)
    assert torch.equal(seen.picture.pixels, mirrored.pixels)
    assert torch.equal(seen.boxes_xyxy, scale_boxes(drawings[0].boxes_xyxy, mirrored, flip=True))


def test_a_text_that_tells_sides_is_never_mirrored(samples: list[GroundingSample], tiny: ModelConfig) -> None:
    sided = replace(samples[0], text="left " + samples[0].text)
    seen = take_view(sided, replace(PLAIN, flip=True), tiny)
    assert torch.equal(seen.picture.pixels, sided.picture.pixels)
    assert torch.equal(seen.boxes_xyxy, sided.boxes_xyxy)


def test_a_smaller_view_is_nearly_the_image_prepared_at_that_size(drawings: list[Any], tiny: ModelConfig) -> None:
    image = drawings[0].image.resize((96, 128))
    tiny = replace(tiny, max_size_px=96)
    small, whole = (prepare(image, replace(tiny, min_size_px=side)) for side in (32, 64))
    sample = GroundingSample(
        picture=whole, text="", boxes_xyxy=scale_boxes(torch.tensor([[3.0, 9, 60, 90]]), whole), tokens_positive=[[]]
    )
    seen = take_view(sample, replace(PLAIN, scale=0.5), tiny)
    assert seen.picture.size == small.size
    assert seen.picture.scale_xy == small.scale_xy
    assert (seen.picture.pixels - small.pixels).abs().mean() < 0.1
    torch.testing.assert_close(seen.boxes_xyxy, scale_boxes(torch.tensor([[3.0, 9, 60, 90]]), small))


def test_an_epoch_shows_every_sample_as_often_as_it_has_copies() -> None:
    steps = list(draw_steps(5, FULL, random.Random(0)))
    assert [len(step) for step in steps] == [4] * 10
    assert Counter(view.index for step in steps for view in step) == dict.fromkeys(range(5), 8)


def test_views_are_drawn_evenly() -> None:
    views = [view for step in draw_steps(200, FULL, random.Random(0)) for view in step]
    assert sum(view.flip for view in views) == pytest.approx(800, rel=0.1)
    assert {scale: count > 250 for scale, count in Counter(view.scale for view in views).items()} == dict.fromkeys(
        FULL.scales, True
    )


def test_order_and_views_follow_from_the_seed() -> None:
    first, again, other = (list(draw_steps(5, FULL, random.Random(seed))) for seed in (1, 1, 2))
    assert first == again != other
