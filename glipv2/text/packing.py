"""Captions of other images packed around an image's own, so that a model also sees sentences that are not true of it.

Source: GLIP appendix C (probability 0.4: none, 0.3: 19 of them, 0.3: any number from 1 to 19).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from glipv2.text.tokenizer import NUM_AROUND, Tokenizer

ALONE, FULL = 0.4, 0.3
MAX_NEGATIVES = 19


@dataclass(frozen=True, kw_only=True)
class PackedCaption:
    """An image's caption among others."""

    text: str
    """All of them, shuffled, each ending in a point."""
    begin: int
    """Where the image's own begins: its spans move by so many characters."""


def pack_captions(positive: str, negatives: Sequence[str], rng: random.Random, tokenizer: Tokenizer) -> PackedCaption:
    """Pack a caption with random others, as far as the tokens reach.

    The image's own caption always has room first; the first other one that does not fit ends the packing. One that
    says the same as the image's own is skipped.

    Args:
        positive: the image's own caption; cut by the tokenizer if it is too long by itself.
        negatives: captions to draw from, the own one may be among them.
        rng: decides everything.
        tokenizer: gives the limit and counts the tokens.
    """
    chance = rng.random()
    most = min(MAX_NEGATIVES, len(negatives))
    count = 0 if chance < ALONE else most if chance < ALONE + FULL or most == 0 else rng.randint(1, most)
    own = _sentence(positive)
    drawn = [sentence for text in rng.sample(negatives, count) if (sentence := _sentence(text)) != own]
    # The blank between two sentences costs nothing and keeps their tokens apart: the sum is exact.
    costs = [len(encoding.ids) - NUM_AROUND for encoding in tokenizer([own, *drawn])]
    chosen, room = [own], tokenizer.max_tokens - NUM_AROUND - costs[0]
    for sentence, cost in zip(drawn, costs[1:], strict=True):
        if cost > room:
            break
        room -= cost
        chosen.append(sentence)
    rng.shuffle(chosen)
    place = chosen.index(own)
    return PackedCaption(text=" ".join(chosen), begin=sum(len(sentence) + 1 for sentence in chosen[:place]))


def _sentence(text: str) -> str:
    # Nothing is taken from the front: the spans of the image's own caption count from there.
    text = text.rstrip()
    return text if text.endswith(".") else f"{text}."
