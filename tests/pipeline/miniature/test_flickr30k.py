import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from pipeline.miniature.draw import Picture, Style, draw_picture
from pipeline.miniature.flickr30k import write_flickr30k
from pipeline.miniature.grammar import BASE_NOUNS, NOVEL_NOUNS, NUMBERS, plural, vocabulary
from pipeline.miniature.world import World
from pipeline.sources.flickr30k import Flickr30kSource, read_flickr30k

Box = tuple[int, ...]

NOUNS = BASE_NOUNS + NOVEL_NOUNS
SINGULAR = {plural(noun): noun for noun in NOUNS} | {noun: noun for noun in NOUNS}
PHRASE = re.compile(r"\[/EN#(\d+)/(\w+) ([^\]]+)\]")


@pytest.fixture(scope="module")
def pictures() -> dict[str, Picture]:
    style = Style(nouns=NOUNS, repeats=0.5)
    return {str(n): draw_picture(style, 96, f"flickr/{n}")[1] for n in range(20)}


@pytest.fixture(scope="module")
def folder(pictures: dict[str, Picture], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flickr30k")
    write_flickr30k(folder, [(f"{key}.jpg", picture) for key, picture in pictures.items()], "seed")
    return folder


def phrases(folder: Path, key: str) -> list[tuple[str, str, list[str]]]:
    text = (folder / "Sentences" / f"{key}.txt").read_text()
    return [(entity, kind, words.lower().split()) for entity, kind, words in PHRASE.findall(text)]


def boxes(folder: Path, key: str) -> dict[str, list[Box]]:
    found: dict[str, list[Box]] = defaultdict(list)
    for entry in ElementTree.parse(folder / "Annotations" / f"{key}.xml").iter("object"):
        name, box = entry.findtext("name"), entry.find("bndbox")
        assert name is not None
        if box is not None:
            found[name].append(tuple(int(box.findtext(edge, "")) for edge in ("xmin", "ymin", "xmax", "ymax")))
    return found


def test_phrase_means_all_boxes_it_describes_and_no_other(folder: Path, pictures: dict[str, Picture]) -> None:
    for key, picture in pictures.items():
        own = boxes(folder, key)
        for entity, kind, (_, *attributes, noun) in phrases(folder, key):
            if kind not in ("base", "novel"):
                continue
            described = [
                thing.box
                for thing in picture.things
                if thing.look.noun == SINGULAR[noun]
                and set(attributes) <= {thing.look.colour, thing.look.texture, thing.look.size}
            ]
            assert len(own[entity]) == len(described)
            for stored, (x1, y1, x2, y2) in zip(own[entity], described, strict=True):
                left, top, right, bottom = stored
                # Whole pixels, counted from 1, that cover the box and hardly more.
                assert left - 1 <= x1 < left
                assert top - 1 <= y1 < top
                assert right - 1 < x2 <= right
                assert bottom - 1 < y2 <= bottom


def test_phrase_counts_its_boxes(folder: Path, pictures: dict[str, Picture]) -> None:
    counts = [
        (NUMBERS.index(words[0].replace("an", "a")), len(boxes(folder, key)[entity]))
        for key in pictures
        for entity, kind, words in phrases(folder, key)
        if kind in ("base", "novel")
    ]
    assert all(said == there for said, there in counts)
    assert max(said for said, _ in counts) > 1


def test_type_tells_base_from_novel(folder: Path, pictures: dict[str, Picture]) -> None:
    seen = set()
    for key in pictures:
        for _, kind, words in phrases(folder, key):
            if words[-1] in SINGULAR:
                assert kind == ("novel" if SINGULAR[words[-1]] in NOVEL_NOUNS else "base")
                seen.add(kind)
    assert seen == {"base", "novel"}


def test_an_entity_keeps_its_id_in_all_sentences(folder: Path, pictures: dict[str, Picture]) -> None:
    for key in pictures:
        nouns = defaultdict(set)
        for entity, kind, words in phrases(folder, key):
            if kind in ("base", "novel"):
                nouns[entity].add(words[-1])
        assert all(len(names) == 1 for names in nouns.values())


def test_ids_of_pictures_do_not_meet(folder: Path, pictures: dict[str, Picture]) -> None:
    own = [{entity for entity, *_ in phrases(folder, key)} - {"0"} for key in pictures]
    assert len(set.union(*own)) == sum(map(len, own))


def test_scenes_and_what_cannot_be_seen_have_no_box(folder: Path, pictures: dict[str, Picture]) -> None:
    kinds = set()
    for key in pictures:
        own = boxes(folder, key)
        for entity, kind, _ in phrases(folder, key):
            kinds.add(kind)
            assert (entity in own) == (kind in ("base", "novel"))
    assert kinds == {"base", "novel", "scene", "notvisual"}


def test_sentences_are_words_the_world_knows(folder: Path, pictures: dict[str, Picture]) -> None:
    text = "".join((folder / "Sentences" / f"{key}.txt").read_text() for key in pictures)
    plain = PHRASE.sub(lambda found: found[3], text)
    assert set(plain.lower().split()) <= {*vocabulary(), ",", "."}


def test_each_listed_picture_has_five_sentences_a_size_and_boxes(world: World) -> None:
    folder = world.flickr30k.annotations
    keys = (folder / "test.txt").read_text().split()
    assert len(set(keys)) == world.config.num_flickr30k
    for key in keys:
        assert len((folder / "Sentences" / f"{key}.txt").read_text().splitlines()) == 5
        size = ElementTree.parse(folder / "Annotations" / f"{key}.xml").find("size")
        assert size is not None
        with Image.open(folder / "images" / f"{key}.jpg") as opened:
            assert opened.size == (int(size.findtext("width", "")), int(size.findtext("height", "")))
        assert boxes(folder, key)


def test_reader_of_the_real_set_reads_it(world: World) -> None:
    place = world.flickr30k
    ids = place.annotations / "test.txt"
    rows = list(
        read_flickr30k(
            Flickr30kSource(
                annotations=place.annotations, images=place.images, ids=ids, source="flickr30k", split="test"
            )
        )
    )
    assert len(rows) == 5 * world.config.num_flickr30k
    assert {row["status"] for row in rows} == {"labelled"}
    for row in rows:
        words = [row["text"][begin:end].lower().split()[-1] for begin, end in row["phrases"]]
        assert {i for i, word in enumerate(words) if word in SINGULAR} == set(row["phrase_index"])
