"""What is found out about the data sets of trials before any of them runs: one line, and nothing is lost."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glipv2.checkpoint import load
from glipv2.evaluation.coco_json import check_truth
from glipv2.inference.query import make_queries
from glipv2.text.tokenizer import Tokenizer
from pipeline.evaluate import read_annotations
from pipeline.sources.coco import file_name
from pipeline.sources.odinw import OdinwDataset, few_shot_images, make_prompt
from pipeline.trial import PROBE, TrialConfig, TrialInputs, TrialSpec

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")


def check_trials(specs: Sequence[TrialSpec], cfg: TrialConfig, inputs: TrialInputs) -> None:
    """Find out what is wrong with the data before anything runs.

    Boxes without area, crowds, and categories whose name is blank (ODinW-35 has one) are no mistakes: the first two
    teach nothing, the last cannot be asked for, and all are measured as the truth has them.

    Raises:
        ValueError: a split has no images or no boxes, an image is missing, a box is of a category that the training
            split does not have, the names of a data set do not fit into one prompt, or too few images show a category.
    """
    tokenizer = load(inputs.model)[1]
    for name in sorted({spec.dataset for spec in specs} - {PROBE}):
        dataset = OdinwDataset(name=name, root=inputs.root)
        for split in SPLITS:
            _check_split(dataset, split)
        _check_prompt(dataset, tokenizer, cfg)
        for shots, seed in {(s.shots, s.seed) for s in specs if s.dataset == name and isinstance(s.shots, int)}:
            if shots:
                few_shot_images(dataset, shots, seed, strict=cfg.strict)


def _check_split(dataset: OdinwDataset, split: str) -> None:
    path = dataset.annotations(split)
    content = read_annotations(path)
    try:
        check_truth(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    boxes = [box for box in content["annotations"] if not box.get("iscrowd")]
    for part, records in (("images", content["images"]), ("boxes (crowds do not count)", boxes)):
        if not records:
            raise ValueError(f"{path} has no {part}; give a split with images and boxes")
    _check_files(path, content)
    _check_categories(path, content, dataset.categories)


def _check_files(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a split whose images are not all there: what is trained on, and measured, would be another."""
    files = [path.parent / file_name(image) for image in content["images"]]
    if missing := [file for file in files if not file.is_file()]:
        what = f"{len(missing)} of the {len(files)} images of {path} are missing, the first is {missing[0]}"
        raise ValueError(f"{what}; put them there, or take them out of the json")


def _check_categories(path: Path, content: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Refuse boxes of a category the training split has not, or calls otherwise: they would be taken for another."""
    called = {category["id"]: str(category.get("name", "")) for category in content["categories"]}
    for category in {box["category_id"]: None for box in content["annotations"]}:
        if category not in names or category not in called:
            here = f"allowed: {', '.join(map(str, names))}"
            raise ValueError(f"{path} has boxes of category {category!r}, {here}; mend the json")
        if called[category] != names[category]:
            what = f"category {category} is {called[category]!r} in {path}, but {names[category]!r} in training"
            raise ValueError(f"{what}; give all splits the same categories")


def _check_prompt(dataset: OdinwDataset, tokenizer: Tokenizer, cfg: TrialConfig) -> None:
    names = dataset.categories
    [query] = make_queries([make_prompt(dataset, use_paper_prompts=cfg.use_paper_prompts)], tokenizer)
    if cut := [category for category in query.unseen if names[category].strip()]:
        raise ValueError(
            f"{dataset.name}: {len(cut)} of its {len(names)} names do not fit into the model's text of "
            f"{tokenizer.max_tokens} tokens; tuning learns one prompt, so leave names out or take another model"
        )
    if query.unseen:
        logger.warning("%s: category %s has a blank name; it is neither learned nor found", dataset.name, query.unseen)
    if alike := sorted({name for name in names.values() if list(names.values()).count(name) > 1}):
        logger.warning("%s: several categories are called %s; a box of one is wrong for another", dataset.name, alike)
