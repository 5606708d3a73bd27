"""Building the miniature world: all its parts, in the layouts and formats of the real data sets.

```
<root>/world.json                                    written last: what made the world
       objects365/objects365_{train,val}.json        COCO json, base nouns; pictures in {train,val}/
       gold/final_mixed_train.json                   MDETR json, base nouns; pictures in images/
       web/pairs.tsv                                 caption, url (with a header line)
       web/expected.jsonl                            what should become of each row of the list
       web/truth.jsonl                               what is in the pictures, for measuring labels; never for training
       web/root/                                     what `server.serve` serves
       novel_test/novel_test.json                    COCO json, base and novel nouns; pictures in images/
       odinw/<Set>/{train,valid,test}/               COCO json and pictures in one folder, as in ODinW
       lvis/lvis_v1_val.json                         LVIS v1 json, base and novel nouns; pictures in val2017/
       flickr30k/                                    Flickr30k Entities' layout, see `flickr30k`
```
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from pipeline import shards
from pipeline.miniature import lvis
from pipeline.miniature.annotations import Json, detection_json, grounding_json
from pipeline.miniature.config import MiniatureConfig
from pipeline.miniature.draw import Picture, Style
from pipeline.miniature.flickr30k import write_flickr30k
from pipeline.miniature.grammar import BASE_NOUNS, NOVEL_NOUNS
from pipeline.miniature.hazards import FOLDER, HAZARDS
from pipeline.miniature.odinw import ANNOTATION_FILE, ODINW_SETS, SPLITS, OdinwSet
from pipeline.miniature.parts import Drawn, FileKind, Part, draw_parts
from pipeline.miniature.web import WebRow, list_web

logger = logging.getLogger(__name__)

WORLD_NAME = "world.json"
WORLD_VERSION = 3
"""Raised when the same configuration gives other pictures, captions or sets."""
HOST = "127.0.0.1"
_WORTH_A_PROCESS = 400
"""Pictures that justify one more process, which takes a second to start."""


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """Pictures and what is known about them."""

    annotations: Path
    """A json file, or the folder of several files."""
    images: Path
    """The folder that names of pictures are relative to."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Where everything lies."""

    root: Path
    """Folder of the world."""
    config: MiniatureConfig
    """What made it."""

    @property
    def objects365_train(self) -> Annotated:
        """Detection training set, base nouns, COCO json."""
        return self._objects365("train")

    @property
    def objects365_val(self) -> Annotated:
        """Detection validation set."""
        return self._objects365("val")

    @property
    def gold(self) -> Annotated:
        """Human-labelled grounding, base nouns, MDETR json."""
        folder = self.root / "gold"
        return Annotated(annotations=folder / "final_mixed_train.json", images=folder / "images")

    @property
    def novel_test(self) -> Annotated:
        """Test set of base and novel nouns, COCO json; ``supercategory`` says which."""
        folder = self.root / "novel_test"
        return Annotated(annotations=folder / "novel_test.json", images=folder / "images")

    @property
    def odinw(self) -> Path:
        """Folder of the ODinW sets, one folder each."""
        return self.root / "odinw"

    @property
    def lvis(self) -> Annotated:
        """Validation set of 512 names, LVIS v1 json; its pictures lie where the end of ``coco_url`` says."""
        folder = self.root / "lvis"
        return Annotated(annotations=folder / "lvis_v1_val.json", images=folder)

    @property
    def flickr30k(self) -> Annotated:
        """Test set in the layout of Flickr30k Entities, its list in ``test.txt``; the types are base and novel."""
        folder = self.root / "flickr30k"
        return Annotated(annotations=folder, images=folder / "images")

    @property
    def web_pairs(self) -> Path:
        """The list, tab-separated, first line ``caption`` and ``url``; quotation marks in it mean nothing."""
        return self.root / "web" / "pairs.tsv"

    @property
    def web_expected(self) -> Path:
        """One JSON object per row of the list: ``url, hazard, expected``; no hazard is ""."""
        return self.root / "web" / "expected.jsonl"

    @property
    def web_truth(self) -> Path:
        """One JSON object per picture that can be had: ``file, url, caption, width, height, objects``."""
        return self.root / "web" / "truth.jsonl"

    @property
    def web_root(self) -> Path:
        """The served folder."""
        return self.root / "web" / "root"

    def _objects365(self, split: str) -> Annotated:
        folder = self.root / "objects365"
        return Annotated(annotations=folder / f"objects365_{split}.json", images=folder / split)


def build_world(config: MiniatureConfig, root: Path, num_processes: int = 0) -> World:
    """Draw the world, or return the finished one; a killed build is made again from the start.

    Args:
        config: what to make.
        root: an empty, new or own folder.
        num_processes: how many draw at once, 0 for as many as there are cores and work; the bytes do not depend on it.

    Raises:
        ValueError: the folder holds another world, or files that are not ours.
    """
    world = World(root=root.resolve(), config=config)
    if (world.root / WORLD_NAME).exists():
        _check_same(open_world(world.root), world)
        return world
    shards.begin(world.root, _hash(config))
    start = time.perf_counter()
    parts = list_parts(world)
    num_pictures = sum(part.count for part in parts)
    num_processes = num_processes or min(os.cpu_count() or 1, 1 + num_pictures // _WORTH_A_PROCESS)
    _annotate(world, draw_parts(parts, config.seed, config.image_size_px, num_processes))
    stamp = {"world_version": WORLD_VERSION, "config_hash": _hash(config), "config": asdict(config)}
    shards.write_atomically(world.root / WORLD_NAME, json.dumps(stamp, indent=1))
    (world.root / shards.UNFINISHED_NAME).unlink()
    logger.info("drew %d pictures in %.1f s: %s", num_pictures, time.perf_counter() - start, world.root)
    return world


def open_world(root: Path) -> World:
    """Open a finished world.

    Raises:
        ValueError: there is none, or another version of the code drew it.
    """
    path = root.resolve() / WORLD_NAME
    if not path.exists():
        raise ValueError(f"{root} holds no finished miniature world; make one with build_world")
    stamp = json.loads(path.read_text(encoding="utf-8"))
    if stamp["world_version"] != WORLD_VERSION:
        raise ValueError(
            f"{root} was drawn by version {stamp['world_version']} of the miniature world, this is {WORLD_VERSION}; "
            "delete the folder or give another one"
        )
    return World(root=root.resolve(), config=MiniatureConfig(**stamp["config"]))


def _check_same(found: World, wanted: World) -> None:
    ours, theirs = asdict(wanted.config), asdict(found.config)
    if different := [
        f"{name} {theirs[name]} there, {ours[name]} wanted" for name in ours if ours[name] != theirs[name]
    ]:
        raise ValueError(
            f"{found.root} holds another miniature world ({'; '.join(different)}); "
            "give another folder or delete that one"
        )


def _hash(config: MiniatureConfig) -> str:
    return shards.config_hash([WORLD_VERSION, asdict(config)])


def list_parts(world: World) -> list[Part]:
    """List what has to be drawn for a world."""
    config = world.config
    everything = Style(nouns=BASE_NOUNS + NOVEL_NOUNS)
    novel = Style(nouns=BASE_NOUNS + NOVEL_NOUNS, first_nouns=NOVEL_NOUNS)
    parts = [
        Part(name="objects365_train", folder=world.objects365_train.images, count=config.num_objects365_train),
        Part(name="objects365_val", folder=world.objects365_val.images, count=config.num_objects365_val),
        Part(name="gold", folder=world.gold.images, count=config.num_gold),
        Part(name="web", folder=world.web_root / "images", count=config.num_web, styles=(Style(), novel)),
        Part(
            name="hazard",
            folder=world.web_root / FOLDER,
            count=config.num_hazards,
            styles=(everything,),
            kinds=HAZARDS,
        ),
        Part(
            name="novel_test", folder=world.novel_test.images, count=config.num_novel_test, styles=(novel, everything)
        ),
        Part(
            name="lvis",
            folder=world.lvis.images / lvis.FOLDER,
            count=config.num_lvis,
            styles=(lvis.STYLE,),
            kinds=(FileKind(name="{index:012d}.jpg"),),
        ),
        Part(
            name="flickr30k",
            folder=world.flickr30k.images,
            count=config.num_flickr30k,
            styles=(novel, everything),
            kinds=(FileKind(name="1{index:09d}.jpg"),),
        ),
    ]
    return parts + _odinw_parts(world)


def _odinw_parts(world: World) -> list[Part]:
    config = world.config
    counts = dict(zip(SPLITS, (config.num_odinw_train, config.num_odinw_valid, config.num_odinw_test), strict=True))
    return [
        Part(
            name=_part_name(odinw_set, split),
            folder=world.odinw / odinw_set.name / split,
            count=min(counts[split], odinw_set.max_train) if split == "train" else counts[split],
            styles=(odinw_set.style,),
            kinds=(FileKind(name=f"{odinw_set.name}-{{index}}.jpg"),),
        )
        for odinw_set, split in product(ODINW_SETS, SPLITS)
    ]


def _part_name(odinw_set: OdinwSet, split: str) -> str:
    return f"odinw/{odinw_set.name}/{split}"


def _annotate(world: World, drawn: Drawn) -> None:
    seed = world.config.seed
    for split, place in (("train", world.objects365_train), ("val", world.objects365_val)):
        _write_json(place.annotations, _plain_json(drawn[f"objects365_{split}"], BASE_NOUNS, "miniature Objects365"))
    _write_json(
        world.gold.annotations, grounding_json(drawn["gold"], f"{seed}/gold_caption", world.config.generic_share)
    )
    _write_json(
        world.novel_test.annotations, _plain_json(drawn["novel_test"], BASE_NOUNS + NOVEL_NOUNS, "base and novel nouns")
    )
    _write_json(world.lvis.annotations, lvis.lvis_json(drawn["lvis"], f"{seed}/lvis"))
    write_flickr30k(world.flickr30k.annotations, drawn["flickr30k"], f"{seed}/flickr30k")
    for odinw_set, split in product(ODINW_SETS, SPLITS):
        document = detection_json(
            drawn[_part_name(odinw_set, split)],
            odinw_set.categories,
            odinw_set.category,
            description=f"miniature ODinW, {odinw_set.name}: {odinw_set.character}",
        )
        _write_json(world.odinw / odinw_set.name / split / ANNOTATION_FILE, document)
    _write_web(world, list_web(drawn["web"], drawn["hazard"], seed, f"http://{HOST}:{world.config.port}"))


def _plain_json(files: Sequence[tuple[str, Picture]], nouns: Sequence[str], description: str) -> Json:
    return detection_json(
        files,
        nouns,
        lambda look: look.noun,
        description=description,
        supercategory_of=lambda noun: "novel" if noun in NOVEL_NOUNS else "base",
    )


def _write_web(world: World, rows: Sequence[WebRow]) -> None:
    lines = "".join(f"{row.caption}\t{row.url}\n" for row in rows)
    world.web_pairs.write_text("caption\turl\n" + lines, encoding="utf-8")
    expected: list[Json] = [{"url": row.url, "hazard": row.hazard, "expected": row.expected} for row in rows]
    _write_json_lines(world.web_expected, expected)
    _write_json_lines(world.web_truth, [row.truth for row in rows if row.truth])


def _write_json(path: Path, document: Json) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def _write_json_lines(path: Path, rows: Iterable[Json]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
