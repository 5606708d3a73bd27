import random
from collections import Counter

import pytest

from glipv2.transfer.fewshot import sample_few_shot

GENERATOR = random.Random(0)
IMAGES = [frozenset(GENERATOR.sample(range(6), GENERATOR.randint(0, 3))) for _ in range(80)]


@pytest.mark.parametrize("shots", [1, 3, 10])
@pytest.mark.parametrize("seed", [3, 30, 300])
def test_every_category_is_in_enough_images(shots: int, seed: int) -> None:
    shown = Counter(category for index in sample_few_shot(IMAGES, shots, seed) for category in IMAGES[index])
    assert len(shown) == 6
    assert min(shown.values()) >= shots


def test_every_taken_image_was_needed_when_taken() -> None:
    single = [frozenset({index % 3}) for index in range(30)]
    assert len(sample_few_shot(single, 4, seed=3)) == 12


RARE = [frozenset({1}), frozenset({1}), frozenset({1, 2}), frozenset({1})]


def test_category_rarer_than_the_shots_is_refused_with_its_count() -> None:
    with pytest.raises(
        ValueError, match="there is category 2 in 1; give at most 1 shots, or allow fewer with strict=False"
    ):
        sample_few_shot(RARE, 3, seed=3)


def test_category_rarer_than_the_shots_gives_all_it_has_where_that_is_allowed() -> None:
    assert 2 in sample_few_shot(RARE, 3, seed=3, strict=False)
    assert sample_few_shot(RARE, 9, seed=3, strict=False) == [0, 1, 2, 3]


def test_several_boxes_of_a_category_count_as_one_image() -> None:
    assert len(sample_few_shot([frozenset({7})] * 5, 2, seed=1)) == 2


def test_images_without_boxes_are_never_drawn() -> None:
    assert sample_few_shot([frozenset(), frozenset({1}), frozenset()], 1, seed=3) == [1]


def test_seeds_draw_differently_and_repeatably() -> None:
    draws = [sample_few_shot(IMAGES, 3, seed) for seed in (3, 30, 300, 3)]
    assert draws[0] == draws[3] != draws[1] != draws[2]


def test_indices_ascend() -> None:
    draw = sample_few_shot(IMAGES, 5, seed=30)
    assert draw == sorted(set(draw))


def test_no_images_give_no_draw() -> None:
    assert sample_few_shot([], 3, seed=3) == []


def test_zero_shots_are_refused() -> None:
    with pytest.raises(ValueError, match="shots is 0, allowed: 1 or more"):
        sample_few_shot(IMAGES, 0, seed=3)
