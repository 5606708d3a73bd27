"""Object detection in the wild: a folder of small COCO data sets, their prompts and their few-shot draws.

Reads the public download of ODinW-13 and ODinW-35 as it unpacks, and any folder laid out like it:
``<set>/<train|valid|test>/annotations_without_background.json`` with the images beside it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from glipv2.text.prompts import Prompt, build_prompt
from glipv2.transfer.fewshot import sample_few_shot
from pipeline.protocol import odinw, own_wordings
from pipeline.sources.coco import CocoSource, Row, categories, file_name, load_container, read_coco

ANNOTATION_FILE = "annotations_without_background.json"

_FOLDERS = {"train": "train", "val": "valid", "valid": "valid", "minival": "mini_val", "test": "test"}
_FLAT = {"train": "train", "valid": "val", "mini_val": "minival", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class OdinwDataset:
    """One data set of the collection."""

    name: str
    """The paper's name, or the folder relative to ``root``."""
    root: Path
    """Folder of all data sets."""

    @property
    def folder(self) -> Path:
        """Where the data set lies."""
        known = odinw().get(self.name)
        official = self.root / (known.folder if known else self.name)
        return official if official.is_dir() else self.root / self.name

    def annotations(self, split: str) -> Path:
        """Find the json of a split: train, val (or valid), minival or test.

        A data set without a test split (PascalVOC) is tested on its validation split, as in the paper.

        Raises:
            ValueError: there is no such split.
        """
        if split not in _FOLDERS:
            raise ValueError(f"split is {split!r}, allowed: {', '.join(_FOLDERS)}; choose one of them")
        wanted = [_FOLDERS[split], "valid"] if split == "test" else [_FOLDERS[split]]
        for name in wanted:
            for path in (self.folder / name / ANNOTATION_FILE, self.folder / f"{_FLAT[name]}_{ANNOTATION_FILE}"):
                if path.is_file():
                    return path
        raise ValueError(f"{self.folder} has no {split} split; expected {self.folder / wanted[0] / ANNOTATION_FILE}")

    def images(self, split: str) -> Path:
        """Give the image folder of a split: the one its json lies in."""
        return self.annotations(split).parent

    @property
    def categories(self) -> dict[int, str]:
        """Category names by ascending id, as the training json has them."""
        return categories(self.annotations("train"))


def list_datasets(root: Path) -> list[OdinwDataset]:
    """Find the data sets under a folder: those of ODinW-13 in the paper's order, then all others by name.

    Raises:
        ValueError: the folder is one of them itself.
    """
    official = {known.folder: name for name, known in odinw().items()}
    jsons = [*root.rglob(f"train/{ANNOTATION_FILE}"), *root.rglob(f"train_{ANNOTATION_FILE}")]
    folders = {path.parent.parent if path.name == ANNOTATION_FILE else path.parent for path in jsons}
    if root in folders:
        way = f"--data {root.parent} --datasets {root.name}"
        raise ValueError(f"{root} is a data set itself; give the folder it lies in, and its name: {way}")
    names = [folder.relative_to(root).as_posix() for folder in sorted(folders)]
    order = list(odinw())
    found = sorted(
        (official.get(name, name) for name in names), key=lambda n: order.index(n) if n in order else len(order)
    )
    return [OdinwDataset(name=name, root=root) for name in found]


def read_split(dataset: OdinwDataset, split: str, only: Collection[int] | None = None) -> Iterator[Row]:
    """Read a split, or of it the images with the given ids, as rows of kind `schema.DETECTION`."""
    path = dataset.annotations(split)
    return read_coco(CocoSource(annotations=path, images=path.parent, source=dataset.name, split=split), only)


def few_shot_images(dataset: OdinwDataset, shots: int, seed: int, *, strict: bool = True) -> list[str]:
    """Choose the training images of a few-shot run, by file name in the order of the json.

    The list prepared by the authors is used where the data set brings one (seeds 3, 30, 300), else images are drawn. A
    category that no training image shows cannot be learned, and is not asked for.

    Args:
        dataset: The data set.
        shots: Images per category.
        seed: Decides which.
        strict: Refuse a data set where fewer than ``shots`` images show a category; else it has all of them. Prepared
            lists are taken as they are.

    Raises:
        ValueError: A category is too rare.
    """
    train = dataset.annotations("train")
    if (prepared := prepared_draw(dataset, shots, seed)) is not None:
        return [file_name(image) for image in load_container(prepared).images]
    container = load_container(train)
    named = {number: f"{name!r} ({number})" for number, name in container.categories.items()}
    shown = [
        frozenset(named.get(a["category_id"], a["category_id"]) for a in container.annotations[image["id"]])
        for image in container.images
    ]
    try:
        drawn = sample_few_shot(shown, shots, seed, strict=strict)
    except ValueError as error:
        raise ValueError(f"{train}: {error}") from error
    return [file_name(container.images[index]) for index in drawn]


def prepared_draw(dataset: OdinwDataset, shots: int, seed: int) -> Path | None:
    """Find the list of training images that the authors prepared for a few-shot run; None where there is none."""
    path = dataset.annotations("train").parent / f"fewshot_train_shot{shots}_seed{seed}.json"
    return path if path.is_file() else None


def few_shot_validation(dataset: OdinwDataset, shots: int, seed: int) -> Path | None:
    """Find the validation list that the authors prepared for a few-shot run; None where there is none.

    That of the split made for choosing models (``mini_val``) comes first, as in the reference.
    """
    for folder, flat in (("mini_val", "minival"), ("valid", "val")):
        name = f"fewshot_{flat}_shot{shots}_seed{seed}.json"
        for path in (dataset.folder / folder / name, dataset.folder / name):
            if path.is_file():
                return path
    return None


def make_prompt(dataset: OdinwDataset, *, use_paper_prompts: bool = True) -> Prompt:
    """Join all category names by ascending id, in the paper's wording for the six data sets that have one.

    Models trained on detection data alone are better off without; they do not understand the descriptions.
    """
    known = {name.casefold(): known.wordings for name, known in odinw().items()} if use_paper_prompts else {}
    names = list(dataset.categories.items())
    return build_prompt(names, wordings=own_wordings(names, known.get(dataset.name.casefold(), {})))
