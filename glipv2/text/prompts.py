"""Detection as grounding: category names become a prompt, and every name knows its characters.

Source: GLIP appendix C.1 (at most 85 categories in all) and the reference's prompt builder.
"""

import logging
import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from glipv2.text.tokenizer import NUM_AROUND, CharSpan, Encoding, Tokenizer

SEPARATOR = ". "
MAX_LABELS = 85

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text and, per category in it, the ``[begin, end)`` characters of its name."""

    text: str
    """The prompt, without a separator after the last name."""
    spans: dict[int, CharSpan]
    """Category id to the characters of its name."""
    dropped: tuple[int, ...] = ()
    """Categories asked for that are not in the prompt: whoever has boxes of them drops these."""


def clean_name(name: str) -> str:
    """Make a data set's category name readable: bracketed remarks dropped, underscores blank, no stray blanks.

    The reference leaves a trailing blank where a remark stood (``bow_(weapon)``); ours is stripped.
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ").strip()


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How a prompt speaks of a category ("the cup, on the table"); only the name is scored (ODinW's manual prompts)."""

    name: str
    """Said instead of the category's own name, and exactly so: it is not cleaned."""
    prefix: str = ""
    """Said before it."""
    suffix: str = ""
    """Said after it."""


def build_prompt(
    names: Sequence[tuple[int, str]],
    separator: str = SEPARATOR,
    dropped: Collection[int] = (),
    *,
    wordings: Mapping[int, Wording] = MappingProxyType({}),
    distractors: Sequence[str] = (),
) -> Prompt:
    """Join ``(category id, name)`` pairs, in order, into one prompt.

    Args:
        names: the categories.
        separator: between two of them.
        dropped: ids to note in the prompt as left out.
        wordings: by id, how a category is spoken of; one without is called by its cleaned name.
        distractors: further names at the end that nothing is scored by.
    """
    text, spans = "", {}
    for position, (category, name) in enumerate(names):
        if position:
            text += separator
        wording = wordings.get(category) or Wording(name=clean_name(name))
        text += wording.prefix
        spans[category] = (len(text), len(text) + len(wording.name))
        text += wording.name + wording.suffix
    text = separator.join([text, *distractors]) if text else separator.join(distractors)
    return Prompt(text=text, spans=spans, dropped=tuple(dropped))


def chunk_prompts(
    names: Sequence[tuple[int, str]], tokenizer: Tokenizer, max_categories: int | None = None
) -> list[Prompt]:
    """Pack ``(category id, name)`` pairs, in order, into as few prompts as hold them without cutting a name.

    A name longer than a whole prompt goes alone into one: the tokenizer cuts it, its span ends where its last token
    does, and a warning names it. A name without any token is named nowhere and stands in ``dropped`` of the prompt it
    would have gone into; if there is no other name, of a prompt without text.

    Args:
        names: the vocabulary.
        tokenizer: gives the limit and counts the tokens.
        max_categories: at most so many names in a prompt, however short; LVIS is evaluated with 40.

    Raises:
        ValueError: ``max_categories`` is less than one.
    """
    if max_categories is not None and max_categories < 1:
        raise ValueError(f"max_categories is {max_categories}; give at least 1, or None for as many as fit")
    # Two counts, as what follows a name may change its tokens: CLIP makes one of the points in "etc.. ".
    alone = tokenizer([clean_name(name) for _, name in names])
    inside = tokenizer([clean_name(name) + SEPARATOR for _, name in names])
    room = tokenizer.max_tokens - NUM_AROUND
    prompts: list[Prompt] = []
    group: list[tuple[int, str]] = []
    dropped: list[int] = []
    spent = 0
    for pair, last, inner in zip(names, alone, inside, strict=True):
        if not _num_words(last):
            dropped.append(pair[0])
            continue
        if group and (len(group) == max_categories or spent + _num_words(last) > room):
            prompts.append(build_prompt(group, dropped=dropped))
            group, dropped, spent = [], [], 0
        group.append(pair)
        spent += _num_words(inner)
    if group or dropped:
        prompts.append(build_prompt(group, dropped=dropped))
    ends = {category: e.offsets[-2][1] for (category, _), e in zip(names, alone, strict=True) if e.cut}
    for category, name in names:
        if category in ends:
            logger.warning("category %d is longer than a prompt of %d tokens and is cut: %s", category, room, name)
    # A name that was cut fills its prompt, so it is the only one there.
    return [replace(p, spans={c: (begin, ends.get(c, end)) for c, (begin, end) in p.spans.items()}) for p in prompts]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a training prompt may become."""

    tokens: dict[int, int]
    """Tokens each category costs, its separator included."""
    max_tokens: int
    """Tokens of the longest prompt, start and end excluded."""
    max_labels: int = MAX_LABELS
    """Categories, present and absent ones together; under the reference's rule, absent ones drawn."""
    rule: Literal["paper", "reference"] = "paper"
    """Who is counted and drawn, see `sample_prompt`."""

    @staticmethod
    def of(
        names: Mapping[int, str],
        tokenizer: Tokenizer,
        max_labels: int = MAX_LABELS,
        rule: Literal["paper", "reference"] = "paper",
    ) -> "Budget":
        """Count the tokens of every name once; a name that has none, or too many, never fits into a prompt."""
        room = tokenizer.max_tokens - NUM_AROUND
        encodings = tokenizer([clean_name(name) + SEPARATOR for name in names.values()])
        separator = tokenizer([SEPARATOR])[0].ids
        costs = [room + 1 if e.cut or e.ids == separator else _num_words(e) for e in encodings]
        return Budget(tokens=dict(zip(names, costs, strict=True)), max_tokens=room, max_labels=max_labels, rule=rule)


def sample_prompt(
    present: Collection[int],
    names: Mapping[int, str],
    rng: random.Random,
    budget: Budget,
    absent: Collection[int] | None = None,
) -> Prompt:
    """Draw a training prompt: the categories of the image plus random absent ones, shuffled.

    With probability one half the prompt is filled to ``max_labels`` categories, otherwise the number of negatives is
    uniform in ``1 .. max_labels - positives`` (the paper's rule; GLIP appendix C.1). Negatives never are positives.
    The reference's rule draws all of ``max_labels`` or uniformly ``1 .. max_labels`` categories, present ones among
    them, and then discards these: no bound on all categories together, and fewer negatives the more is present.
    Positives come first to the budget of tokens, in random order; what does not fit is left out, so that no name in
    the prompt is ever cut off. Boxes of a positive left out have no words: the caller drops them (`Prompt.dropped`).

    Args:
        present: categories with a box.
        names: the vocabulary.
        rng: decides everything.
        budget: the limits and the rule.
        absent: categories known not to be in the image (federated data sets); None where it is all but the present.
    """
    possible = names if absent is None else names.keys() & set(absent)
    positives, pool = (
        sorted(category for category in group if budget.tokens[category] <= budget.max_tokens)
        for group in (set(present), set(possible).difference(present))
    )
    most = budget.max_labels - len(positives)
    if budget.rule == "reference":
        pool, most = sorted([*pool, *positives]), budget.max_labels
    room = max(0, min(most, len(pool)))
    count = room if rng.random() < 0.5 or room == 0 else rng.randint(1, room)
    rng.shuffle(positives)
    wanted = positives if budget.rule == "reference" else positives[: budget.max_labels]
    chosen, spent = [], 0
    for category in [*wanted, *(c for c in rng.sample(pool, count) if c not in positives)]:
        if spent + budget.tokens[category] > budget.max_tokens:
            break
        spent += budget.tokens[category]
        chosen.append(category)
    rng.shuffle(chosen)
    return build_prompt([(c, names[c]) for c in chosen], dropped=sorted(set(present).difference(chosen)))


def _num_words(encoding: Encoding) -> int:
    return len(encoding.ids) - NUM_AROUND
