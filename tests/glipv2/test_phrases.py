import json
import pickle
from pathlib import Path

import pytest

from glipv2.text.phrases import (
    Phrase,
    PhraseConfig,
    PhraseParser,
    caption_reason,
    clean_caption,
    make_parser,
    number_entities,
)

CONFIG = PhraseConfig()
AWKWARD = [
    'a "stop" sign, isn\u2019t it?',
    "the man\u2019s hat and the man's dog",
    "a dog and a dog and a dog",
    "\N{DOG FACE}\N{DOG FACE} dog \N{DOG FACE}",
    "e\u0301clair on a plate",
    "\u0130stanbul street at night",
    "\u72ac\u304c\u8d70\u308b \u767d\u3044\u732b",
    "<b>bold dog</b> &amp; cat, 3-legged #2 rock'n'roll (band)",
    "...",
    "",
]


@pytest.fixture(scope="module")
def parser() -> PhraseParser:
    return make_parser(CONFIG)


def texts(phrases: list[Phrase]) -> list[str]:
    return [phrase.text for phrase in phrases]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a striped red star left of two small blue rings", ["striped red star", "two small blue rings"]),
        ("photo of a big dotted green heart and a yellow moon", ["big dotted green heart", "yellow moon"]),
        ("an orange circle next to a pink ring", ["orange circle", "pink ring"]),
        ("a brown square in front of a cyan cross", ["brown square", "cyan cross"]),
        ("checkered violet crosses to the left of the big plain moon", ["checkered violet crosses", "big plain moon"]),
        ("two drops above three tiny teal crosses", ["two drops", "three tiny teal crosses"]),
        ("crosses below rings", ["crosses", "rings"]),
        ("STRIPED RED STAR - Free Download", ["STRIPED RED STAR", "Free Download"]),
        ("We saw a blue bolt today", ["blue bolt"]),
    ],
)
def test_drawn_objects_keep_their_attributes(parser: PhraseParser, caption: str, expected: list[str]) -> None:
    assert texts(parser(caption)) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man's hat on a red stop sign", ["man", "hat", "red stop sign"]),
        ("A dog leaps over a snow covered hill", ["dog", "snow covered hill"]),
        ("Two black dogs jump in a pool", ["Two black dogs", "pool"]),
        ("A man rides a bicycle", ["man", "bicycle"]),
        ("A girl is reading", ["girl"]),
        ("a red and green bucket and a large, brown dog", ["red and green bucket", "large, brown dog"]),
        ("a man in a white t-shirt and a well-dressed woman", ["man", "white t-shirt", "well-dressed woman"]),
        ("a very tall cliff and a fallen tree", ["very tall cliff", "fallen tree"]),
        ("a female wearing pink gloves", ["female", "pink gloves"]),
        ("the child has a teddy bear.", ["child", "teddy bear"]),
        ("a swimming pool, a strange looking bird", ["swimming pool", "strange looking bird"]),
        ("a girl wearing a blue top", ["girl", "blue top"]),
    ],
)
def test_photo_captions_are_cut_at_verbs_and_relations(parser: PhraseParser, caption: str, expected: list[str]) -> None:
    assert texts(parser(caption)) == expected


@pytest.mark.parametrize("caption", ["left right top", "on the left side", "close up view", "it is her", "7 8 9", "x"])
def test_words_that_name_no_object_are_no_phrases(parser: PhraseParser, caption: str) -> None:
    assert parser(caption) == []


@pytest.mark.parametrize("caption", AWKWARD)
def test_spans_are_exact_ordered_and_apart(parser: PhraseParser, caption: str) -> None:
    phrases = parser(caption)
    assert [caption[phrase.begin : phrase.end] for phrase in phrases] == texts(phrases)
    borders = [border for phrase in phrases for border in (phrase.begin, phrase.end)]
    assert borders == sorted(borders)


def test_every_mention_is_its_own_phrase(parser: PhraseParser) -> None:
    assert [(phrase.begin, phrase.end) for phrase in parser("a dog and a dog")] == [(2, 5), (12, 15)]


def test_determiner_is_kept_on_request() -> None:
    caption = "The red ring and two stars"
    assert texts(make_parser(PhraseConfig(keep_determiner=True))(caption)) == ["The red ring", "two stars"]


def test_stop_words_are_configurable() -> None:
    parser = make_parser(PhraseConfig(stop_nouns=("sky",), stop_phrases=("red dog",)))
    assert texts(parser("a photo of a blue sky and skys")) == ["photo"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ["red and ", "dog ", "a-", "red, ", "x'", "'s ", "very "])
def test_hostile_long_captions_take_linear_time(parser: PhraseParser, unit: str) -> None:
    caption = unit * 20_000
    assert all(0 <= phrase.begin < phrase.end <= len(caption) for phrase in parser(caption))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ["<", "<a", "<!--", "&", "http://"])
def test_hostile_long_captions_are_cleaned_in_linear_time(unit: str) -> None:
    assert len(clean_caption(unit * 20_000)) <= len(unit) * 20_000


def test_pickled_parser_finds_the_same(parser: PhraseParser) -> None:
    caption = "a red ring"
    copy = pickle.loads(pickle.dumps(parser))
    assert (copy.version, copy(caption)) == (parser.version, parser(caption))


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\tred \n ring ", "a red ring"),
        ("<p class='x'>a dog</p> &amp;<br/>cat <!-- no -->", "a dog & cat"),
        ("&lt;b&gt;dog&lt;/b&gt;", "dog"),
        ("\ufb01sh\u00a0\u202ered\x00\u200b", "fish red"),
        ("a dog https://x.example/dog.jpg www.x.example", "a dog"),
        ("I <3 dogs", "I <3 dogs"),
        ("lone \ud800surrogate", "lone surrogate"),
        (None, ""),
    ],
)
def test_captions_are_cleaned(raw: str | None, clean: str) -> None:
    assert clean_caption(raw) == clean


@pytest.mark.parametrize("caption", AWKWARD)
def test_cleaning_twice_changes_nothing(caption: str) -> None:
    once = clean_caption(caption)
    assert clean_caption(once) == once


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (None, "empty_caption"),
        ("", "empty_caption"),
        ("red ring", "caption_too_short"),
        ("a b - c", None),
        ("a - b", "caption_too_short"),
        ("a red ring", None),
        ("a red ring and a star", "caption_too_long"),
    ],
)
def test_unusable_captions_have_a_reason(caption: str | None, reason: str | None) -> None:
    assert caption_reason(caption, PhraseConfig(min_words=3, max_chars=20)) == reason


def test_captions_without_a_word_are_too_short() -> None:
    assert caption_reason("!!! ...", CONFIG) == "caption_too_short"


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="min_words is 0, allowed: 1 or more"):
        PhraseConfig(min_words=0)
    with pytest.raises(ValueError, match="max_chars is 0, allowed: 1 or more"):
        PhraseConfig(max_chars=0)


def test_every_real_caption_has_phrases(parser: PhraseParser, test_data: Path) -> None:
    lines = (test_data / "captioned_photos" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    captions = [clean_caption(caption) for line in lines for caption in json.loads(line)["captions"]]
    found = [len(parser(caption)) for caption in captions]
    assert min(found) >= 1
    assert 2.5 < sum(found) / len(found) < 3.5


@pytest.mark.parametrize(
    ("caption", "entities"),
    [
        ("a dog and the dog", [0, 0]),
        ("a red ring, a blue ring and the Red  rings", [0, 1, 0]),
        ("a man feeds his dog while her dog sleeps", [0, 1, 2]),
        ("a dog and two dogs", [0, 1]),
        ("a glass and a bus", [0, 1]),
        ("a box near boxes", [0, 1]),
    ],
)
def test_mentions_of_the_same_words_are_one_entity(parser: PhraseParser, caption: str, entities: list[int]) -> None:
    assert number_entities(parser(caption), CONFIG) == entities
    with_determiner = PhraseConfig(keep_determiner=True)
    assert number_entities(make_parser(with_determiner)(caption), with_determiner) == entities


def test_every_mention_is_an_entity_of_its_own_on_request(parser: PhraseParser) -> None:
    phrases = parser("a dog and the dog")
    assert number_entities(phrases, PhraseConfig(merge_repeats=False)) == [0, 1]


def test_a_name_that_was_taken_out_of_a_caption_is_a_person() -> None:
    assert clean_caption("<PERSON> holding a <b>red</b> ball") == "person holding a red ball"
