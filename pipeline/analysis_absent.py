"""The absent-prompt test: what a model finds when asked for what a picture does not show.

A detector that is asked in words can be asked for anything, and an average precision hardly tells what it answers then.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glipv2.evaluation.errors import Id, Judged
from glipv2.inference.predictor import Predictor
from glipv2.inference.query import Query, make_queries
from glipv2.text.prompts import Prompt, chunk_prompts, clean_name
from pipeline.predict import open_picture
from pipeline.report import NameRate
from pipeline.sources.coco import file_name


@dataclass(frozen=True, kw_only=True)
class AbsentConfig:
    """What is asked of how many pictures."""

    names: tuple[str, ...] = ()
    """Further names that no picture of the data set shows; every picture is asked for all of them."""
    num_images: int = 200
    """Pictures asked, drawn by the seed."""
    names_per_image: int = 10
    """Names of the data set that a picture is asked for though it does not show them, drawn by the seed."""
    batch_size: int = 8
    """Pictures in memory, and at most in a forward pass, at a time."""
    seed: int = 0
    """Seed of both draws."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("num_images", "names_per_image", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")


@dataclass
class _Counts:
    asked: Counter[int] = field(default_factory=Counter)
    found: Counter[int] = field(default_factory=Counter)

    def add(self, query: Query, fired: set[int]) -> None:
        """Count a picture's answer for every name that could be asked for."""
        for label in (label for label, tokens in query.tokens.items() if tokens):
            self.asked[label] += 1
            self.found[label] += label in fired


def ask_for_absent(
    predictor: Predictor, judged: Judged, images: Path, threshold: float, cfg: AbsentConfig
) -> list[NameRate]:
    """Ask pictures for names they do not show, and, in a prompt apart, for those they show.

    A name counts as found if one box of it reaches the threshold. Crowds count as shown. Where images list
    ``neg_category_ids`` (LVIS), only these are known to be absent. Pictures that cannot be read are left out.

    Raises:
        ValueError: a further name is one the data set shows.
    """
    positions = {category: label for label, category in enumerate(judged.categories)}
    names = dict(enumerate(judged.categories.values()))
    further = {-1 - i: name for i, name in enumerate(dict.fromkeys(cfg.names))}
    _check_further(further, names)
    absent, present = _Counts(), _Counts()
    always = make_queries(chunk_prompts(list(further.items()), predictor.tokenizer), predictor.tokenizer)
    chosen = list(judged.images)
    chosen = random.Random(cfg.seed).sample(chosen, min(cfg.num_images, len(chosen)))
    for first in range(0, len(chosen), cfg.batch_size):
        files = {id_: images / file_name(judged.images[id_]) for id_ in chosen[first : first + cfg.batch_size]}
        opened = {id_: image for id_, file in files.items() if (image := open_picture(file)) is not None}
        asked = []
        for id_ in opened:
            shown = {positions[category]: judged.categories[category] for category in judged.shown[id_]}
            prompts = [_prompt(predictor, _absent_names(judged, id_, names, cfg)), _prompt(predictor, shown)]
            asked.append([*make_queries(prompts, predictor.tokenizer), *always])
        for queries, found in zip(asked, predictor.find(list(opened.values()), asked), strict=True):
            fired = {label for label, score in zip(found.labels, found.scores, strict=True) if score >= threshold}
            missing, there, *others = queries
            present.add(there, fired)
            for query in (missing, *others):
                absent.add(query, fired)
    return [_rate(label, name, absent, present) for label, name in (names | further).items()]


def _check_further(further: Mapping[int, str], names: Mapping[int, str]) -> None:
    known = {_plain(name) for name in names.values()}
    if both := [name for name in further.values() if _plain(name) in known]:
        raise ValueError(
            f"--absent.names has {', '.join(both)}, which the data set has too; give names it does not show"
        )


def _absent_names(judged: Judged, image: Id, names: Mapping[int, str], cfg: AbsentConfig) -> dict[int, str]:
    """Draw names that an image does not show; the draw depends on nothing but the seed and the image."""
    shown = {_plain(judged.categories[category]) for category in judged.shown[image]}
    known = judged.images[image].get("neg_category_ids", judged.categories)
    labels = [label for label, category in enumerate(judged.categories) if category in known]
    free = [label for label in labels if _plain(names[label]) not in shown]
    drawn = random.Random(f"{cfg.seed}/{image}").sample(free, min(cfg.names_per_image, len(free)))
    return {label: names[label] for label in drawn}


def _prompt(predictor: Predictor, names: Mapping[int, str]) -> Prompt:
    """Make one prompt of as many names as it holds: all pictures are asked equally often."""
    prompts: Sequence[Prompt] = chunk_prompts(list(names.items()), predictor.tokenizer)
    return prompts[0] if prompts else Prompt(text="", spans={})


def _rate(label: int, name: str, absent: _Counts, present: _Counts) -> NameRate:
    return NameRate(
        name=name,
        listed=label < 0,
        num_absent=absent.asked[label],
        num_absent_found=absent.found[label],
        num_present=present.asked[label],
        num_present_found=present.found[label],
    )


def _plain(name: str) -> str:
    return clean_name(name).lower()
