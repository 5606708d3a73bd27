"""Thirteen small detection data sets, each with a character of its own, as ODinW-13 has.

Their names are not the real ones, so that no miniature number can be taken for a real one. Each is after a real
set, in this order: PascalVOC, AerialDrone, Aquarium, Rabbits, EgoHands, Mushrooms,
Packages, Raccoon, Shellfish, Vehicles, Pistols, Pothole, Thermal.
"""

from dataclasses import dataclass
from itertools import product

from pipeline.miniature.draw import Style
from pipeline.miniature.grammar import BASE_NOUNS, Look

SPLITS = ("train", "valid", "test")
ANNOTATION_FILE = "annotations_without_background.json"


@dataclass(frozen=True, kw_only=True)
class OdinwSet:
    """A data set of the collection."""

    name: str
    """Name of its folder."""
    character: str
    """What is peculiar about it, for a report."""
    style: Style
    """How its pictures look."""
    labelled: tuple[str, ...]
    """Nouns that have boxes; whatever else is drawn has none."""
    pattern: str = "{noun}"
    """How a category is called, from the words of a look; other words than the noun make more categories."""
    max_train: int = 1_000_000
    """Most training images, whatever the size of the world."""

    def category(self, look: Look) -> str:
        """Name the category of an object, "" if it has none."""
        if look.noun not in self.labelled:
            return ""
        return self.pattern.format(noun=look.noun, colour=look.colour, texture=look.texture)

    @property
    def categories(self) -> list[str]:
        """All category names, in the order of their ids from 1."""
        looks = product(self.labelled, self.style.colours, self.style.textures)
        names = [
            self.category(Look(noun=noun, colour=colour, texture=texture, size="")) for noun, colour, texture in looks
        ]
        return sorted(set(names))


ODINW_SETS = (
    OdinwSet(
        name="AllShapes",
        character="all ten base nouns, many objects",
        labelled=BASE_NOUNS,
        style=Style(num_objects=(2, 6)),
    ),
    OdinwSet(
        name="FromAbove",
        character="tiny objects, 8 to 15 px",
        labelled=("circle", "cross", "square", "star"),
        style=Style(
            nouns=("circle", "cross", "square", "star"), num_objects=(4, 10), size=(0.065, 0.115), textures=("plain",),
            moods=("middle", "water"), crowding=0,
        ),
    ),
    OdinwSet(
        name="FishTank",
        character="novel and base nouns under water",
        labelled=("drop", "fish", "ring", "star"),
        style=Style(
            nouns=("drop", "fish", "ring", "star"), first_nouns=("fish",), num_objects=(2, 6), moods=("water",),
            tilt=0.6, opacity=0.75,
        ),
    ),
    OdinwSet(
        name="LoneHearts",
        character="one class, novel, one big object",
        labelled=("heart",),
        style=Style(nouns=("heart",), num_objects=(1, 1), size=(0.35, 0.6)),
    ),
    OdinwSet(
        name="BusyArrows",
        character="one class, dense, hiding each other, any direction",
        labelled=("arrow",),
        style=Style(nouns=("arrow",), num_objects=(4, 8), size=(0.25, 0.45), crowding=1, repeats=0.1, tilt=3.14),
    ),
    OdinwSet(
        name="TwoMushrooms",
        character="two kinds of one noun, told apart by texture",
        labelled=("mushroom",),
        pattern="{texture} mushroom",
        style=Style(nouns=("mushroom",), textures=("dotted", "striped"), num_objects=(1, 3), size=(0.25, 0.5)),
    ),
    OdinwSet(
        name="Parcels",
        character="19 training images, a word never seen in training",
        labelled=("square",),
        pattern="package",
        max_train=19,
        style=Style(nouns=("square",), colours=("orange", "yellow", "white"), num_objects=(1, 2), moods=("middle",)),
    ),
    OdinwSet(
        name="NightMoons",
        character="one class with an odd name, in the dark",
        labelled=("moon",),
        pattern="moon-shape",
        style=Style(nouns=("moon",), num_objects=(1, 2), moods=("dark",), colours=("yellow", "white", "orange")),
    ),
    OdinwSet(
        name="Garden",
        character="novel nouns only",
        labelled=("bolt", "drop", "flower"),
        style=Style(nouns=("bolt", "drop", "flower"), num_objects=(2, 5), moods=("light",)),
    ),
    OdinwSet(
        name="MainStreet",
        character="wide banners, five classes",
        labelled=("arrow", "circle", "cross", "house", "triangle"),
        style=Style(
            nouns=("arrow", "circle", "cross", "house", "triangle"), first_nouns=("house",), num_objects=(3, 7),
            width=(1.9, 2.5), height=(0.5, 0.65), size=(0.3, 0.7), crowding=0.5,
        ),
    ),
    OdinwSet(
        name="Thunder",
        character="one novel class of any size among unlabelled shapes",
        labelled=("bolt",),
        style=Style(
            nouns=("bolt", "diamond", "star", "triangle"), first_nouns=("bolt",), num_objects=(2, 5), size=(0.12, 0.6)
        ),
    ),
    OdinwSet(
        name="Watermarks",
        character="hardly any contrast",
        labelled=("ring",),
        style=Style(nouns=("ring",), num_objects=(1, 4), moods=("grey",), colours=("white",), opacity=0.3),
    ),
    OdinwSet(
        name="NightVision",
        character="greyscale and noisy",
        labelled=("fish", "house"),
        style=Style(nouns=("fish", "house"), num_objects=(1, 4), moods=("grey", "dark"), noise=24, greyscale=True),
    ),
)  # fmt: skip
