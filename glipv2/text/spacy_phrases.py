"""Noun phrases by spaCy, where it and one of its models are installed."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from glipv2.text.phrases import GRAMMAR_VERSION, Phrase, PhraseConfig, lemma_of


@dataclass(frozen=True)
class SpacyParser:
    """spaCy's noun chunks, cut and refused by the same rules as those of `glipv2.text.phrases.PatternParser`.

    Holds only its configuration, so it pickles wherever the model is installed. One thread at a time.
    """

    config: PhraseConfig

    def __post_init__(self) -> None:
        """Load the model.

        Raises:
            ValueError: spaCy or the model is not installed, or it finds no noun chunks.
        """
        _pipeline(self.config.spacy_model)

    @property
    def name(self) -> str:
        """Name stored with every row it labels."""
        return "spacy"

    @property
    def version(self) -> str:
        """Versions of our rules, of spaCy and of its model."""
        about = _pipeline(self.config.spacy_model).meta
        return f"{GRAMMAR_VERSION}+spacy{version('spacy')}+{about['lang']}_{about['name']}{about['version']}"

    def __call__(self, caption: str) -> list[Phrase]:
        """Find the noun phrases of a caption."""
        found = []
        for chunk in _pipeline(self.config.spacy_model)(caption).noun_chunks:
            words = [word for word in chunk if not (word.is_space or word.is_punct)]
            body = words[_count_determiners(words) :]
            if not body or chunk.root.pos_ == "PRON":
                continue
            whole, first, end = words[0].idx, body[0].idx, body[-1].idx + len(body[-1])
            begin = whole if self.config.keep_determiner else first
            named = caption[first:end]
            if any(map(str.isalpha, named)) and self.config.is_object(named):
                found.append(Phrase(begin, end, caption[begin:end], lemma_of(caption[whole:end])))
        return found


def _count_determiners(words: list[Any]) -> int:
    """Count the words before the first that is neither a determiner nor a possessive."""
    return next((i for i, word in enumerate(words) if word.pos_ not in ("DET", "PRON")), len(words))


@cache
def _pipeline(model: str) -> Any:
    try:
        import spacy
    except ImportError as error:
        raise ValueError("spaCy is not installed; run pip install spacy, or use the parser 'pattern'") from error
    try:
        pipeline = spacy.load(model, exclude=["ner"])
    except OSError as error:
        raise ValueError(
            f"no spaCy model {model!r} is installed; run python -m spacy download {model}, give the folder of one, or "
            "use the parser 'pattern'"
        ) from error
    try:
        list(pipeline("A dog sees a ball.").noun_chunks)
    except (NotImplementedError, ValueError) as error:  # spaCy's words for a language, a pipeline without noun chunks
        raise ValueError(
            f"the spaCy model {model!r} finds no noun chunks; give one with a parser, as en_core_web_sm"
        ) from error
    return pipeline
