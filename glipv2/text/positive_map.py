"""From character spans (``tokens_positive``) to the tokens they cover."""

from bisect import bisect_right
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from glipv2.text.tokenizer import CharSpan


def tokens_at(offsets: Sequence[CharSpan], character: int) -> range:
    """Return the tokens that cover a character: none between tokens (blanks) and past the cut, in most texts one.

    CLIP spells a rare character by its bytes, each a token of the whole character.
    """
    # In the order of the text, but for the end token with its (0, 0).
    count = len(offsets) - 1 if offsets and offsets[-1] == (0, 0) else len(offsets)
    first = bisect_right(offsets, character, hi=count, key=_end)
    return range(first, bisect_right(offsets, character, lo=first, hi=count, key=_begin))


def tokens_of_span(offsets: Sequence[CharSpan], span: CharSpan) -> list[int]:
    """List the tokens of one ``[begin, end)`` span.

    As the reference does: where the first character belongs to no token the next two are tried, where the last one
    does not, the two before it; if an end is still missing the span is given up and the list is empty.
    """
    begin, end = span
    first = _first_covered(offsets, (begin, begin + 1, begin + 2))
    last = _first_covered(offsets, (end - 1, end - 2, end - 3))
    return list(range(first.start, last.stop)) if first and last else []


def positive_map(
    offsets: Sequence[CharSpan], spans_per_box: Sequence[Sequence[CharSpan]], num_tokens: int
) -> Float[Tensor, "n t"]:
    """Mark, per box, the tokens of all its spans: 1 where positive, 0 elsewhere.

    Binary, as the losses want it: the reference normalises the rows first and makes them binary again in its collator.
    """
    rows = torch.zeros(len(spans_per_box), num_tokens)
    for row, spans in zip(rows, spans_per_box, strict=True):
        for span in spans:
            row[tokens_of_span(offsets, span)] = 1.0
    return rows


def _begin(span: CharSpan) -> int:
    return span[0]


def _end(span: CharSpan) -> int:
    return span[1]


def _first_covered(offsets: Sequence[CharSpan], characters: Sequence[int]) -> range:
    covers = (tokens_at(offsets, character) for character in characters if character >= 0)
    return next((tokens for tokens in covers if tokens), range(0))
