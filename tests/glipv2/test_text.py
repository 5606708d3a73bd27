"""Prompts, token spans and the tokenizer."""

import random

import pytest

from glipv2.text.positive_map import positive_map, tokens_of_span
from glipv2.text.prompts import MAX_LABELS, SEPARATOR, Budget, Prompt, build_prompt, clean_name, sample_prompt
from glipv2.text.tokenizer import WordPiece, make_vocabulary

NAMES = {number: f"name{number}" for number in range(300)}
PRESENT = [7, 3, 250]
BUDGET = Budget(tokens=dict.fromkeys(NAMES, 2), max_tokens=254)


def draw(seed: int) -> Prompt:
    return sample_prompt(PRESENT, NAMES, random.Random(seed), BUDGET)


def pieces(tokenizer: WordPiece, text: str) -> list[tuple[str, str]]:
    """Every token of a text, start and end left out, beside the characters it says it came from."""
    encoding = tokenizer([text])[0]
    tokens = [(tokenizer.vocabulary[i], text[slice(*o)]) for i, o in zip(encoding.ids, encoding.offsets, strict=True)]
    return tokens[1:-1]


def test_offsets_point_at_the_characters_of_each_token(tokenizer: WordPiece) -> None:
    assert pieces(tokenizer, "Red square,  BLUE disc.") == [
        ("red", "Red"),
        ("square", "square"),
        (",", ","),
        ("blue", "BLUE"),
        ("disc", "disc"),
        (".", "."),
    ]


def test_an_unknown_word_is_spelled_letter_by_letter(tokenizer: WordPiece) -> None:
    assert pieces(tokenizer, "red Zoo") == [("red", "red"), ("z", "Z"), ("##o", "o"), ("##o", "o")]


def test_accents_do_not_shift_offsets(tokenizer: WordPiece) -> None:
    assert pieces(tokenizer, "été red") == [("e", "é"), ("##t", "t"), ("##e", "é"), ("red", "red")]


def test_a_letter_outside_the_vocabulary_is_one_unknown_token(tokenizer: WordPiece) -> None:
    assert pieces(tokenizer, "赤 red") == [("[UNK]", "赤"), ("red", "red")]


def test_long_text_is_cut_and_still_ends_properly(tokenizer: WordPiece) -> None:
    encoding = tokenizer(["red " * 100])[0]
    assert len(encoding.ids) == 32
    assert tokenizer.vocabulary[encoding.ids[-1]] == "[SEP]"
    assert encoding.offsets[-1] == (0, 0)


def test_a_vocabulary_without_special_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="give a BERT-style vocab"):
        WordPiece(["red", "square"], max_tokens=8)


def test_a_made_vocabulary_holds_every_token_once() -> None:
    vocabulary = make_vocabulary(["red", "Red", "a", "z", "."])
    assert len(vocabulary) == len(set(vocabulary))
    assert "red" in vocabulary


def test_a_span_covers_all_pieces_of_its_words(tokenizer: WordPiece) -> None:
    encoding = tokenizer(["a zoo, red square"])[0]
    assert tokens_of_span(encoding.offsets, (2, 5)) == [2, 3, 4]
    assert tokens_of_span(encoding.offsets, (7, 17)) == [6, 7]


def test_a_span_cut_off_by_the_longest_text_has_no_tokens() -> None:
    short = WordPiece(make_vocabulary(["red", "square"]), max_tokens=4)
    encoding = short(["red red square"])[0]
    assert positive_map(encoding.offsets, [[(0, 3)], [(8, 14)], [(4, 14)]], 4).tolist() == [
        [0, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]


def test_a_box_may_be_positive_for_several_spans(tokenizer: WordPiece) -> None:
    encoding = tokenizer(["red square and disc"])[0]
    assert positive_map(encoding.offsets, [[(4, 10), (15, 19)]], 6).tolist() == [[0, 0, 1, 0, 1, 0]]


@pytest.mark.parametrize(
    ("name", "readable"),
    [("traffic_light", "traffic light"), ("bow_(weapon)", "bow"), ("teddy  bear", "teddy bear"), ("  ", "")],
)
def test_names_are_made_readable(name: str, readable: str) -> None:
    assert clean_name(name) == readable


def test_every_category_knows_its_characters() -> None:
    prompt = build_prompt([(9, "fire_hydrant"), (0, "dog"), (4, "bow (weapon)")])
    assert {c: prompt.text[slice(*span)] for c, span in prompt.spans.items()} == {9: "fire hydrant", 0: "dog", 4: "bow"}
    assert prompt.text == "fire hydrant. dog. bow"


def test_half_of_the_sampled_prompts_are_filled() -> None:
    filled = sum(len(draw(seed).spans) == MAX_LABELS for seed in range(2000))
    # One half, and one in 82 of the other half; four standard deviations are 90.
    assert filled == pytest.approx(1012, abs=90)


def test_a_prompt_that_is_not_filled_takes_any_number_of_negatives() -> None:
    lengths = [len(draw(seed).spans) - len(PRESENT) for seed in range(2000)]
    others = [length for length in lengths if length < MAX_LABELS - len(PRESENT)]
    assert min(others) == 1
    assert sum(others) / len(others) == pytest.approx(41.5, abs=3)


def test_a_sampled_prompt_names_what_is_there_and_nothing_twice() -> None:
    for seed in range(300):
        prompt = draw(seed)
        names = prompt.text.split(SEPARATOR)
        assert {NAMES[category] for category in PRESENT} <= set(names)
        assert len(names) == len(set(names)) == len(prompt.spans) <= MAX_LABELS
        assert [prompt.text[slice(*span)] for span in prompt.spans.values()] == names


def test_the_order_of_a_sampled_prompt_tells_nothing() -> None:
    first = sum(next(iter(draw(seed).spans)) in PRESENT for seed in range(500))
    assert 0 < first < 250


def test_a_seed_decides_the_prompt_whatever_the_order_of_boxes_and_names() -> None:
    present = [0, 8, 16]  # a set of these keeps the order they came in
    prompt = sample_prompt(present, NAMES, random.Random(5), BUDGET)
    shuffled = sample_prompt([16, 8, 8, 0], dict(reversed(NAMES.items())), random.Random(5), BUDGET)
    assert shuffled.text == prompt.text
    assert sample_prompt(present, NAMES, random.Random(6), BUDGET) != prompt


def test_more_categories_than_a_prompt_holds_are_cut() -> None:
    assert len(sample_prompt(list(NAMES), NAMES, random.Random(0), BUDGET).spans) == MAX_LABELS


def test_the_budget_of_tokens_cuts_absent_categories_before_present_ones() -> None:
    tight = Budget(tokens=dict.fromkeys(NAMES, 2), max_tokens=9)
    for seed in range(50):
        prompt = sample_prompt(PRESENT, NAMES, random.Random(seed), tight)
        assert set(PRESENT) <= prompt.spans.keys()
        assert len(prompt.spans) == 4


def test_a_category_that_does_not_fit_is_left_out_whole() -> None:
    prompt = sample_prompt(PRESENT, NAMES, random.Random(0), Budget(tokens=dict.fromkeys(NAMES, 2), max_tokens=5))
    assert len(prompt.spans) == 2
    assert prompt.spans.keys() < set(PRESENT)


def test_a_small_vocabulary_is_named_whole_at_most() -> None:
    few = {1: "red", 2: "blue"}
    lengths = {len(sample_prompt([1], few, random.Random(seed), BUDGET).spans) for seed in range(20)}
    assert lengths == {2}
    assert sample_prompt([], few, random.Random(0), BUDGET).spans.keys() <= few.keys()
