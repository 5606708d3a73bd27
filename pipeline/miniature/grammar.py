"""The language of the miniature world: its words, and captions whose phrases are tied to what is drawn."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

BASE_NOUNS = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "arrow", "moon", "mushroom")
"""Nouns that have boxes in the training sets."""
NOVEL_NOUNS = ("heart", "drop", "flower", "house", "bolt", "fish")
"""Nouns that occur in web captions and tests only, neither drawn nor written anywhere else."""
GENERIC_NOUNS = ("shape", "thing", "object")
"""Words for any noun; only captions of the human-labelled mix can hold them, and only if the world is told so."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "", "big")
"""The middle size has no word."""
NUMBERS = ("", "a", "two", "three", "four", "five")
CATEGORY_WORDS = ("shape", "package")
"""Words of renamed categories in the miniature ODinW, on top of all the others."""

SILENT_CAPTIONS = ("untitled", "", "!!!", "click here for more", "thanks for looking", "...")
"""Web captions that name no object."""

WEB_FRAMES = (
    "{}", "{}", "{}", "{}", "photo of {}", "a photo of {}", "{} on a soft background", "stock illustration of {}",
    "handmade card with {}", "{} | wallpaper", "{} - free download", "my drawing of {}", "look at {}!",
    "close up of {}", "you can see {} in this picture", "we saw {} today", "for sale: {}", "vintage poster with {}",
    "{} by the window", "✨ {} ✨", "café print — {}", "{}, paper and ink", "pattern with {} for kids",
)  # fmt: skip
"""What surrounds the objects in a web caption; the sentences hold noun phrases without a box, as real ones do."""
QUOTED_FRAMES = ('"{}" art print', '"{} (detail)', 'new: "{}"')
"""Quotation marks as they are found in the wild; a reader that gives them a meaning loses rows."""
QUESTION_FRAMES = ("do you see {}?", "can you find {}?", "what is next to {}?")
SEPARATORS = (". ", ". ", "; ")


@dataclass(frozen=True, kw_only=True)
class Look:
    """What an object looks like, in words; two objects of one look are one phrase."""

    noun: str
    """Name of the shape, singular."""
    colour: str
    """One of `COLOURS`."""
    texture: str
    """One of `TEXTURES`."""
    size: str
    """One of `SIZES`."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A drawn object."""

    look: Look
    """Its words."""
    box: tuple[float, float, float, float]
    """The visible part: xyxy, pixels of the picture."""

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, x and y."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A mention in a caption and what it means."""

    begin: int
    """First character in the caption."""
    end: int
    """One past its last character."""
    members: tuple[int, ...]
    """Indices of the things it names; all things it could name."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A text and its phrases."""

    text: str
    """The whole caption."""
    phrases: tuple[Phrase, ...] = ()
    """In order of their first character."""


Piece = str | tuple[str, tuple[int, ...]]
"""Part of a caption under construction: plain words, or a phrase and the indices of its things."""


def plural(noun: str) -> str:
    """Say a noun for several."""
    if noun == "fish":
        return noun
    return noun + ("es" if noun.endswith("s") else "s")


def names_novel(text: str) -> bool:
    """Tell whether a phrase or the name of a category says a novel noun, in the singular or the plural."""
    novel = {*NOVEL_NOUNS, *map(plural, NOVEL_NOUNS)}
    return not novel.isdisjoint(_words(text))


def vocabulary(*, generic: bool = False) -> list[str]:
    """List every lower-case word a caption or category name can hold, sorted.

    Args:
        generic: whether captions may hold `GENERIC_NOUNS`.
    """
    nouns = BASE_NOUNS + NOVEL_NOUNS + (GENERIC_NOUNS if generic else ())
    relations = [words for words, _ in _RELATIONS]
    texts = [*nouns, *map(plural, nouns), *COLOURS, *TEXTURES, *SIZES, *NUMBERS, *CATEGORY_WORDS, *SILENT_CAPTIONS]
    texts += [*WEB_FRAMES, *QUOTED_FRAMES, *QUESTION_FRAMES, *relations, "an", "and", "with", "the"]
    return sorted({word for text in texts for word in _words(text)})


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def web_caption(rng: Random, things: Sequence[Thing], frames: Sequence[str] = WEB_FRAMES) -> Caption:
    """Write what a web page might say under the picture: most objects, some of their attributes, some noise."""
    groups = [group for group in _groups(rng, things) if rng.random() < 0.88] or _groups(rng, things)[:1]
    sentence = _sentence(rng, things, groups)
    before, after = rng.choice(frames).split("{}")
    case = rng.choices((str, _capitalised, str.title, str.upper), (72, 18, 7, 3))[0]
    return _assemble([before, *sentence, after], case)


def plain_caption(rng: Random, things: Sequence[Thing]) -> Caption:
    """Write a sentence about one to three looks of a picture and nothing around it."""
    groups = _groups(rng, things)
    return _assemble(_sentence(rng, things, groups[: rng.randint(1, 3)]), _capitalised)


def gold_caption(rng: Random, things: Sequence[Thing], generic_share: float = 0.0) -> Caption:
    """Write a caption as in the human-labelled mix: a sentence, a question, or several expressions packed into one.

    A packed caption may name an object twice, so that it has several spans. ``generic_share`` is the probability that a
    phrase says a generic noun where its other words are enough.
    """
    say = partial(_sentence, rng, things, generic_share=generic_share)
    groups = _groups(rng, things)
    kind = rng.random()
    if kind < 0.4:
        return _assemble(say(groups))
    if kind < 0.55:
        before, after = rng.choice(QUESTION_FRAMES).split("{}")
        return _assemble([before, *say(groups[:2]), after])
    separator = rng.choice(SEPARATORS)
    expressions = [say([group]) for group in groups]
    if len(groups) > 1:
        expressions.append(say(rng.sample(groups, 2), definite=True))
    pieces: list[Piece] = []
    for expression in expressions:
        pieces += [separator, *expression] if pieces else expression
    return _assemble(pieces)


def _groups(rng: Random, things: Sequence[Thing]) -> list[tuple[int, ...]]:
    """Put things of one look together, in random order."""
    members: dict[Look, list[int]] = {}
    for index, thing in enumerate(things):
        members.setdefault(thing.look, []).append(index)
    groups = [tuple(indices) for indices in members.values()]
    rng.shuffle(groups)
    return groups


def _sentence(
    rng: Random,
    things: Sequence[Thing],
    groups: Sequence[tuple[int, ...]],
    *,
    definite: bool = False,
    generic_share: float = 0.0,
) -> list[Piece]:
    """Join the phrases of some groups: by a true relation where two are left, else by commas and "and"."""
    say = partial(_describe, rng, things, definite=definite, generic_share=generic_share)
    phrases: list[Piece] = [(say(group), group) for group in groups]
    if len(phrases) == 1:
        return phrases
    relation = _relation(rng, things, groups[-2], groups[-1])
    pieces: list[Piece] = []
    for phrase in phrases[:-2]:
        pieces += [phrase, ", "]
    return [*pieces, phrases[-2], f" {relation} ", phrases[-1]]


def _describe(
    rng: Random, things: Sequence[Thing], group: tuple[int, ...], *, definite: bool, generic_share: float
) -> str:
    """Say a phrase that fits the group and nothing else in the picture."""
    look = things[group[0]].look
    novel = look.noun in NOVEL_NOUNS
    says_colour = rng.random() < (0.92 if novel else 0.8)
    says_texture = rng.random() < (0.1 if look.texture == "plain" else 0.8)
    says_size = rng.random() < 0.35 and look.size != ""  # what is not said tells nothing apart
    noun = rng.choice(GENERIC_NOUNS) if generic_share and rng.random() < generic_share else look.noun

    def fits(other: Look) -> bool:
        return (
            (noun != look.noun or other.noun == look.noun)
            and (not says_colour or other.colour == look.colour)
            and (not says_texture or other.texture == look.texture)
            and (not says_size or other.size == look.size)
        )

    def num_meant() -> int:
        return sum(fits(thing.look) for thing in things)

    if num_meant() > len(group):
        says_colour = says_texture = True
    if num_meant() > len(group):
        noun = look.noun
    name = noun if len(group) == 1 else plural(noun)
    said = ((look.size, says_size), (look.texture, says_texture), (look.colour, says_colour), (name, True))
    words = " ".join(word for word, says in said if word and says)
    article = "the" if definite else NUMBERS[len(group)]
    if article == "a" and words[0] in "aeiou":
        article = "an"
    return f"{article} {words}"


def _relation(rng: Random, things: Sequence[Thing], ours: tuple[int, ...], theirs: tuple[int, ...]) -> str:
    """Choose words between two groups that are true in the picture."""
    here, there = ([things[index].centre for index in group] for group in (ours, theirs))
    true = [words for words, (axis, sign) in _RELATIONS if _is_beyond(here, there, axis, sign)]
    if true and rng.random() < 0.7:
        return rng.choice(true)
    return rng.choice(("and", "and", "with"))


def _is_beyond(
    here: Sequence[tuple[float, float]], there: Sequence[tuple[float, float]], axis: int, sign: int, margin: float = 12
) -> bool:
    """Tell whether all of ``here`` lies clearly on one side of all of ``there``."""
    return min(sign * a[axis] - sign * b[axis] for a in here for b in there) > margin


_RELATIONS = (
    ("left of", (0, -1)),
    ("to the left of", (0, -1)),
    ("right of", (0, 1)),
    ("to the right of", (0, 1)),
    ("above", (1, -1)),
    ("over", (1, -1)),
    ("below", (1, 1)),
    ("under", (1, 1)),
)
"""Words, the axis they are about, and the sign that makes "further" positive (y grows downwards)."""


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _assemble(pieces: Sequence[Piece], case: Callable[[str], str] = str) -> Caption:
    """Join the pieces and note where the phrases came to lie; ``case`` must keep the number of characters."""
    text, phrases = "", []
    for piece in pieces:
        words, members = (piece, ()) if isinstance(piece, str) else piece
        if members:
            phrases.append(Phrase(begin=len(text), end=len(text) + len(words), members=members))
        text += words
    return Caption(text=case(text), phrases=tuple(phrases))
