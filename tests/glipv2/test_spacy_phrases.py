import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from glipv2.text.phrases import Phrase, PhraseConfig, PhraseParser, make_parser, number_entities
from glipv2.text.spacy_phrases import SpacyParser

spacy = pytest.importorskip("spacy", reason="spaCy is not installed")

CLASSES = {
    **dict.fromkeys(["a", "the", "both"], "DET"),
    **dict.fromkeys(["his", "it", "she"], "PRON"),
    **dict.fromkeys(["red", "big", "white"], "ADJ"),
    **dict.fromkeys(["two"], "NUM"),
    **dict.fromkeys(["chases", "sees"], "VERB"),
    **dict.fromkeys([".", ",", '"'], "PUNCT"),
}


@spacy.Language.component("test_grammar")
def grammar(doc: Any) -> Any:
    """Stand for a tagger and a parser: nouns hang on the verb, all before them on the next noun."""
    nouns = []
    for word in doc:
        word.pos_ = CLASSES.get(word.lower_, "SPACE" if word.is_space else "NOUN")
        if word.pos_ == "NOUN" or word.lower_ in ("it", "she"):
            nouns.append(word)
    verb = next((word for word in doc if word.pos_ == "VERB"), doc[0])
    for word in doc:
        following = next((noun for noun in nouns if noun.i >= word.i), verb)
        word.head = verb if word in nouns or word.pos_ in ("VERB", "PUNCT", "SPACE") else following
        word.dep_ = "ROOT" if word == verb else ("dobj" if word in nouns else "det")
    return doc


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    pipeline = spacy.blank("en", meta={"name": "tiny_test", "version": "1.2.3"})
    pipeline.add_pipe("test_grammar")
    folder = tmp_path_factory.mktemp("spacy") / "model"
    pipeline.to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def parser(model: str) -> PhraseParser:
    return make_parser(PhraseConfig(parser="spacy", spacy_model=model))


def texts(phrases: list[Phrase]) -> list[str]:
    return [phrase.text for phrase in phrases]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("The big dog chases a red ball.", ["big dog", "red ball"]),
        ("both his dog sees two balls", ["dog", "two balls"]),
        ("She sees a dog", ["dog"]),
        ("a dog sees it", ["dog"]),
        ('a  dog sees "the   ball"', ["dog", "ball"]),
        ("the picture sees the left", []),
        ("the 7 sees", []),
    ],
)
def test_noun_chunks_follow_the_rules_of_phrases(parser: PhraseParser, caption: str, expected: list[str]) -> None:
    phrases = parser(caption)
    assert texts(phrases) == expected
    assert [caption[phrase.begin : phrase.end] for phrase in phrases] == expected


def test_determiner_is_kept_on_request(model: str) -> None:
    config = PhraseConfig(parser="spacy", spacy_model=model, keep_determiner=True)
    phrases = make_parser(config)("The big dog chases a ball, the big dogs.")
    assert texts(phrases) == ["The big dog", "a ball", "the big dogs"]
    assert number_entities(phrases, config) == [0, 1, 0]


def test_name_and_version_tell_spacy_and_its_model(parser: PhraseParser) -> None:
    assert isinstance(parser, PhraseParser)
    assert parser.name == "spacy"
    assert parser.version.endswith(f"+spacy{spacy.__version__}+en_tiny_test1.2.3")


def test_pickled_parser_finds_the_same(parser: PhraseParser) -> None:
    assert pickle.loads(pickle.dumps(parser))("a red ball") == parser("a red ball")


def test_a_model_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no spaCy model 'en_no_such' is installed; run python -m spacy download"):
        SpacyParser(PhraseConfig(spacy_model="en_no_such"))


def test_a_model_without_a_parser_is_refused(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match=r"finds no noun chunks; give one with a parser"):
        SpacyParser(PhraseConfig(spacy_model=str(tmp_path / "blank")))


def test_missing_spacy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match=r"spaCy is not installed; run pip install spacy, or use the parser 'pattern'"):
        make_parser(PhraseConfig(parser="spacy", spacy_model="en_other"))
