"""Texts that tell left from right, and what becomes of them in a mirror."""

import re
from collections.abc import Sequence

from glipv2.text.tokenizer import CharSpan

SIDES = re.compile(r"\b(left|right)(?=(?:most|hand|handed|wards?)?\b)", re.IGNORECASE)
OTHER = {"left": "right", "right": "left"}


def speaks_of_sides(text: str) -> bool:
    """Tell whether a text would be wrong of the mirrored image."""
    return SIDES.search(text) is not None


def swap_sides(text: str, spans: Sequence[CharSpan]) -> tuple[str, list[CharSpan]]:
    """Put right for left and left for right, and move spans along with the characters they mean.

    Case is kept: of a word, its first letter, and all letters if they were capitals.
    """
    swapped = SIDES.sub(lambda match: _swap(match[0]), text)
    grown = [(match.end(), len(OTHER[match[0].lower()]) - len(match[0])) for match in SIDES.finditer(text)]

    def moved(position: int) -> int:
        return position + sum(by for end, by in grown if end <= position)

    return swapped, [(moved(begin), moved(end)) for begin, end in spans]


def _swap(word: str) -> str:
    other = OTHER[word.lower()]
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
