"""Captions among other captions."""

import random
from collections import Counter

import pytest

from glipv2.text.packing import PackedCaption, pack_captions
from glipv2.text.tokenizer import WordPiece, make_vocabulary

OTHERS = [f"a {shape} number {number}" for number, shape in enumerate(["ring", "star"] * 50)]
TOKENIZER = WordPiece(make_vocabulary(["a", "red", "ring", "star", "number", *map(str, range(100))]), 256)
OWN = "  a red ring"


def draw(seed: int, own: str = OWN, others: list[str] = OTHERS, tokenizer: WordPiece = TOKENIZER) -> PackedCaption:
    return pack_captions(own, others, random.Random(seed), tokenizer)


def test_captions_are_packed_with_the_papers_probabilities() -> None:
    counts = Counter(draw(seed).text.count(".") - 1 for seed in range(2000))
    # Four standard deviations; 19 also comes from one in 19 of the last 0.3.
    assert counts[0] == pytest.approx(800, abs=88)
    assert counts[19] == pytest.approx(600 + 600 / 19, abs=84)
    assert counts.keys() == set(range(20))
    others = [count for count in counts.elements() if 0 < count < 19]
    assert sum(others) / len(others) == pytest.approx(9.5, abs=0.9)


def test_the_own_caption_begins_where_it_says() -> None:
    places = set()
    for seed in range(100):
        packed = draw(seed)
        assert packed.text[packed.begin :].startswith(f"{OWN}.")
        places.add(packed.begin)
    assert 0 in places
    assert len(places) > 20


def test_every_caption_ends_in_one_point() -> None:
    others = ["a star.", "a ring ", "red. "]
    texts = {draw(seed, "a red ring.", others).text for seed in range(200)}
    assert {text.count(".") for text in texts} == {1, 2, 3, 4}
    assert not any(".." in text or " ." in text or "  " in text for text in texts)


@pytest.mark.parametrize("same", ["a red ring", "a red ring.", "a red ring. "])
def test_a_caption_that_says_the_same_is_skipped(same: str) -> None:
    assert {draw(seed, "a red ring", [same] * 30).text for seed in range(50)} == {"a red ring."}


def test_packed_captions_are_never_cut() -> None:
    short = WordPiece(TOKENIZER.vocabulary, 32)
    lengths = []
    for seed in range(200):
        encoding = short([draw(seed, tokenizer=short).text])[0]
        assert not encoding.cut
        lengths.append(len(encoding.ids))
    assert max(lengths) > 26  # another caption costs five


def test_a_caption_too_long_by_itself_stays_alone() -> None:
    long = "red " * 40
    packed = draw(3, long, tokenizer=WordPiece(TOKENIZER.vocabulary, 16))
    assert packed == PackedCaption(text=f"{long.strip()}.", begin=0)


def test_there_may_be_no_other_caption() -> None:
    assert {draw(seed, others=[]).begin for seed in range(20)} == {0}


def test_a_seed_decides_the_packing() -> None:
    assert draw(5) == draw(5) != draw(6)
