"""Labelled rows in the formats other tools read: COCO json, with MDETR's fields, and mmdetection's ODVG jsonl.

A pseudo-labelled row without a box that the rule chooses is left out and counted: nobody knows what its picture shows,
and these formats would say that it shows nothing. Everything is streamed; only the categories are held in memory.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow.parquet as pq

from pipeline import schema
from pipeline.paths import NOT_GIVEN, require
from pipeline.rewrite import require_manifest
from pipeline.selection import SelectionConfig, select
from pipeline.shards import Manifest, begin, config_hash, file_sha256, write_manifest
from pipeline.storage import Place

logger = logging.getLogger(__name__)

COCO_FILE, ODVG_FILE, LABEL_MAP, IMAGES = "annotations.json", "annotations.jsonl", "label_map.json", "images"
NO_BOX = "no_box_chosen"
_IMAGES_PER_FOLDER = 10_000
_GIB = 2**30
_ENDINGS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"GI": ".gif", b"BM": ".bmp"}
"""By the first two bytes."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is written, and how."""

    format: Literal["coco", "odvg"] = "coco"
    """COCO json with MDETR's ``caption`` and ``tokens_positive``, or mmdetection's jsonl."""
    all_boxes: bool = False
    """Write every stored box of a pseudo-labelled row instead of those that ``selection`` chooses."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """Which boxes of pseudo-labelled rows are written; human boxes all are."""
    write_images: bool = True
    """Write the images as files; without them only the annotations, which name the files all the same."""
    max_images_gib: float = 20.0
    """Size of shards above which images are not written without being asked: raise it to do so."""

    def __post_init__(self) -> None:
        """Check the size."""
        if self.max_images_gib < 0:
            raise ValueError(f"max_images_gib is {self.max_images_gib}; give 0 or more")


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """One finished directory to be exported."""

    labels: Path = NOT_GIVEN
    """Finished directory of grounding shards, absolute."""
    out: Path = NOT_GIVEN
    """Folder to write, absolute."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """What is written, and how."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        require(labels=self.labels, out=self.out)


def export_alone(cfg: ExportJob) -> str:
    """Export one directory and tell what became of it."""
    manifest = export(cfg.export, cfg.labels, cfg.out)
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in manifest.rejects.items()) or "none"
    named = ", ".join(str(cfg.out / str(file["path"])) for file in manifest.files)
    return f"{manifest.rows_out:,} of {manifest.rows_in:,} rows in {named}\nleft out: {left_out}"


def export(cfg: ExportConfig, labels: Path | Place, out: Path) -> Manifest:
    """Write the labelled rows of a finished directory; a finished export is only read.

    Raises:
        ValueError: the labels are unfinished, ``out`` holds something else, or the images are too many to be written
            without being asked.
    """
    given = require_manifest(labels)
    gib = sum(int(str(file["bytes"])) for file in given.files) / _GIB
    if cfg.write_images and gib > cfg.max_images_gib:
        raise ValueError(
            f"the shards have {gib:.0f} GiB; give --export.max-images-gib {gib + 1:.0f} to write their images as files "
            "all the same, or --export.no-write-images"
        )
    wanted = config_hash(["export", asdict(cfg), given.content_hash, schema.SCHEMA_VERSION])
    if (done := begin(out, wanted)) is not None:
        return done
    started = time.perf_counter()
    counts: Counter[str] = Counter()
    names = {int(key): str(name) for key, name in _categories(given).items()}
    with ExitStack() as opened:
        writer = (_CocoWriter if cfg.format == "coco" else _OdvgWriter)(out, names, opened)
        for row in _read(labels, given, with_image=cfg.write_images):
            if row["status"] != schema.LABELLED:
                counts[str(row["reason"])] += 1
            elif not (chosen := _choose(row, cfg)) and row["kind"] == schema.CAPTION:
                counts[NO_BOX] += 1
            else:
                counts["written"] += 1
                writer.add(row, chosen, _place_image(row, counts["written"], out, cfg), counts["written"])
        files = writer.finish()
    rows_out = counts.pop("written", 0)
    manifest = Manifest(
        stage=f"export {cfg.format}",
        config_hash=wanted,
        rows_in=given.rows_in,
        rows_out=rows_out,
        rejects=dict(sorted(counts.items())),
        files=[{"path": f.name, "bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in files],
        inputs={Place.of(labels).name: given.content_hash},
        config=asdict(cfg),
        seconds=time.perf_counter() - started,
    )
    write_manifest(out, manifest)
    return manifest


def _categories(manifest: Manifest) -> dict[str, str]:
    found = manifest.config.get("categories")
    return found if isinstance(found, dict) else {}


def _read(labels: Path | Place, manifest: Manifest, *, with_image: bool) -> Iterator[Row]:
    """Read the rows in the order of the manifest, a row group at a time."""
    for file in manifest.files:
        with (Place.of(labels) / str(file["path"])).open_input() as stream:
            parquet = pq.ParquetFile(stream)
            # Without the bytes their beginning is not known either, but every image we stored anew is a JPEG.
            columns = [name for name in parquet.schema_arrow.names if with_image or name != "image"]
            for batch in parquet.iter_batches(schema.ROWS_PER_ROW_GROUP, columns=columns):
                yield from batch.to_pylist()


def _choose(row: Row, cfg: ExportConfig) -> list[int]:
    """Choose boxes by their number, in the order they are stored."""
    every = range(len(row["boxes"] or ()))
    if cfg.all_boxes or row["kind"] != schema.CAPTION or not every:
        return list(every)
    return sorted(select(row["boxes"], row["score"], row["phrase_index"], cfg.selection))


def _place_image(row: Row, number: int, out: Path, cfg: ExportConfig) -> str:
    """Name the file of an image, inside the folder of images, and write it if wanted."""
    encoded = row["image"]["bytes"] if cfg.write_images else b""
    name = f"{number // _IMAGES_PER_FOLDER:05d}/{number:09d}{_ENDINGS.get(encoded[:2], '.jpg')}"
    if cfg.write_images:
        path = out / IMAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
    return name


def _phrase(row: Row, box: int) -> str:
    """Give the words of a box: its phrase's, else those of its spans, else its category's name."""
    spans = row["tokens_positive"][box] if row["tokens_positive"] else []
    owner = row["phrase_index"][box]
    if owner >= 0:
        spans = [row["phrases"][owner]]
    return " ".join(row["text"][begin:end] for begin, end in spans) or str(row["category"][box])


class _CocoWriter:
    """One json: images as they come, annotations beside it until the end, categories last."""

    def __init__(self, out: Path, names: dict[int, str], opened: ExitStack) -> None:
        self._path, self._beside = out / COCO_FILE, out / ".annotations"
        self._images = opened.enter_context(self._path.open("w", encoding="utf-8"))
        self._annotations = opened.enter_context(self._beside.open("w+", encoding="utf-8"))
        self._ids = {name: number for number, name in names.items()}
        self._count, self._last_id = 0, max(names, default=0)
        self._images.write('{"images": [')

    def add(self, row: Row, chosen: list[int], file: str, number: int) -> None:
        image = {"id": number, "file_name": file, "width": row["width"], "height": row["height"]}
        further = {
            "caption": row["text"],
            "neg_category_ids": row["neg_category_ids"],
            "not_exhaustive_category_ids": row["not_exhaustive_ids"],
            **{name: row[name] for name in ("phrases", "entity", "key", "sample_id", "image_uri")},
        }
        known = {name: value for name, value in further.items() if value is not None}
        _write_item(self._images, {**image, **known}, first=number == 1)
        for box in chosen:
            self._count += 1
            _write_item(self._annotations, self._annotation(row, box, number), first=self._count == 1)

    def _annotation(self, row: Row, box: int, image: int) -> dict[str, object]:
        x1, y1, x2, y2 = row["boxes"][box]
        name = _phrase(row, box)
        name = name.lower() if row["kind"] != schema.DETECTION else name
        if name not in self._ids:
            self._last_id += 1
            self._ids[name] = self._last_id
        spans = {"tokens_positive": row["tokens_positive"][box]} if row["tokens_positive"] else {}
        return {
            "id": self._count,
            "image_id": image,
            "category_id": self._ids[name],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(row["iscrowd"][box]),
            "score": row["score"][box],
            **spans,
        }

    def finish(self) -> list[Path]:
        self._images.write('], "annotations": [')
        self._annotations.seek(0)
        for line in self._annotations:
            self._images.write(line)
        categories = [{"id": number, "name": name} for name, number in sorted(self._ids.items(), key=lambda c: c[1])]
        self._images.write(f'], "categories": {json.dumps(categories)}}}\n')
        self._images.flush()
        self._beside.unlink()
        return [self._path]


class _OdvgWriter:
    """One line per image, and for detection rows the map of labels."""

    def __init__(self, out: Path, names: dict[int, str], opened: ExitStack) -> None:
        self._path, self._map = out / ODVG_FILE, out / LABEL_MAP
        self._lines = opened.enter_context(self._path.open("w", encoding="utf-8"))
        self._labels = {name: label for label, name in enumerate(names.values())}

    def add(self, row: Row, chosen: list[int], file: str, number: int) -> None:
        line: dict[str, object] = {"filename": file, "height": row["height"], "width": row["width"]}
        if row["kind"] == schema.DETECTION:
            # The format has no crowds: one would be taken for an object.
            instances = [self._instance(row, box) for box in chosen if not row["iscrowd"][box]]
            line["detection"] = {"instances": instances}
        else:
            ours = {"phrases": row["phrases"], "entity": row["entity"]}
            line["grounding"] = {"caption": row["text"], "regions": [_region(row, box) for box in chosen], **ours}
        line |= {"kind": row["kind"], "key": row["key"], "image_uri": row["image_uri"]}
        self._lines.write(json.dumps(line) + "\n")

    def _instance(self, row: Row, box: int) -> dict[str, object]:
        name = row["category"][box]
        label = self._labels.setdefault(name, len(self._labels))
        return {"bbox": row["boxes"][box], "label": label, "category": name, "score": row["score"][box]}

    def finish(self) -> list[Path]:
        self._lines.flush()
        if not self._labels:
            return [self._path]
        self._map.write_text(json.dumps({label: name for name, label in self._labels.items()}), encoding="utf-8")
        return [self._path, self._map]


def _region(row: Row, box: int) -> dict[str, object]:
    spans = row["tokens_positive"][box]
    return {
        "bbox": row["boxes"][box],
        "phrase": _phrase(row, box),
        "tokens_positive": spans,
        "score": row["score"][box],
    }


def _write_item(stream: TextIO, item: dict[str, object], *, first: bool) -> None:
    stream.write(("\n" if first else ",\n") + json.dumps(item))
