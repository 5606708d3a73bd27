"""Left and right in a mirror."""

import pytest

from glipv2.text.sides import speaks_of_sides, swap_sides


@pytest.mark.parametrize(
    ("text", "sided"),
    [
        ("a cat left of a dog", True),
        ("the RIGHT shoe", True),
        ("its left-hand side", True),
        ("the leftmost cup", True),
        ("turning rightwards", True),
        ("a bright copyright sign", False),
        ("leftovers", False),
        ("", False),
    ],
)
def test_only_whole_words_speak_of_sides(text: str, sided: bool) -> None:
    assert speaks_of_sides(text) is sided


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Left of it, LEFT and left", "Right of it, RIGHT and right"),
        ("the rightmost, right-hand cup", "the leftmost, left-hand cup"),
        ("leftovers", "leftovers"),
    ],
)
def test_sides_are_swapped_in_their_case(text: str, mirrored: str) -> None:
    assert swap_sides(text, [])[0] == mirrored
    assert swap_sides(mirrored, [])[0] == text


def test_spans_follow_their_words() -> None:
    text = "left cup, right dog; the cat left of the right, right?"
    phrases = ["left cup", "right dog", "the cat", "the right", "right", "t cup"]
    spans = [(text.index(phrase), text.index(phrase) + len(phrase)) for phrase in phrases]
    swapped, moved = swap_sides(text, spans)
    words = [swapped[begin:end] for begin, end in moved]
    assert words == ["right cup", "left dog", "the cat", "the left", "left", "ht cup"]
    assert swap_sides(swapped, moved) == (text, [*spans[:-1], (3, 8)])
