"""Packing whole vocabularies into prompts, and drawing training prompts under every rule."""

import itertools
import json
import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from glipv2.text.positive_map import tokens_of_span
from glipv2.text.prompts import Budget, Prompt, build_prompt, chunk_prompts, sample_prompt
from glipv2.text.tokenizer import END, START, ClipBPE, Tokenizer, WordPiece, make_vocabulary

WORDS = ["red", "green", "blue", "square", "disc"]


def clip(max_tokens: int) -> ClipBPE:
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "...</w>", "..</w>", START, END]
    merges = [(".", ".</w>"), (".", "..</w>")]
    return ClipBPE({token: number for number, token in enumerate(tokens)}, merges, max_tokens)


def wordpiece(max_tokens: int) -> WordPiece:
    return WordPiece(make_vocabulary(WORDS), max_tokens)


def numbered(*names: str) -> list[tuple[int, str]]:
    return list(enumerate(names, start=1))


def named(prompt: Prompt) -> list[str]:
    return [prompt.text[slice(*span)] for span in prompt.spans.values()]


def test_names_are_packed_in_order_until_a_prompt_is_full() -> None:
    # A prompt of 7: a start, "red . green . blue" and an end.
    prompts = chunk_prompts(numbered("red", "green", "blue", "disc", "square"), wordpiece(7))
    assert [named(prompt) for prompt in prompts] == [["red", "green", "blue"], ["disc", "square"]]
    assert [list(prompt.spans) for prompt in prompts] == [[1, 2, 3], [4, 5]]
    assert all(not prompt.dropped for prompt in prompts)


def test_a_prompt_holds_no_more_categories_than_allowed() -> None:
    prompts = chunk_prompts(numbered(*WORDS), wordpiece(64), max_categories=2)
    assert [len(prompt.spans) for prompt in prompts] == [2, 2, 1]


@pytest.mark.parametrize("tokenizer", [wordpiece(9), clip(9), wordpiece(12), clip(15)])
def test_any_vocabulary_is_named_whole_and_as_densely_as_can_be(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(50):
        pairs = numbered(*("".join(rng.choices("abé.,犬 ", k=rng.randint(1, 5))).strip() or "a" for _ in range(12)))
        pairs = [pair for pair in pairs if not tokenizer([pair[1]])[0].cut]
        prompts = chunk_prompts(pairs, tokenizer)
        encodings = tokenizer([prompt.text for prompt in prompts])
        assert not any(encoding.cut for encoding in encodings)
        assert [c for prompt in prompts for c in prompt.spans] == [category for category, _ in pairs]
        for first, second in itertools.pairwise(prompts):
            assert tokenizer([f"{first.text}. {named(second)[0]}"])[0].cut


def test_a_name_longer_than_a_prompt_goes_alone_and_ends_where_it_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = wordpiece(6)
    with caplog.at_level(logging.WARNING):
        prompts = chunk_prompts(numbered("red", "green blue red disc square", "blue"), tokenizer)
    assert [named(prompt) for prompt in prompts] == [["red"], ["green blue red disc"], ["blue"]]
    assert len(tokens_of_span(tokenizer([prompts[1].text])[0].offsets, prompts[1].spans[2])) == 4
    assert [record.getMessage() for record in caplog.records] == [
        "category 2 is longer than a prompt of 4 tokens and is cut: green blue red disc square"
    ]


def test_a_name_that_fills_a_prompt_is_not_cut(caplog: pytest.LogCaptureFixture) -> None:
    prompts = chunk_prompts(numbered("green blue red disc", "blue"), wordpiece(6))
    assert [named(prompt) for prompt in prompts] == [["green blue red disc"], ["blue"]]
    assert not caplog.records


def test_a_name_without_a_token_is_dropped_where_it_would_have_been() -> None:
    prompts = chunk_prompts(numbered("red", "(remark)", "green", "\u200b", "blue"), wordpiece(5))
    assert [(named(prompt), prompt.dropped) for prompt in prompts] == [(["red", "green"], (2, 4)), (["blue"], ())]


def test_a_vocabulary_of_nothing_gives_a_prompt_of_nothing() -> None:
    assert chunk_prompts(numbered("  ", "_"), wordpiece(8)) == [Prompt(text="", spans={}, dropped=(1, 2))]
    assert chunk_prompts([], wordpiece(8)) == []


def test_prompts_without_room_for_a_category_are_refused() -> None:
    with pytest.raises(ValueError, match="max_categories is 0"):
        chunk_prompts(numbered("red"), wordpiece(8), max_categories=0)


NAMES = {number: f"name{number}" for number in range(1, 301)}
BUDGET = Budget(tokens=dict.fromkeys(NAMES, 2), max_tokens=254)
REFERENCE = replace(BUDGET, rule="reference")


def test_verified_categories_alone_serve_as_negatives() -> None:
    for seed in range(100):
        prompt = sample_prompt([7, 3], NAMES, random.Random(seed), BUDGET, absent=[3, 20, 30, 40])
        assert {7, 3} <= prompt.spans.keys() <= {7, 3, 20, 30, 40}


def test_an_image_of_which_nothing_is_verified_absent_has_no_negatives() -> None:
    assert sample_prompt([7, 3], NAMES, random.Random(0), BUDGET, absent=[]).spans.keys() == {3, 7}


def test_categories_that_do_not_fit_are_named() -> None:
    prompt = sample_prompt([1, 2, 3], NAMES, random.Random(0), replace(BUDGET, max_tokens=5))
    assert len(prompt.dropped) == 1
    assert {*prompt.dropped, *prompt.spans} == {1, 2, 3}


def test_a_name_that_never_fits_does_not_keep_others_out() -> None:
    names = {1: "red", 2: "()", 3: "green blue green blue green blue", 4: "disc"}
    budget = Budget.of(names, wordpiece(8))
    for seed in range(30):
        prompt = sample_prompt([1, 2, 3], names, random.Random(seed), budget)
        assert prompt.spans.keys() == {1, 4}
        assert prompt.dropped == (2, 3)


@pytest.mark.parametrize("tokenizer", [wordpiece(64), clip(64)])
@pytest.mark.parametrize("rule", ["paper", "reference"])
def test_no_sampled_prompt_is_too_long(tokenizer: Tokenizer, rule: str) -> None:
    rng = random.Random(0)
    names = {n: " ".join(rng.choices([*WORDS, "zoo", "u.s.", "é"], k=rng.randint(1, 4))) for n in range(200)}
    budget = Budget.of(names, tokenizer, rule="reference" if rule == "reference" else "paper")
    prompts = [sample_prompt(rng.sample(range(200), 5), names, random.Random(seed), budget) for seed in range(300)]
    encodings = tokenizer([prompt.text for prompt in prompts])
    assert not any(encoding.cut for encoding in encodings)
    assert max(len(encoding.ids) for encoding in encodings) > 55


def test_the_reference_draws_85_and_discards_what_is_present() -> None:
    present, roomy = range(1, 61), replace(REFERENCE, max_tokens=1000)
    counts = [len(sample_prompt(present, NAMES, random.Random(seed), roomy).spans) - 60 for seed in range(1000)]
    # 240 of 300 are absent: of 85 drawn 68 stay, of 1..85 drawn half as many; standard error 0.7.
    assert sum(counts) / len(counts) == pytest.approx((68 + 34.4) / 2, abs=2.5)


def test_the_reference_names_more_than_85_categories() -> None:
    assert max(len(sample_prompt([1, 2], NAMES, random.Random(s), REFERENCE).spans) for s in range(20)) in (86, 87)


def test_half_of_the_references_prompts_are_full() -> None:
    full = sum(len(sample_prompt([], NAMES, random.Random(seed), REFERENCE).spans) == 85 for seed in range(2000))
    assert full == pytest.approx(1012, abs=90)


@pytest.mark.parity
def test_a_training_prompt_is_joined_as_by_the_reference(unit_facts: dict[str, Any]) -> None:
    cases = [case for case in unit_facts["od_to_grounding_sampled"] if "0" not in case["label_to_positions"]]
    assert cases  # in the others the reference drew its background class, which is no category
    for case in cases:
        chosen = [(int(label), case["ind_to_class"][label]) for label in case["label_to_positions"]]
        prompt = build_prompt(chosen)
        assert prompt.text == case["caption"]
        assert [[list(prompt.spans[label])] for label in case["box_labels"]] == case["tokens_positive"]


def test_real_vocabularies_are_named_whole(test_data: Path) -> None:
    folder = test_data / "text"
    lines = (folder / "bert-base-uncased-vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    entries = json.loads((folder / "names" / "lvis_v1_1203.json").read_text(encoding="utf-8"))
    names = [(entry["id"], entry["name"]) for entry in entries]
    tokenizer = WordPiece(lines, 256)
    for most, fewest in ((40, 31), (None, 10)):
        prompts = chunk_prompts(names, tokenizer, most)
        assert [c for prompt in prompts for c in prompt.spans] == [category for category, _ in names]
        assert fewest <= len(prompts) <= 31
        assert not any(encoding.cut for encoding in tokenizer([prompt.text for prompt in prompts]))
