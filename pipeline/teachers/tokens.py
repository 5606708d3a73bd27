"""From the mentions of an entity to the tokens that score it."""

from collections.abc import Sequence

from glipv2.text.positive_map import tokens_of_span
from glipv2.text.tokenizer import Encoding
from pipeline.teachers.interface import Entity


def entity_tokens(encoding: Encoding, caption: str, entities: Sequence[Entity]) -> list[list[int]]:
    """List the tokens of each entity's mentions, each once; none if no mention is whole within the tokens."""
    kept = max(end for _, end in encoding.offsets) if encoding.cut else len(caption)
    return [
        sorted(
            {
                token
                for begin, end in mentions
                if not caption[kept:end].strip()
                for token in tokens_of_span(encoding.offsets, (begin, end))
            }
        )
        for mentions in entities
    ]
