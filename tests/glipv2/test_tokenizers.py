"""The three tokenizers: offsets, ids as transformers has them, saving and loading, and learning a vocabulary."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BertTokenizer, CLIPTokenizer

from glipv2.text.positive_map import tokens_of_span
from glipv2.text.tokenizer import (
    CLIP_MASK_ID,
    END,
    START,
    ClipBPE,
    Encoding,
    Tokenizer,
    WordPiece,
    load_tokenizer,
    make_vocabulary,
    train_vocabulary,
)

TEXTS = [
    "A red  ring,\n left of the BLUE star.",
    "it's the café's 1984 t-shirt... isn't it?!",
    "U.S.. dog. 犬と猫 🐶🐶 naïve İstanbul",
    "  \t ",
    "",
    "an <|endoftext|> inside",
    "cafe\u0301 ½ ﬁre e\u200bx",
]
PLAIN = TEXTS[:5]
MERGES = [("r", "e"), ("re", "d</w>"), ("r", "i"), ("ri", "n"), ("rin", "g</w>"), (".", ".</w>")]


def clip_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    return {token: number for number, token in enumerate(tokens)}


def transformers_clip(merges: Any) -> CLIPTokenizer:
    return CLIPTokenizer(clip_vocabulary(merges), merges)  # takes pairs, though it declares strings


@pytest.fixture(scope="session")
def small() -> ClipBPE:
    return ClipBPE(clip_vocabulary(MERGES), MERGES, 77)


@pytest.fixture(scope="session")
def released_merges(test_data: Path) -> list[tuple[str, str]]:
    with gzip.open(test_data / "text" / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")[1 : 49408 - 512 - 2 + 1]
    return [(first, second) for first, second in (line.split() for line in lines)]


@pytest.fixture(scope="session")
def released(released_merges: list[tuple[str, str]]) -> ClipBPE:
    return ClipBPE(clip_vocabulary(released_merges), released_merges, 77)


def words(encoding: Encoding, text: str) -> list[str]:
    return [text[begin:end] for begin, end in encoding.offsets[1:-1]]


def test_clip_tokens_know_their_characters(small: ClipBPE) -> None:
    text = "  Red \n\n RING,é🐶 red.. "
    encoding = small([text])[0]
    # An accented letter is two bytes and an emoji four, each a token of the whole character.
    assert words(encoding, text) == ["Red", "RING", ",", "é", "é", *["🐶"] * 4, "red", ".."]
    assert encoding.offsets[0] == encoding.offsets[-1] == (0, 0)
    assert (encoding.ids[0], encoding.ids[-1]) == (small.pad_id - 1, small.pad_id)


def test_a_span_covers_every_byte_of_its_characters(small: ClipBPE) -> None:
    text = "red 🐶, é"
    assert tokens_of_span(small([text])[0].offsets, (0, 5)) == [1, 2, 3, 4, 5]
    assert tokens_of_span(small([text])[0].offsets, (4, 8)) == [2, 3, 4, 5, 6, 7, 8]


def test_letters_that_change_their_length_do_not_shift_clip_offsets(small: ClipBPE) -> None:
    text = "cafe\u0301 İ red"  # a composed accent shortens, the lower case of the dotted capital lengthens
    assert words(small([text])[0], text)[-1] == "red"


def test_clip_ids_are_those_of_transformers(released: ClipBPE, released_merges: list[tuple[str, str]]) -> None:
    theirs = transformers_clip(released_merges)
    for text in PLAIN:
        assert released([text])[0].ids == theirs(text)["input_ids"], text


def test_the_references_mask_is_an_emoji_of_the_released_vocabulary(released: ClipBPE) -> None:
    assert (released.mask_id, released.vocab_size, released.pad_id) == (CLIP_MASK_ID, 49408, 49407)
    assert released(["💑"])[0].ids[1:-1] == [CLIP_MASK_ID]


def test_a_small_clip_vocabulary_masks_with_its_last_word(small: ClipBPE) -> None:
    assert small.mask_id == small.vocab_size - 3
    assert small([".."])[0].ids[1:-1] == [small.mask_id]
    assert ClipBPE(clip_vocabulary(MERGES), MERGES, 8, mask_id=7).mask_id == 7


def test_a_long_clip_text_is_cut_and_still_ends_properly() -> None:
    short = ClipBPE(clip_vocabulary(MERGES), MERGES, 5)
    cut, whole = short(["red red red red", "red red red"])
    assert len(cut.ids) == len(whole.ids) == 5
    assert cut.ids[-1] == short.pad_id
    assert (cut.cut, whole.cut) == (True, False)


def test_a_caption_cannot_end_a_clip_text_early(small: ClipBPE) -> None:
    assert small.pad_id not in small([f"red {END} ring"])[0].ids[1:-1]


def test_a_clip_vocabulary_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"give CLIP's vocab\.json"):
        ClipBPE({"a": 0, START: 1}, [], 8)


def test_merges_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="'x yz' is not in the vocabulary"):
        ClipBPE(clip_vocabulary(MERGES), [*MERGES, ("x", "yz")], 8)


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_a_limit_that_holds_no_word_is_refused(max_tokens: int) -> None:
    for build in (
        lambda: WordPiece(make_vocabulary([]), max_tokens),
        lambda: ClipBPE(clip_vocabulary([]), [], max_tokens),
    ):
        with pytest.raises(ValueError, match="give at least 3"):
            build()


def test_bert_ids_are_those_of_transformers(test_data: Path) -> None:
    lines = (test_data / "text" / "bert-base-uncased-vocab.txt").read_text(encoding="utf-8").removesuffix("\n")
    ours, vocabulary = WordPiece(lines.split("\n"), 64), {t: i for i, t in enumerate(lines.split("\n"))}
    theirs = BertTokenizer(vocab=vocabulary)
    for text in TEXTS:
        assert ours([text])[0].ids == theirs(text)["input_ids"], text
    assert (ours.pad_id, ours.mask_id, ours.vocab_size) == (0, 103, 30522)


@pytest.fixture(params=["wordpiece", "clip"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tokenizer, Path]:
    made: Tokenizer = WordPiece(make_vocabulary(["red", "\u2028"]), 8)
    if request.param == "clip":
        made = ClipBPE(clip_vocabulary(MERGES), MERGES, 8, mask_id=300)
    made.save(tmp_path)
    return made, tmp_path


def test_a_saved_tokenizer_is_the_same_when_loaded(saved: tuple[Tokenizer, Path]) -> None:
    made, folder = saved
    loaded = load_tokenizer(folder, made.max_tokens)
    assert type(loaded) is type(made)
    assert loaded(TEXTS) == made(TEXTS)
    for name in ("pad_id", "mask_id", "vocab_size", "max_tokens"):
        assert getattr(loaded, name) == getattr(made, name)


def test_a_clip_tokenizer_written_by_transformers_loads(small: ClipBPE, tmp_path: Path) -> None:
    transformers_clip(MERGES).save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    loaded = load_tokenizer(tmp_path, 77)
    assert loaded(TEXTS) == small(TEXTS)
    assert loaded.mask_id == small.mask_id


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer at .*give a vocab\.txt, or a folder"):
        load_tokenizer(tmp_path, 8)


@pytest.mark.parametrize("damage", ["a b c\n", "\n"])
def test_damaged_merges_are_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(clip_vocabulary([])), encoding="utf-8")
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{damage}", encoding="utf-8")
    with pytest.raises(ValueError, match="save it again"):
        load_tokenizer(tmp_path, 8)


CORPUS = [
    "Red squares and discs",
    "a squared disc",
    "the red disc, été!",
    "redder red ñandú",
    "привет привет 犬 犬",
] * 3


def test_a_learned_vocabulary_knows_frequent_words_and_spells_the_rest() -> None:
    vocabulary = train_vocabulary(CORPUS, 220)
    assert len(vocabulary) == len(set(vocabulary)) <= 220
    assert {"red", "disc", "squared", "привет"} <= set(vocabulary)
    tokenizer = WordPiece(vocabulary, 32)
    encoding = tokenizer(["red disc quux zebra 犬"])[0]
    assert vocabulary.index("[UNK]") not in encoding.ids
    assert [vocabulary[i] for i in encoding.ids[1:3]] == ["red", "disc"]


def test_the_order_of_the_corpus_does_not_change_the_vocabulary() -> None:
    shuffled = random.Random(0).sample(CORPUS, len(CORPUS))
    assert train_vocabulary(shuffled, 180) == train_vocabulary(iter(CORPUS), 180)


def test_another_process_learns_the_same_vocabulary() -> None:
    # Hash tables are seeded per process, and the trainer of the library walks one.
    code = f"from glipv2.text.tokenizer import train_vocabulary as t; print(ascii(t({CORPUS!r}, 200)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == ascii(train_vocabulary(CORPUS, 200))


def test_a_vocabulary_smaller_than_the_letters_is_refused() -> None:
    with pytest.raises(ValueError, match="size is 20 but single letters take"):
        train_vocabulary(CORPUS, 20)
