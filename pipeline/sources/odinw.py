"""Object detection in the wild: a folder of small COCO data sets, their prompts and their few-shot draws.

Reads the public download of ODinW-13 and ODinW-35 as it unpacks, and any folder laid out like it:
``<set>/<train|valid|test>/annotations_without_background.json`` with the images beside it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from glipv2.text.prompts import SEPARATOR, Prompt, build_prompt
from glipv2.transfer.fewshot import sample_few_shot
from pipeline.sources.coco import CocoSource, Row, categories, file_name, load_container, read_coco

ANNOTATION_FILE = "annotations_without_background.json"

PAPER_FOLDERS = {
    "PascalVOC": "PascalVOC",
    "AerialDrone": "AerialMaritimeDrone/large",
    "Aquarium": "Aquarium/Aquarium Combined.v2-raw-1024.coco",
    "Rabbits": "CottontailRabbits",
    "EgoHands": "EgoHands/generic",
    "Mushrooms": "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco",
    "Packages": "Packages/Raw",
    "Raccoon": "Raccoon/Raccoon.v2-raw.coco",
    "Shellfish": "ShellfishOpenImages/raw",
    "Vehicles": "VehiclesOpenImages/416x416",
    "Pistols": "pistols/export",
    "Pothole": "pothole",
    "Thermal": "thermalDogsAndPeople",
}
"""Names of ODinW-13 in the column order of the paper's tables, and their folders in the public download."""

Wording = tuple[str, str, str]
"""What is said before a category's name, the name itself, and what is said after it."""

PAPER_PROMPTS: dict[str, dict[str, Wording]] = {
    "Aquarium": {
        "fish": (" ", "fish", ""),
        "penguin": ("", "penguin", " , which is black and white"),
        "puffin": ("", "puffin", " with orange beaks "),
        "stingray": ("", "stingray", " which is flat and round"),
    },
    "Rabbits": {"Cottontail-Rabbit": ("", "rabbit", "")},
    "EgoHands": {"hand": (" ", "hand", " of a person")},
    "Mushrooms": {"CoW": ("", "flat mushroom", ""), "chanterelle": ("", "yellow mushroom", "")},
    "Packages": {"package": ("there is a ", "package", " on the porch")},
    "Pothole": {"pothole": ("there are some ", "holes", " on the road")},
}
"""The six data sets whose prompt was written by hand, by category as the json names it (GLIP appendix E.2).

The blanks are the reference's own and kept to the letter; names not listed stay as they are.
"""

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
        official = self.root / PAPER_FOLDERS.get(self.name, self.name)
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
    """Find the data sets under a folder: those of ODinW-13 in the paper's order, then all others by name."""
    official = {folder: name for name, folder in PAPER_FOLDERS.items()}
    jsons = [*root.rglob(f"train/{ANNOTATION_FILE}"), *root.rglob(f"train_{ANNOTATION_FILE}")]
    folders = {path.parent.parent if path.name == ANNOTATION_FILE else path.parent for path in jsons}
    names = [folder.relative_to(root).as_posix() for folder in sorted(folders)]
    order = list(PAPER_FOLDERS)
    found = sorted(
        (official.get(name, name) for name in names), key=lambda n: order.index(n) if n in order else len(order)
    )
    return [OdinwDataset(name=name, root=root) for name in found]


def read_split(dataset: OdinwDataset, split: str, only: Collection[int] | None = None) -> Iterator[Row]:
    """Read a split, or of it the images with the given ids, as rows of kind `schema.DETECTION`."""
    path = dataset.annotations(split)
    return read_coco(CocoSource(annotations=path, images=path.parent, source=dataset.name, split=split), only)


def few_shot_images(dataset: OdinwDataset, shots: int, seed: int) -> list[str]:
    """Choose the training images of a few-shot run, by file name in the order of the json.

    The list prepared by the authors is used where the data set brings one (seeds 3, 30, 300), else images are drawn.
    """
    train = dataset.annotations("train")
    prepared = train.parent / f"fewshot_train_shot{shots}_seed{seed}.json"
    if prepared.is_file():
        return [file_name(image) for image in load_container(prepared).images]
    container = load_container(train)
    shown = [
        frozenset(annotation["category_id"] for annotation in container.annotations[image["id"]])
        for image in container.images
    ]
    return [file_name(container.images[index]) for index in sample_few_shot(shown, shots, seed)]


def make_prompt(dataset: OdinwDataset, *, use_paper_prompts: bool = True) -> Prompt:
    """Join all category names by ascending id, in the paper's wording for the six data sets that have one.

    Models trained on detection data alone are better off without; they do not understand the descriptions.
    """
    wordings = {name.casefold(): words for name, words in PAPER_PROMPTS.items()} if use_paper_prompts else {}
    special = wordings.get(dataset.name.casefold(), {})
    names = dataset.categories
    if special.keys().isdisjoint(names.values()):
        return build_prompt(list(names.items()))
    text = ""
    spans: dict[int, tuple[int, int]] = {}
    for category, name in names.items():
        before, said, after = special.get(name, ("", name, ""))
        text += (SEPARATOR if spans else "") + before
        spans[category] = (len(text), len(text) + len(said))
        text += said + after
    return Prompt(text=text, spans=spans)
