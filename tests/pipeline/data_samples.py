"""The smallest whole data set of each format: two pictures, three boxes, nothing wrong with it."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.data_lint_shards import ShardsSource
from pipeline.sources.coco import CocoSource, read_coco
from pipeline.sources.flickr30k import Flickr30kSource
from pipeline.sources.mdetr import MdetrSource
from pipeline.sources.odvg import OdvgSource
from pipeline.sources.openimages import OpenImagesSource
from pipeline.sources.phrasecut import PhraseCutSource
from pipeline.sources.store import store_source
from pipeline.sources.tsv import TsvCaptionSource, TsvDetectionSource
from pipeline.sources.visual_genome import VisualGenomeSource
from pipeline.sources.voc import VocSource

SIZES = {"1": (20, 10), "2": (30, 30)}
CAPTION = "a ring by a star"
RING, STAR = [2, 6], [12, 16]
NAMED = {"source": "set", "split": "train"}


def draw(folder: Path, ending: str = ".jpg") -> Path:
    """Write the two pictures into ``images``."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
        Image.effect_noise(size, 90).save(images / f"{name}{ending}")
    return images


def save(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def coco_content() -> dict[str, Any]:
    return {
        "images": [{"id": int(n), "file_name": f"{n}.jpg", "width": w, "height": h} for n, (w, h) in SIZES.items()],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 4, 5]},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 20, 10]},
            {"id": 3, "image_id": 2, "category_id": 1, "bbox": [1, 1, 5, 5]},
        ],
        "categories": [{"id": 1, "name": "ring"}, {"id": 2, "name": "star"}],
    }


def coco(folder: Path) -> CocoSource:
    annotations = save(folder / "annotations.json", coco_content())
    return CocoSource(annotations=annotations, images=draw(folder), **NAMED)


def mdetr_content() -> dict[str, Any]:
    content = coco_content()
    for image in content["images"]:
        image["caption"] = CAPTION
    for annotation in content["annotations"]:
        annotation["tokens_positive"] = [RING]
    return content | {"categories": []}


def mdetr(folder: Path) -> MdetrSource:
    return MdetrSource(annotations=save(folder / "gold.json", mdetr_content()), images=draw(folder), **NAMED)


def openimages(folder: Path) -> OpenImagesSource:
    boxes = (
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n1,/m/r,0.1,0.5,0,1,0\n1,/m/s,0,1,0,1,0\n2,/m/r,0,0.5,0,1,0\n"
    )
    return OpenImagesSource(
        boxes=save(folder / "boxes.csv", boxes),
        classes=save(folder / "classes.csv", "/m/r,ring\n/m/s,star\n"),
        images=draw(folder),
        **NAMED,
    )


def visual_genome(folder: Path) -> VisualGenomeSource:
    ring = {"object_id": 7, "x": 1, "y": 1, "w": 5, "h": 5, "names": ["ring"]}
    objects = [{"image_id": 1, "objects": [ring, {**ring, "names": ["star"]}]}, {"image_id": 2, "objects": [ring]}]
    return VisualGenomeSource(
        objects=save(folder / "objects.json", objects),
        image_data=save(folder / "image_data.json", _image_data()),
        images=draw(folder),
        **NAMED,
    )


def _image_data() -> list[dict[str, int]]:
    return [{"image_id": int(name), "width": width, "height": height} for name, (width, height) in SIZES.items()]


def voc(folder: Path) -> VocSource:
    (folder / "xml").mkdir()
    for name, (width, height) in SIZES.items():
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>6</ymax></bndbox>"
        objects = "".join(f"<object><name>{n}</name>{box}</object>" for n in ("ring", "star")[: int(name)])
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        save(folder / "xml" / f"{name}.xml", f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>")
    return VocSource(annotations=folder / "xml", images=draw(folder), **NAMED)


def flickr30k(folder: Path) -> Flickr30kSource:
    for part in ("Sentences", "Annotations"):
        (folder / part).mkdir()
    for name, (width, height) in SIZES.items():
        save(folder / "Sentences" / f"{name}.txt", "[/EN#5/other a ring] by [/EN#6/other a star]\n")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>6</ymax></bndbox>"
        objects = "".join(f"<object><name>{chain}</name>{box}</object>" for chain in (5, 6))
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        save(folder / "Annotations" / f"{name}.xml", f"<annotation>{size}{objects}</annotation>")
    return Flickr30kSource(
        annotations=folder, images=draw(folder), ids=save(folder / "train.txt", "\n".join(SIZES)), **NAMED
    )


def phrasecut(folder: Path) -> PhraseCutSource:
    shape = [[[1, 1], [5, 1], [5, 5]]]
    tasks = [
        {"task_id": "1__0", "image_id": 1, "phrase": "a ring", "instance_boxes": [[1, 1, 4, 4]], "Polygons": [shape]},
        {
            "task_id": "2__0",
            "image_id": 2,
            "phrase": "two stars",
            "instance_boxes": [[1, 1, 4, 4], [2, 2, 9, 9]],
            "Polygons": [shape, shape],
        },
    ]
    return PhraseCutSource(
        annotations=save(folder / "refer.json", tasks),
        image_data=save(folder / "image_data.json", _image_data()),
        images=draw(folder),
        **NAMED,
    )


def _lines(folder: Path, name: str, cells: dict[str, object]) -> Path:
    return save(folder / name, "".join(f"{key}\t{json.dumps(cell)}\n" for key, cell in cells.items()))


def _encoded(folder: Path) -> Path:
    images = draw(folder)
    lines = [f"{name}\t{base64.b64encode((images / f'{name}.jpg').read_bytes()).decode()}\n" for name in SIZES]
    return save(folder / "train.img.tsv", "".join(lines))


def tsv_detection(folder: Path) -> TsvDetectionSource:
    ring = {"rect": [1, 1, 5, 6], "class": "ring"}
    return TsvDetectionSource(
        images=_encoded(folder),
        labels=_lines(folder, "train.label.tsv", {"1": [ring, {**ring, "class": "star"}], "2": [ring]}),
        sizes=_lines(folder, "train.hw.tsv", {n: [{"height": h, "width": w}] for n, (w, h) in SIZES.items()}),
        label_map=save(folder / "map.json", {"ring": 1, "star": 2}),
        **NAMED,
    )


def tsv_caption(folder: Path) -> TsvCaptionSource:
    def label(width: int, height: int) -> dict[str, object]:
        boxes = {"bboxes": [[1, 1, 5, 6], [2, 2, 9, 9]], "scores": [0.9, 0.8], "tokens_positive": [[RING], [STAR]]}
        return {"img_w": width, "img_h": height, "caption": CAPTION, **boxes}

    labels = _lines(folder, "train.label.tsv", {name: label(*size) for name, size in SIZES.items()})
    return TsvCaptionSource(images=_encoded(folder), labels=labels, **NAMED)


def _odvg(folder: Path, what: dict[str, object]) -> Path:
    lines = [
        json.dumps({"filename": f"{name}.jpg", "width": width, "height": height, **what})
        for name, (width, height) in SIZES.items()
    ]
    return save(folder / "odvg.jsonl", "\n".join(lines) + "\n")


def odvg_detection(folder: Path) -> OdvgSource:
    instances = [{"bbox": [1, 1, 5, 6], "label": label, "category": name} for label, name in ((0, "ring"), (1, "star"))]
    return OdvgSource(
        annotations=_odvg(folder, {"detection": {"instances": instances}}),
        label_map=save(folder / "map.json", {"0": "ring", "1": "star"}),
        images=draw(folder),
        **NAMED,
    )


def odvg(folder: Path) -> CocoSource:
    regions = [{"bbox": [1, 1, 5, 6], "phrase": "ring", "tokens_positive": [RING]}]
    annotations = _odvg(folder, {"grounding": {"caption": CAPTION, "regions": regions}})
    return CocoSource(annotations=annotations, images=draw(folder), **NAMED)


def shards(folder: Path) -> ShardsSource:
    (folder / "coco").mkdir()
    store_source(
        read_coco(coco(folder / "coco")), folder / "out", name="set", inputs={}, categories={1: "ring", 2: "star"}
    )
    return ShardsSource(shards=folder / "out")


SAMPLES: dict[str, Callable[[Path], Any]] = {
    "coco": coco,
    "objects365": coco,
    "lvis": coco,
    "openimages": openimages,
    "visual-genome": visual_genome,
    "voc": voc,
    "mdetr": mdetr,
    "flickr30k": flickr30k,
    "phrasecut": phrasecut,
    "tsv-detection": tsv_detection,
    "tsv-caption": tsv_caption,
    "odvg-detection": odvg_detection,
    "odvg": odvg,
    "shards": shards,
}
