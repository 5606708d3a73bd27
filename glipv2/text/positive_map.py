"""From character spans (``tokens_positive``) to the tokens they cover."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from glipv2.text.tokenizer import CharSpan


def token_at(offsets: Sequence[CharSpan], character: int) -> int | None:
    """Return the token that covers a character, or None between tokens (blanks) and past the cut."""
    for index, (begin, end) in enumerate(offsets):
        if begin <= character < end:
            return index
    return None


def tokens_of_span(offsets: Sequence[CharSpan], span: CharSpan) -> list[int]:
    """List the tokens of one ``[begin, end)`` span.

    As the reference does: where the first character belongs to no token the next two are tried, where the last one
    does not, the two before it; if an end is still missing the span is given up and the list is empty.
    """
    begin, end = span
    first = _first_token(offsets, (begin, begin + 1, begin + 2))
    last = _first_token(offsets, (end - 1, end - 2, end - 3))
    if first is None or last is None:
        return []
    return list(range(first, last + 1))


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


def _first_token(offsets: Sequence[CharSpan], characters: Sequence[int]) -> int | None:
    for character in characters:
        token = token_at(offsets, character) if character >= 0 else None
        if token is not None:
            return token
    return None
