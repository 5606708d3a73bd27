"""Captions: cleaning, reasons to refuse one, its noun phrases with exact character spans, and who is meant twice.

Words are matched once, left to right, so every span is right by construction; nothing is ever searched for in the
caption again. Each word gets a part-of-speech tag from the lexicon that textblob carries (nothing to download), each
tag one letter, and the chunk grammar ``determiner? adjective* noun+`` is a pattern over those letters.
"""

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Literal, Protocol, runtime_checkable

GRAMMAR_VERSION = 2
"""Raise it with every change that can move a span: shards of another version are other shards."""

NO_OBJECTS = (
    "background", "close-up", "closeup", "day", "foreground", "illustration", "image", "kind", "lot", "lots", "night",
    "number", "part", "photo", "photograph", "picture", "scene", "shot", "side", "sort", "stock", "time", "type",
    "variety", "vector", "view", "way",
)  # fmt: skip
PLACES = (
    "back", "behind", "below", "bottom", "center", "centre", "close", "dark", "front", "inside", "left", "middle",
    "next", "other", "outside", "right", "same", "top", "up",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PhraseConfig:
    """How captions are accepted and cut into phrases."""

    parser: Literal["pattern", "spacy"] = "pattern"
    """What finds the phrases: the lexicon and chunk grammar of this module, or spaCy's noun chunks."""
    spacy_model: str = "en_core_web_sm"
    """Installed spaCy model, or a folder with one; only the spaCy parser reads it."""
    merge_repeats: bool = True
    """Take mentions of the same words for one entity ("a dog ... the dog"), whose boxes belong to all of them."""
    keep_determiner: bool = False
    """Let a span begin at its determiner ("the red ring"), as GLIP's demo does, instead of after it."""
    stop_nouns: tuple[str, ...] = NO_OBJECTS
    """Lower-case nouns that are no object: a phrase ending in one ("white background") is dropped."""
    stop_phrases: tuple[str, ...] = PLACES
    """Lower-case phrases dropped when they stand alone: "top" is dropped, "blue top" is kept."""
    min_words: int = 1
    """Captions with fewer words are refused; 3 for web captions."""
    max_chars: int = 2000
    """Captions with more characters after cleaning are refused."""

    def __post_init__(self) -> None:
        """Check the limits."""
        if self.min_words < 1:
            raise ValueError(f"min_words is {self.min_words}, allowed: 1 or more; 1 accepts every caption with a word")
        if self.max_chars < 1:
            raise ValueError(f"max_chars is {self.max_chars}, allowed: 1 or more; the default is 2000")

    def is_object(self, phrase: str) -> bool:
        """Tell whether a phrase without its determiner is worth a box."""
        words = phrase.lower().split()
        if len(phrase) == 1 or words[-1] in self.stop_nouns or words[-1].removesuffix("s") in self.stop_nouns:
            return False
        return not _PRONOUNS.union(self.stop_phrases).issuperset(words)


@dataclass(frozen=True)
class Phrase:
    """One mention of a noun phrase: ``caption[begin:end] == text``."""

    begin: int
    end: int
    text: str
    lemma: str
    """What mentions of one thing have in common (`lemma_of`)."""


@runtime_checkable
class PhraseParser(Protocol):
    """Anything that finds the noun phrases of a caption: in order, without overlap, every mention by itself."""

    @property
    def name(self) -> str:
        """Name stored with every row it labels."""

    @property
    def version(self) -> str:
        """Version stored with every row: the same version finds the same spans."""

    def __call__(self, caption: str) -> list[Phrase]:
        """Find the noun phrases of a caption."""


@dataclass(frozen=True)
class PatternParser:
    """Noun phrases by a lexicon tagger and a chunk grammar; holds only its configuration, so it pickles anywhere."""

    config: PhraseConfig

    @property
    def name(self) -> str:
        """Name stored with every row it labels."""
        return "pattern"

    @property
    def version(self) -> str:
        """Grammar and lexicon versions."""
        return f"{GRAMMAR_VERSION}+textblob{version('textblob')}"

    def __call__(self, caption: str) -> list[Phrase]:
        """Find the noun phrases of a caption."""
        tokens = [(match.start(), match.end()) for match in _TOKEN.finditer(caption)]
        letters = _letters([caption[begin:end].lower().replace("\u2019", "'") for begin, end in tokens])
        found = []
        for chunk in _NOUN_PHRASE.finditer(letters):
            first = chunk.start("determiner" if self.config.keep_determiner else "body")
            whole, body, begin = (tokens[i][0] for i in (chunk.start(), chunk.start("body"), first))
            end = tokens[chunk.end() - 1][1]
            if self.config.is_object(caption[body:end]):
                found.append(Phrase(begin, end, caption[begin:end], lemma_of(caption[whole:end])))
        return found


def make_parser(config: PhraseConfig) -> PhraseParser:
    """Make the parser that a configuration asks for.

    Raises:
        ValueError: spaCy or its model is not installed.
    """
    if config.parser == "spacy":
        from glipv2.text.spacy_phrases import SpacyParser  # spaCy need not be installed

        return SpacyParser(config)
    return PatternParser(config)


def lemma_of(phrase: str) -> str:
    """Reduce a phrase with its determiner to what its repetitions share: lower case, no article, no plural -s.

    Cautious: whose it is ("his dog") and how many ("two dogs") stay, and so does every plural that is not a bare -s.
    """
    words = phrase.lower().split()
    words = words[1:] if len(words) > 1 and words[0] in _ARTICLES else words
    last = words[-1]
    return " ".join([*words[:-1], last if last.endswith(("ss", "us", "is")) else last.removesuffix("s")])


def number_entities(phrases: Sequence[Phrase], config: PhraseConfig) -> list[int]:
    """Give every phrase of a caption the number of its entity, from 0 in the order of first mentions."""
    if not config.merge_repeats:
        return list(range(len(phrases)))
    numbers: dict[str, int] = {}
    return [numbers.setdefault(phrase.lemma, len(numbers)) for phrase in phrases]


def clean_caption(caption: str | None) -> str:
    """Make one tidy line: NFKC, no HTML, no control or invisible characters, no web addresses, single blanks."""
    text = html.unescape(_TAG.sub(" ", _NAME.sub("person", caption or "")))
    text = unicodedata.normalize("NFKC", _ADDRESS.sub(" ", _TAG.sub(" ", text)))
    kept = ("" if unicodedata.category(c) in _INVISIBLE and not c.isspace() else c for c in text)
    return " ".join("".join(kept).split())


def caption_reason(caption: str | None, config: PhraseConfig) -> str | None:
    """Say why a cleaned caption cannot be used, or None if it can."""
    if not caption or caption.isspace():
        return "empty_caption"
    if len(caption) > config.max_chars:
        return "caption_too_long"
    words = sum(any(map(str.isalnum, word)) for word in caption.split())
    return "caption_too_short" if words < config.min_words else None


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NAME = re.compile(r"<PERSON>")  # what Conceptual 12M writes for people's names
_TAG = re.compile(r"</?[A-Za-z!][^<>]*>")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_INVISIBLE = frozenset({"Cc", "Cf", "Cs"})  # not Cn: what is unassigned differs between Python versions

_TOKEN = re.compile(
    r"""['\u2019]s\b                                    # possessive or "is", a word by itself
    |[^\W_]+(?:[-'\u2019][^\W_]+)*?(?=['\u2019]s\b)     # the word before it
    |[^\W_]+(?:[-'\u2019][^\W_]+)*                      # t-shirt, don't
    |\S                                                 # any other sign, alone
    """,
    re.VERBOSE,
)

_PRONOUNS = _words(
    "anybody anyone anything everybody everyone everything nobody none nothing one ones somebody someone something "
    "i you he she it we they me him us them himself herself itself themselves"
)
_ARTICLES = _words("a an the this that these those some")
_RELATIONS = _words("back bottom center centre front left middle next right side top")
"""No noun when "of" or "to" follows: "a star left of a ring"."""

# The alphabet of the grammar.
# D a, the, his   E some, this   # two   A adjective   R adverb   P participle in -ed   G in -ing   C and   K comma
# N noun   S plural noun   H man, dog   W men, dogs   M cyan, giant   V verb   Z verb in -s   F covered   L looking
# B building (a noun or a verb)   X is, has   T to   I in, on   . all else
_BY_WORD = {
    letter: _words(words)
    for letter, words in {
        "D": "a an the",
        "C": "and &",
        "K": ",",
        "T": "to",
        "I": "atop onto whilst",
        "N": "bear sink top",
        "H": "animal baby bird boy cat child couple dog girl group guy horse kid lady man person player team woman",
        "W": "animals babies birds boys cats children dogs girls guys horses kids ladies men people players women",
        "M": "amber beige bronze coral crimson cyan giant gold gradient indigo ivory lavender lime magenta maroon "
        "medium mini miniature navy olive silver teal turquoise violet",  # nouns to the tagger
        "F": "colored coloured covered filled lined patterned shaped sized strewn themed topped",
        "L": "looking",
        "X": "am are be been being did do does had has have is was were 's",
        ".": "that today tomorrow tonight which who yesterday",
    }.items()
}
_BY_TAG = {
    "DT": "E", "PDT": "E", "PRP$": "D", "CD": "#", "JJ": "A", "RB": "R", "IN": "I", "RP": "I", "VBN": "P", "VBD": "P",
    "VBG": "G", "VB": "V", "VBP": "V", "VBZ": "Z", "MD": "V", "NN": "N", "NNS": "S",
}  # fmt: skip
_REPAIRS = [
    (re.compile(r"(?<=[HWX])B"), "G"),  # a girl is reading
    (re.compile(r"B"), "N"),
    (re.compile(r"M(?=[A#PFM]*[NSHWVZ])"), "A"),  # cyan dotted rings
    (re.compile(r"^Z|(?<=I)Z(?=[CIKT.]|$)"), "S"),  # crosses above rings
    (re.compile(r"(?<=A)L"), "A"),  # strange looking birds
    (re.compile(r"(?<=N)F(?=[NS])"), "N"),  # a snow covered hill
    (re.compile(r"(?<=[D#APF])[VZ]"), "N"),  # a stop sign, dead leaves
    (re.compile(r"(?<=N)V(?=[.KCVZGPX]|$)"), "N"),  # a teddy bear sits
    (re.compile(r"(?<=[NHM])S(?=[DE])"), "V"),  # a tractor strikes a pole
    (re.compile(r"(?<=[SWT])N(?=[DE])"), "V"),  # officers exit the car, to score a goal
    (re.compile(r"(?<=H)S(?=[ITRK.]|$)|(?<=W)N(?=[ITR])"), "V"),  # a dog leaps over, men hike up
]
"""What the tagger, which looks at single words, takes wrongly; applied in this order."""

_NOUN_PHRASE = re.compile(
    r"""(?P<determiner>[DE]?)
    (?P<body>
        (?:(?<=D)R(?=A))?                                       # very big
        (?:(?:[A\#]|(?<![NSHWMVZ])[PF]|(?<=D)G)                 # two, striped, a swimming
           (?:CA|(?<=[DE\#]A)KA){0,3}){0,10}                    # red and green; a large, brown
        [NSHWM]+
    |   (?<=D)A(?:C?A){0,5}(?![A\#NSHWMR]|[CK]A)                # a blonde: the adjective is the noun
    )""",
    re.VERBOSE,
)


def _letters(words: list[str]) -> str:
    """Write one letter of the grammar per lower-case word."""
    tagged = zip(_tagger().find_tags(words), [*words, ""][1:], strict=True)
    letters = "".join(_letter(word, tag, following) for (word, tag), following in tagged)
    for pattern, letter in _REPAIRS:
        letters = pattern.sub(letter, letters)
    return letters


def _letter(word: str, tag: str, following: str) -> str:
    """Give a word its letter: by what it is, else by its tag."""
    if word.endswith("n't") or (word in _RELATIONS and following in {"of", "to"}):
        return "."
    for letter, members in _BY_WORD.items():
        if word in members:
            return letter
    if not any(map(str.isalpha, word)):
        return "#" if word.isdigit() else "."
    if "-" in word and word not in _tagger().lexicon:  # a t-shirt is what a shirt is
        tag = _tagger().lexicon.get(word.rpartition("-")[2], tag)
    if tag == "NN" and word.endswith("ing") and not set("aeiouy").isdisjoint(word[:-3]):  # no ring, string or swing
        return "B"
    return _BY_TAG.get(tag, _BY_TAG.get(tag[:2], "."))


@cache
def _tagger() -> Any:
    from textblob.en import parser  # two seconds, which only those who parse should spend

    return parser
