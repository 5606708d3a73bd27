"""Formats of human-labelled data by name: how each is read, and what its reader must be told."""

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any

from pipeline.paths import NOT_GIVEN
from pipeline.sources.coco import CocoSource, Row, categories, read_coco
from pipeline.sources.flickr30k import Flickr30kSource, read_flickr30k
from pipeline.sources.mdetr import MdetrSource, read_mdetr
from pipeline.sources.odvg import OdvgSource, odvg_categories, read_odvg
from pipeline.sources.openimages import OpenImagesSource, openimages_categories, read_openimages
from pipeline.sources.phrasecut import PhraseCutSource, read_phrasecut
from pipeline.sources.tsv import (
    TsvCaptionSource,
    TsvDetectionSource,
    read_tsv_captions,
    read_tsv_detection,
    tsv_categories,
)
from pipeline.sources.visual_genome import VisualGenomeSource, read_visual_genome, visual_genome_categories
from pipeline.sources.voc import VocSource, read_voc, voc_categories


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format."""

    title: str
    """What it is, in a few words."""
    blank: Any
    """Its source with nothing given: what has no default is `NOT_GIVEN`."""
    read: Callable[[Any], Iterator[Row]]
    """Gives the rows of a source."""
    categories: Callable[[Any], dict[int, str]] | None = None
    """Gives the vocabulary of a source; None for captions."""


def needed_flags(blank: Any) -> str:
    """List the flags of a source that have no default."""
    given = [one.name for one in fields(blank) if getattr(blank, one.name) == NOT_GIVEN and one.default is MISSING]
    return " ".join(f"--data.{name.replace('_', '-')} /abs/{name}" for name in given)


def coco_categories(source: CocoSource) -> dict[int, str]:
    """Read the category names of a COCO json."""
    return categories(source.annotations)


def _blank(kind: type[Any], name: str) -> Any:
    """Make a source of which nothing is known but a name."""
    needed = {one.name: NOT_GIVEN for one in fields(kind) if one.default is MISSING}
    return kind(**{**needed, "source": name, "split": "train"})


FORMATS: dict[str, Format] = {
    "coco": Format(
        title="boxes in COCO json, as most labelling tools export them",
        blank=_blank(CocoSource, "coco"),
        read=read_coco,
        categories=coco_categories,
    ),
    "objects365": Format(
        title="Objects365, v1 or v2",
        blank=_blank(CocoSource, "objects365"),
        read=read_coco,
        categories=coco_categories,
    ),
    "lvis": Format(
        title="LVIS, v0.5 or v1",
        blank=_blank(CocoSource, "lvis"),
        read=read_coco,
        categories=coco_categories,
    ),
    "openimages": Format(
        title="Open Images, V4 to V7",
        blank=_blank(OpenImagesSource, "openimages"),
        read=read_openimages,
        categories=openimages_categories,
    ),
    "visual-genome": Format(
        title="objects of Visual Genome",
        blank=_blank(VisualGenomeSource, "visual-genome"),
        read=read_visual_genome,
        categories=visual_genome_categories,
    ),
    "voc": Format(
        title="XML files in the form of PASCAL VOC, ImageNet's boxes among them",
        blank=_blank(VocSource, "voc"),
        read=read_voc,
        categories=voc_categories,
    ),
    "mdetr": Format(
        title="captions with boxes in MDETR's json, as GoldG is published",
        blank=_blank(MdetrSource, "gold"),
        read=read_mdetr,
    ),
    "flickr30k": Format(
        title="Flickr30k Entities",
        blank=_blank(Flickr30kSource, "flickr30k"),
        read=read_flickr30k,
    ),
    "phrasecut": Format(
        title="phrases of PhraseCut with boxes and masks",
        blank=_blank(PhraseCutSource, "phrasecut"),
        read=read_phrasecut,
    ),
    "tsv-detection": Format(
        title="boxes of categories in the TSV files of GLIP",
        blank=_blank(TsvDetectionSource, "tsv"),
        read=read_tsv_detection,
        categories=tsv_categories,
    ),
    "tsv-caption": Format(
        title="captions with boxes in the TSV files of GLIP",
        blank=_blank(TsvCaptionSource, "tsv"),
        read=read_tsv_captions,
    ),
    "odvg-detection": Format(
        title="boxes of categories in ODVG jsonl, as mmdetection reads them",
        blank=_blank(OdvgSource, "odvg"),
        read=read_odvg,
        categories=odvg_categories,
    ),
    "odvg": Format(
        title="captions with boxes in ODVG jsonl, as mmdetection reads them",
        blank=_blank(CocoSource, "odvg"),
        read=read_odvg,
    ),
}
"""Every format that can be imported."""
