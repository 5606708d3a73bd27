"""What is looked for: a text, and per label exactly the tokens that score it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from glipv2.text.positive_map import tokens_of_span
from glipv2.text.prompts import Prompt
from glipv2.text.tokenizer import CharSpan, Encoding, Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Query:
    """A tokenized prompt or caption."""

    prompt: Prompt
    """The text and the characters of each label."""
    encoding: Encoding
    """Its tokens."""
    tokens: dict[int, list[int]]
    """Per label the positions of its tokens; none where it cannot be looked for."""

    @property
    def seen(self) -> bool:
        """Whether there is anything to look for."""
        return any(self.tokens.values())

    @property
    def unseen(self) -> list[int]:
        """Labels that cannot be looked for."""
        return [*self.prompt.dropped, *(label for label, tokens in self.tokens.items() if not tokens)]


def make_queries(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> list[Query]:
    """Tokenize prompts; a warning tells what cannot be looked for."""
    encodings = tokenizer([prompt.text for prompt in prompts])
    queries = [
        Query(prompt=prompt, encoding=encoding, tokens=_tokens(prompt, encoding))
        for prompt, encoding in zip(prompts, encodings, strict=True)
    ]
    if blind := [query for query in queries if query.unseen]:
        logger.warning(
            "%d of %d texts name what has no token, or not all in the first %d, and is not looked for: labels %s of %r",
            *(len(blind), len(queries), tokenizer.max_tokens, blind[0].unseen, blind[0].prompt.text[:80]),
        )
    return queries


def caption_prompt(caption: str, spans: Sequence[CharSpan]) -> Prompt:
    """Make every span of a caption a label of its own.

    Raises:
        ValueError: a span is empty or not within the caption.
    """
    for begin, end in spans:
        if not 0 <= begin < end <= len(caption):
            raise ValueError(
                f"span {(begin, end)} is not within the {len(caption)} characters of the caption {caption[:40]!r}; "
                "give [begin, end) with 0 <= begin < end <= length"
            )
    return Prompt(text=caption, spans={label: (begin, end) for label, (begin, end) in enumerate(spans)})


def _tokens(prompt: Prompt, encoding: Encoding) -> dict[int, list[int]]:
    """List each label's tokens; none if any of its characters fell victim to the cut of a long text."""
    kept = max(end for _, end in encoding.offsets) if encoding.cut else len(prompt.text)
    return {
        label: [] if prompt.text[kept:end].strip() else tokens_of_span(encoding.offsets, (begin, end))
        for label, (begin, end) in prompt.spans.items()
    }
