"""What is found out about the data sets of trials before any of them runs: one line, and nothing is lost."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from glipv2.checkpoint import load
from glipv2.evaluation.coco_json import check_truth
from glipv2.image import UNREADABLE
from glipv2.inference.query import make_queries
from glipv2.text.tokenizer import Tokenizer
from pipeline.evaluate import Benchmark, read_annotations
from pipeline.protocol import Protocol
from pipeline.sources.coco import file_name
from pipeline.sources.odinw import OdinwDataset, few_shot_images, few_shot_validation, make_prompt
from pipeline.trial import PROBE, TrialConfig, TrialInputs, TrialSpec

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")


def check_trials(specs: Sequence[TrialSpec], cfg: TrialConfig, inputs: TrialInputs) -> None:
    """Find out what is wrong with the data before anything runs.

    Boxes without area, crowds, and categories whose name is blank (ODinW-35 has one) are no mistakes: the first two
    teach nothing, the last cannot be asked for, and all are measured as the truth has them.

    Raises:
        ValueError: a split has no images or no boxes, an image is missing or none, a box is of a category that the
            training split does not have, a prepared list names strange images, the names of a data set do not fit into
            one prompt, or too few images show a category.
    """
    tokenizer = load(inputs.model)[1]
    if inputs.probe is not None:
        check_benchmark(inputs.probe)
    for name in sorted({spec.dataset for spec in specs} - {PROBE}):
        dataset = OdinwDataset(name=name, root=inputs.root)
        for split in SPLITS:
            check_benchmark(Benchmark(name=name, annotations=dataset.annotations(split), images=dataset.images(split)))
            _check_categories(dataset.annotations(split), dataset.categories)
        if dataset.annotations("test") == dataset.annotations("valid"):
            logger.warning("%s has no test split; it is tested on the split that its best epoch is chosen by", name)
        _check_prompt(dataset, tokenizer, cfg)
        for shots, seed in {(s.shots, s.seed) for s in specs if s.dataset == name and isinstance(s.shots, int)}:
            if shots:
                _check_draw(dataset, shots, seed, strict=cfg.strict)


def check_benchmark(benchmark: Benchmark) -> None:
    """Find out what is wrong with a COCO-style data set before anything is measured on it.

    Raises:
        ValueError: it cannot be read, has no images or no boxes, its categories have no whole numbers for ids, or an
            image is missing or none.
    """
    path = benchmark.annotations
    content = read_annotations(path)
    try:
        check_truth(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    boxes = [box for box in content["annotations"] if not box.get("iscrowd")]
    for part, records in (("images", content["images"]), ("boxes (crowds do not count)", boxes)):
        if not records:
            raise ValueError(f"{path} has no {part}; give a split with images and boxes")
    for category in content["categories"]:
        if not isinstance(category["id"], int):
            raise ValueError(f"{path} has a category of id {category['id']!r:.40}; expected whole numbers")
    _check_files(path, [benchmark.images / file_name(image) for image in content["images"]])


def check_protocol(protocol: Protocol, datasets: Sequence[OdinwDataset], prompts: str) -> None:
    """Find out before anything runs whether what a sweep measures is what a benchmark's mean is over.

    Raises:
        ValueError: prompts, split or categories of a data set are not the benchmark's.
    """
    if prompts != protocol.prompts:
        what = f"{protocol.name} has {protocol.prompts} prompts, but the sweep asks with {prompts} ones"
        raise ValueError(f"{what}; set sweep.trial.use-paper-prompts accordingly")
    for dataset in datasets:
        known = protocol.dataset(dataset.name)
        tested, official = dataset.annotations("test"), Path(known.files[known.split].annotations)
        inside = official.relative_to(known.folder) if official.is_relative_to(known.folder) else official
        if tested != dataset.folder / inside:
            what = f"{protocol.name} measures {official} of {dataset.name}, but the sweep would measure {tested}"
            raise ValueError(f"{what}; bring that split, or sweep without --protocol, which gives no mean")
        called = [str(name) for name in dataset.categories.values()]
        if known.categories and [*map(str.casefold, called)] != [*map(str.casefold, known.categories)]:
            what = f"{dataset.name} has the categories {', '.join(called)!r:.120}, but in {protocol.name}"
            raise ValueError(f"{what} {', '.join(known.categories)!r:.120}; give the data set of the protocol")


def _check_files(path: Path, files: Sequence[Path]) -> None:
    """Refuse a split whose images are not all there: what is trained on, and measured, would be another."""
    if missing := [file for file in files if not file.is_file()]:
        what = f"{len(missing)} of the {len(files)} images of {path} are missing, the first is {missing[0]}"
        raise ValueError(f"{what}; put them there, or take them out of the json")
    for file in files:
        try:
            with Image.open(file) as image:
                image.draft("RGB", (1, 1))  # reads all of a JPEG, but makes only its smallest form
                image.load()
        except UNREADABLE as error:
            raise ValueError(f"{file} cannot be opened ({error}); mend it, or take it out of {path}") from error


def _check_draw(dataset: OdinwDataset, shots: int, seed: int, *, strict: bool) -> None:
    """Draw the images of a trial once, or look at the lists prepared for it."""
    train = dataset.annotations("train")
    known = {file_name(image) for image in read_annotations(train)["images"]}
    drawn = few_shot_images(dataset, shots, seed, strict=strict)
    if strange := [name for name in drawn if name not in known]:
        what = f"{len(strange)} images prepared for {shots} shots and seed {seed} are not in {train}"
        raise ValueError(f"{what}, the first is {strange[0]}; give lists of the same images")
    if (prepared := few_shot_validation(dataset, shots, seed)) is not None:
        check_benchmark(Benchmark(name=dataset.name, annotations=prepared, images=prepared.parent))


def _check_categories(path: Path, names: Mapping[int, str]) -> None:
    """Refuse boxes of a category the training split has not, or calls otherwise: they would be taken for another."""
    content = read_annotations(path)
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
