from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline.miniature.draw import Style, draw_picture
from pipeline.miniature.grammar import BASE_NOUNS, NOVEL_NOUNS

NOUNS = BASE_NOUNS + NOVEL_NOUNS


def test_same_seed_same_pixels() -> None:
    (first, known), (second, known_again) = (draw_picture(Style(), 128, "a") for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert known == known_again


def test_other_seed_other_pixels() -> None:
    assert draw_picture(Style(), 128, "a")[0].tobytes() != draw_picture(Style(), 128, "b")[0].tobytes()


@pytest.mark.parametrize("noun", NOUNS)
def test_box_encloses_what_changes_with_the_colour(noun: str) -> None:
    style = Style(nouns=(noun,), num_objects=(1, 1), textures=("plain",), tilt=3)
    for number in range(5):
        drawn = [draw_picture(replace(style, colours=(c,)), 128, f"box/{number}") for c in ("yellow", "blue")]
        yellow, blue = (np.asarray(image, dtype=int) for image, _ in drawn)
        changed = np.abs(yellow - blue).max(axis=2) > 40
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(np.subtract(drawn[0][1].things[0].box, seen)).max() <= 1.5


def test_boxes_lie_inside_the_picture() -> None:
    for number in range(40):
        _, picture = draw_picture(Style(nouns=NOUNS, crowding=1), 128, f"inside/{number}")
        for x1, y1, x2, y2 in (thing.box for thing in picture.things):
            assert 0 <= x1 < x2 <= picture.width
            assert 0 <= y1 < y2 <= picture.height


def test_only_nouns_of_the_style_are_drawn() -> None:
    drawn = {thing.look.noun for n in range(20) for thing in draw_picture(Style(), 128, f"nouns/{n}")[1].things}
    assert drawn <= set(BASE_NOUNS)


def test_looks_that_differ_do_not_differ_in_size_alone() -> None:
    for number in range(40):
        looks = {thing.look for thing in draw_picture(Style(repeats=0.5), 128, f"looks/{number}")[1].things}
        kinds = Counter((look.noun, look.colour, look.texture) for look in looks)
        assert set(kinds.values()) == {1}


def test_greyscale_style_has_one_channel() -> None:
    assert draw_picture(Style(greyscale=True), 128, "grey")[0].mode == "L"
