import json
from collections import Counter, defaultdict
from typing import Any

import pytest
from PIL import Image

from pipeline.miniature import lvis
from pipeline.miniature.draw import Picture, draw_picture
from pipeline.miniature.grammar import names_novel
from pipeline.miniature.world import World
from pipeline.sources.coco import CocoSource, read_coco

Document = dict[str, Any]
Kind = tuple[str, str, str]


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [draw_picture(lvis.STYLE, 96, f"lvis/{number}")[1] for number in range(60)]


@pytest.fixture(scope="module")
def document(pictures: list[Picture]) -> Document:
    return lvis.lvis_json([(f"{n}.jpg", picture) for n, picture in enumerate(pictures)], "seed")


@pytest.fixture(scope="module")
def kinds(document: Document) -> dict[int, Kind]:
    return {category["id"]: tuple(category["name"].split("_")) for category in document["categories"]}


@pytest.fixture(scope="module")
def drawn(pictures: list[Picture]) -> list[Counter[Kind]]:
    looks = [[thing.look for thing in picture.things] for picture in pictures]
    return [Counter((look.texture, look.colour, look.noun) for look in found) for found in looks]


@pytest.fixture(scope="module")
def boxed(document: Document, kinds: dict[int, Kind]) -> list[Counter[Kind]]:
    boxes: dict[int, Counter[Kind]] = defaultdict(Counter)
    for annotation in document["annotations"]:
        boxes[annotation["image_id"]][kinds[annotation["category_id"]]] += 1
    return [boxes[image["id"]] for image in document["images"]]


def listed(document: Document, kinds: dict[int, Kind], key: str) -> list[set[Kind]]:
    return [{kinds[number] for number in image[key]} for image in document["images"]]


def test_entries_have_the_keys_of_lvis_v1(document: Document) -> None:
    image, annotation, category = (document[key][0].keys() for key in ("images", "annotations", "categories"))
    addresses = {"coco_url", "flickr_url", "date_captured", "license"}
    assert image == {"id", "width", "height", "neg_category_ids", "not_exhaustive_category_ids"} | addresses
    assert annotation == {"id", "image_id", "category_id", "bbox", "area", "segmentation"}
    counts = {"frequency", "image_count", "instance_count"}
    assert category == {"id", "name", "synset", "synonyms", "def"} | counts


def test_there_are_hundreds_of_names_of_all_frequencies(document: Document) -> None:
    categories = document["categories"]
    assert len({category["name"] for category in categories}) == len(categories) > 300
    found = Counter(category["frequency"] for category in categories)
    assert min(found["r"], found["c"], found["f"]) >= 20


def test_frequency_follows_the_bounds_of_lvis(document: Document) -> None:
    for category in document["categories"]:
        count = category["image_count"]
        assert category["frequency"] == ("r" if count <= 10 else "c" if count <= 100 else "f")


def test_rare_does_not_mean_novel(document: Document) -> None:
    shares = {
        frequency: sum(names_novel(c["name"]) for c in found) / len(found)
        for frequency in "rcf"
        if (found := [c for c in document["categories"] if c["frequency"] == frequency])
    }
    assert all(0.15 < share < 0.6 for share in shares.values()), shares


def test_frequent_names_are_drawn_more_often(document: Document, drawn: list[Counter[Kind]]) -> None:
    frequency = {tuple(category["name"].split("_")): category["frequency"] for category in document["categories"]}
    num_names = Counter(frequency.values())
    objects = Counter(frequency[kind] for counts in drawn for kind in counts.elements())
    rates = [objects[letter] / num_names[letter] for letter in "rcf"]
    assert rates[0] < rates[1] / 2 < rates[2] / 4


def test_names_said_to_be_absent_are_absent(
    document: Document, kinds: dict[int, Kind], drawn: list[Counter[Kind]]
) -> None:
    negatives = listed(document, kinds, "neg_category_ids")
    assert all(len(negative) >= 12 for negative in negatives)
    assert all(negative.isdisjoint(counts) for negative, counts in zip(negatives, drawn, strict=True))


def test_some_absent_names_are_close_to_what_is_there(
    document: Document, kinds: dict[int, Kind], drawn: list[Counter[Kind]]
) -> None:
    for negative, counts in zip(listed(document, kinds, "neg_category_ids"), drawn, strict=True):
        assert any(sum(a != b for a, b in zip(one, other, strict=True)) == 1 for one in negative for other in counts)


def test_labelled_names_have_all_their_boxes_or_are_said_not_to(
    document: Document, kinds: dict[int, Kind], drawn: list[Counter[Kind]], boxed: list[Counter[Kind]]
) -> None:
    incomplete = listed(document, kinds, "not_exhaustive_category_ids")
    assert any(incomplete)
    for there, known, partly in zip(drawn, boxed, incomplete, strict=True):
        assert {kind for kind in known if known[kind] < there[kind]} == partly
        assert all(known[kind] <= there[kind] for kind in known)
        assert partly <= known.keys()


def test_only_frequent_names_are_sometimes_not_looked_for(
    document: Document, drawn: list[Counter[Kind]], boxed: list[Counter[Kind]]
) -> None:
    frequency = {tuple(category["name"].split("_")): category["frequency"] for category in document["categories"]}
    unlabelled = [kind for there, known in zip(drawn, boxed, strict=True) for kind in there.keys() - known.keys()]
    assert {frequency[kind] for kind in unlabelled} == {"f"}


def test_pictures_lie_where_the_end_of_the_address_says(world: World) -> None:
    images = json.loads(world.lvis.annotations.read_text())["images"]
    assert len(images) == world.config.num_lvis
    for image in images:
        with Image.open(world.lvis.images.joinpath(*image["coco_url"].split("/")[-2:])) as opened:
            assert opened.size == (image["width"], image["height"])


def test_reader_of_the_real_set_reads_it(world: World) -> None:
    place = world.lvis
    rows = list(read_coco(CocoSource(annotations=place.annotations, images=place.images, source="lvis", split="val")))
    assert len(rows) == world.config.num_lvis
    assert all(row["status"] == "labelled" and row["neg_category_ids"] for row in rows)
    num_boxes = sum(len(row["boxes"]) for row in rows)
    assert num_boxes == len(json.loads(place.annotations.read_text())["annotations"]) > 0
