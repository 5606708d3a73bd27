"""Detection as grounding: category names become a prompt, and every name knows its characters.

Source: GLIP appendix C.1 (at most 85 categories in all) and the reference's prompt builder.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from glipv2.text.tokenizer import CharSpan

SEPARATOR = ". "
MAX_LABELS = 85


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text and, per category in it, the ``[begin, end)`` characters of its name."""

    text: str
    """The prompt, without a separator after the last name."""
    spans: dict[int, CharSpan]
    """Category id to the characters of its name."""


def clean_name(name: str) -> str:
    """Make a data set's category name readable: bracketed remarks dropped, underscores blank, no stray blanks.

    The reference leaves a trailing blank where a remark stood (``bow_(weapon)``); ours is stripped.
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ").strip()


def build_prompt(names: Sequence[tuple[int, str]], separator: str = SEPARATOR) -> Prompt:
    """Join ``(category id, name)`` pairs, in order, into one prompt."""
    text, spans = "", {}
    for position, (category, name) in enumerate(names):
        if position:
            text += separator
        cleaned = clean_name(name)
        spans[category] = (len(text), len(text) + len(cleaned))
        text += cleaned
    return Prompt(text=text, spans=spans)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a training prompt may become."""

    tokens: dict[int, int]
    """Tokens each category costs, its separator included."""
    max_tokens: int
    """Tokens of the longest prompt, start and end excluded."""
    max_labels: int = MAX_LABELS
    """Categories, present and absent ones together."""


def sample_prompt(present: Sequence[int], names: dict[int, str], rng: random.Random, budget: Budget) -> Prompt:
    """Draw a training prompt: the categories of the image plus random absent ones, shuffled.

    With probability one half the prompt is filled to ``max_labels`` categories, otherwise the number of negatives is
    uniform in ``1 .. max_labels - positives`` (the paper's rule; GLIP appendix C.1). Negatives never are positives.
    Positives come first to the budget of tokens, in random order; what does not fit is left out, so that no name in
    the prompt is ever cut off. Boxes of a positive left out have no words: the caller drops them.
    """
    positives = sorted(set(present))
    pool = sorted(names.keys() - set(positives))
    room = max(0, min(budget.max_labels - len(positives), len(pool)))
    count = room if rng.random() < 0.5 or room == 0 else rng.randint(1, room)
    rng.shuffle(positives)
    chosen, spent = [], 0
    for category in [*positives[: budget.max_labels], *rng.sample(pool, count)]:
        if spent + budget.tokens[category] > budget.max_tokens:
            break
        spent += budget.tokens[category]
        chosen.append(category)
    rng.shuffle(chosen)
    return build_prompt([(category, names[category]) for category in chosen])
