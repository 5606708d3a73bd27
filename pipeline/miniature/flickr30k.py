"""A miniature test split of Flickr30k Entities: five sentences a picture, their phrases tied to boxes by entity ids.

```
<folder>/Sentences/<id>.txt      one sentence a line, phrases marked as [/EN#entity/type words]
         Annotations/<id>.xml    boxes by entity; scenes have none
         images/<id>.jpg
         test.txt                ids of the pictures
```
The types are ``base`` and ``novel`` after the noun, so that recall by type tells both apart, and Flickr's own ``scene``
and ``notvisual``.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from math import ceil, floor
from pathlib import Path
from random import Random
from xml.etree import ElementTree

from pipeline.miniature.draw import Picture
from pipeline.miniature.grammar import NOVEL_NOUNS, Caption, Look, plain_caption

NUM_SENTENCES = 5
"""Sentences per picture."""
_FRAMES = (
    "{sentence}",
    "{sentence}",
    "{sentence} on [/EN#{scene}/scene a soft background]",
    "{sentence} in [/EN#0/notvisual this picture]",
)
"""What surrounds a sentence; its phrases stand for no box, as many in Flickr30k do."""


def write_flickr30k(folder: Path, files: Sequence[tuple[str, Picture]], seed: str) -> None:
    """Write sentences, boxes and the list of the split beside the pictures; entity ids are unique in the folder."""
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir(parents=True)
    numbers = count(1)
    for name, picture in files:
        key = name.partition(".")[0]
        scene = next(numbers)
        entities = {look: next(numbers) for look in dict.fromkeys(thing.look for thing in picture.things)}
        lines = _sentences(Random(f"{seed}/{key}"), picture, entities, scene)
        (folder / "Sentences" / f"{key}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        tree = ElementTree.ElementTree(_annotation(name, picture, entities, scene))
        ElementTree.indent(tree)
        tree.write(folder / "Annotations" / f"{key}.xml", encoding="utf-8")
    keys = "".join(name.partition(".")[0] + "\n" for name, _ in files)
    (folder / "test.txt").write_text(keys, encoding="utf-8")


def _sentences(rng: Random, picture: Picture, entities: Mapping[Look, int], scene: int) -> Iterator[str]:
    for _ in range(NUM_SENTENCES):
        marked = _mark(plain_caption(rng, picture.things), picture, entities)
        # Punctuation stands alone there, as the sentences were split into words before they were marked.
        yield rng.choice(_FRAMES).format(sentence=marked.replace(",", " ,"), scene=scene) + " ."


def _mark(caption: Caption, picture: Picture, entities: Mapping[Look, int]) -> str:
    marked, end = "", 0
    for phrase in caption.phrases:
        look = picture.things[phrase.members[0]].look
        kind = "novel" if look.noun in NOVEL_NOUNS else "base"
        words = caption.text[phrase.begin : phrase.end]
        marked += f"{caption.text[end : phrase.begin]}[/EN#{entities[look]}/{kind} {words}]"
        end = phrase.end
    return marked + caption.text[end:]


def _annotation(name: str, picture: Picture, entities: Mapping[Look, int], scene: int) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    _add(root, filename=name)
    _add(ElementTree.SubElement(root, "size"), width=picture.width, height=picture.height, depth=3)
    _add(ElementTree.SubElement(root, "object"), name=scene, scene=1, nobndbox=0)
    for thing in picture.things:
        entry = ElementTree.SubElement(root, "object")
        _add(entry, name=entities[thing.look])
        x1, y1, x2, y2 = thing.box
        # Whole pixels counted from 1, the last one included.
        corners = {"xmin": floor(x1) + 1, "ymin": floor(y1) + 1, "xmax": ceil(x2), "ymax": ceil(y2)}
        _add(ElementTree.SubElement(entry, "bndbox"), **corners)
    return root


def _add(parent: ElementTree.Element, **values: object) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)
