import re
from random import Random

import pytest

from pipeline.miniature.draw import Style, draw_picture
from pipeline.miniature.grammar import (
    BASE_NOUNS,
    COLOURS,
    GENERIC_NOUNS,
    NOVEL_NOUNS,
    NUMBERS,
    SIZES,
    TEXTURES,
    Caption,
    Thing,
    gold_caption,
    names_novel,
    plural,
    vocabulary,
    web_caption,
)
from pipeline.miniature.odinw import ODINW_SETS

NOUNS = BASE_NOUNS + NOVEL_NOUNS
SINGULAR = {plural(noun): noun for noun in NOUNS} | {noun: noun for noun in NOUNS}
GENERIC = {*GENERIC_NOUNS, *map(plural, GENERIC_NOUNS)}
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


@pytest.fixture(scope="module")
def captioned() -> list[tuple[Caption, tuple[Thing, ...]]]:
    style = Style(nouns=NOUNS, repeats=0.5)
    scenes = [draw_picture(style, 96, f"grammar/{number}")[1].things for number in range(60)]
    write = (web_caption, gold_caption)
    return [(write[n % 2](Random(n), things), things) for n, things in enumerate(scenes * 3)]


def test_phrase_span_cuts_out_words_of_its_things(captioned: list[tuple[Caption, tuple[Thing, ...]]]) -> None:
    for caption, things in captioned:
        for phrase in caption.phrases:
            words = caption.text[phrase.begin : phrase.end].lower().split()
            for look in (things[index].look for index in phrase.members):
                assert SINGULAR[words[-1]] == look.noun
                assert set(words[1:-1]) <= {look.colour, look.texture, look.size}


def test_phrase_means_all_things_it_describes_and_no_other(captioned: list[tuple[Caption, tuple[Thing, ...]]]) -> None:
    for caption, things in captioned:
        for phrase in caption.phrases:
            *attributes, noun = caption.text[phrase.begin : phrase.end].lower().split()[1:]
            described = {
                index
                for index, look in enumerate(thing.look for thing in things)
                if look.noun == SINGULAR[noun] and set(attributes) <= {look.colour, look.texture, look.size}
            }
            assert set(phrase.members) == described


def test_phrase_counts_its_things(captioned: list[tuple[Caption, tuple[Thing, ...]]]) -> None:
    for caption, _ in captioned:
        for phrase in caption.phrases:
            first = caption.text[phrase.begin : phrase.end].lower().split()[0]
            assert first == "the" or NUMBERS.index(first.replace("an", "a")) == len(phrase.members)


def test_relation_is_true_in_the_picture(captioned: list[tuple[Caption, tuple[Thing, ...]]]) -> None:
    found = 0
    for caption, things in captioned:
        for ours, theirs in zip(caption.phrases, caption.phrases[1:], strict=False):
            between = caption.text[ours.end : theirs.begin].lower().strip().removeprefix("to the ")
            if between in SIDES:
                axis, sign = SIDES[between]
                here, there = ([things[i].centre[axis] for i in phrase.members] for phrase in (ours, theirs))
                assert min(sign * (a - b) for a in here for b in there) > 0
                found += 1
    assert found > 10


def test_packed_caption_names_some_things_twice(captioned: list[tuple[Caption, tuple[Thing, ...]]]) -> None:
    mentions = [[index for phrase in caption.phrases for index in phrase.members] for caption, _ in captioned]
    assert any(len(indices) > len(set(indices)) for indices in mentions)


def test_web_caption_leaves_out_some_things(captioned: list[tuple[Caption, tuple[Thing, ...]]]) -> None:
    unnamed = [len(things) - sum(len(p.members) for p in caption.phrases) for caption, things in captioned[::2]]
    assert 0 < sum(count > 0 for count in unnamed) < len(unnamed) / 2


def test_vocabulary_holds_each_word_of_captions_and_categories(
    captioned: list[tuple[Caption, tuple[Thing, ...]]],
) -> None:
    texts = [caption.text for caption, _ in captioned] + [name for s in ODINW_SETS for name in s.categories]
    words = {word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())}
    assert words <= set(vocabulary())


def test_vocabulary_is_sorted_and_lower_case() -> None:
    words = vocabulary()
    assert words == sorted({word.lower() for word in words})
    assert {*NOUNS, *COLOURS, *TEXTURES, *filter(None, SIZES)} <= set(words)


def test_generic_noun_is_said_only_where_the_other_words_are_enough(
    captioned: list[tuple[Caption, tuple[Thing, ...]]],
) -> None:
    found = 0
    for number, (_, things) in enumerate(captioned):
        caption = gold_caption(Random(number), things, generic_share=0.7)
        for phrase in caption.phrases:
            _, *attributes, noun = caption.text[phrase.begin : phrase.end].lower().split()
            if noun in GENERIC:
                looks = [thing.look for thing in things]
                described = {
                    index
                    for index, look in enumerate(looks)
                    if set(attributes) <= {look.colour, look.texture, look.size}
                }
                assert set(phrase.members) == described
                found += 1
    assert found > 50


def test_no_generic_noun_without_being_told(captioned: list[tuple[Caption, tuple[Thing, ...]]]) -> None:
    words = {word for caption, _ in captioned for word in re.findall("[a-z]+", caption.text.lower())}
    assert words.isdisjoint(GENERIC)


def test_generic_nouns_are_in_the_vocabulary_if_wanted() -> None:
    assert set(vocabulary(generic=True)) == {*vocabulary(), *GENERIC}


@pytest.mark.parametrize(
    ("text", "novel"),
    [("hearts", True), ("Striped_red_fish", True), ("two BOLTS", True), ("moon-shape", False), ("package", False)],
)
def test_novel_names_are_recognised(text: str, novel: bool) -> None:
    assert names_novel(text) is novel
