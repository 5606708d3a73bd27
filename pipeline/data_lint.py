"""Human-labelled data looked at before they are imported: all that is wrong with them, without stopping at the first.

Entries are taken as they come, not by the readers, which refuse a file at its first fault. Only images are opened as
the import does it, so that what is said of them is what will happen.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glipv2.text.tokenizer import load_tokenizer
from pipeline.data_lint_checks import CategoryTable, RawRow, RowChecker
from pipeline.data_lint_files import flickr30k_rows, openimages_rows, voc_rows
from pipeline.data_lint_json import coco_rows, mdetr_rows, phrasecut_rows, visual_genome_rows
from pipeline.data_lint_odvg import odvg_rows
from pipeline.data_lint_report import DataReport, Findings
from pipeline.data_lint_shards import FATES, ShardsSource, shard_rows
from pipeline.data_lint_tsv import tsv_caption_rows, tsv_detection_rows
from pipeline.import_data import check_format, check_source, told
from pipeline.paths import NOT_GIVEN, require
from pipeline.shards import write_atomically
from pipeline.sources.formats import FORMATS

SHARDS = "shards"

Reader = Callable[[Any, Findings, CategoryTable], Iterator[RawRow]]
"""Gives the entries of a source, and tells of those that are none."""


class Linted(NamedTuple):
    """A format that can be looked at."""

    title: str
    """What it is, in a few words."""
    blank: Any
    """Its source with nothing given."""
    rows: Reader
    """Gives its entries."""


_ROWS: dict[str, Reader] = {
    "coco": coco_rows,
    "objects365": coco_rows,
    "lvis": coco_rows,
    "openimages": openimages_rows,
    "visual-genome": visual_genome_rows,
    "voc": voc_rows,
    "mdetr": mdetr_rows,
    "flickr30k": flickr30k_rows,
    "phrasecut": phrasecut_rows,
    "tsv-detection": tsv_detection_rows,
    "tsv-caption": tsv_caption_rows,
    "odvg-detection": odvg_rows,
    "odvg": odvg_rows,
}

LINTED = {name: Linted(FORMATS[name].title, FORMATS[name].blank, rows) for name, rows in _ROWS.items()} | {
    SHARDS: Linted("finished shards", ShardsSource(shards=NOT_GIVEN), shard_rows)
}
"""Every format that can be looked at."""

_LEFT_OUT_AS_A_ROW = "the row is rejected as unreadable_annotation"
_FATES: dict[str, dict[str, str]] = {
    "voc": dict.fromkeys(("xml_malformed", "box_malformed"), _LEFT_OUT_AS_A_ROW),
    "mdetr": {"box_of_crowd": "the box is left out"},
    "odvg-detection": {"category_unknown": "not in the label map: kept, and training stops at it"},
    SHARDS: FATES,
}
"""Where a format's reader differs from what `data_lint_report.KINDS` says."""


@dataclass(frozen=True, kw_only=True)
class LintDataJob:
    """One data set to be looked at."""

    format: str
    """Key of `LINTED`; the recipe's name."""
    data: Any
    """Where the data lie and what they are called: the source of the format."""
    vocabulary: Path = NOT_GIVEN
    """``vocab.txt``, or a folder with a CLIP tokenizer's files, absolute: with it captions are counted in tokens."""
    max_tokens: int = 256
    """Tokens that a model reads of a caption, start and end tokens included."""
    open_images: bool = True
    """Look for every image and decode it, which takes most of the time."""
    json: Path = NOT_GIVEN
    """File for the report as JSON, absolute."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        check_format(self.format, self.data, {name: linted.blank for name, linted in LINTED.items()})
        check_source(self.data)
        given = {"vocabulary": self.vocabulary, "json": self.json}
        require(**{name: path for name, path in given.items() if path != NOT_GIVEN})


def lint_data(cfg: LintDataJob) -> DataReport:
    """Look at every entry of a data set and tell what was found.

    Raises:
        ValueError: ``vocabulary`` is none.
    """
    tokenizer = load_tokenizer(cfg.vocabulary, cfg.max_tokens) if cfg.vocabulary != NOT_GIVEN else None
    findings = Findings(_FATES.get(cfg.format))
    categories = CategoryTable(findings)
    checker = RowChecker(findings, categories, tokenizer=tokenizer, open_images=cfg.open_images)
    for row in told(LINTED[cfg.format].rows(cfg.data, findings, categories), f"lint {cfg.format}"):
        checker.check(row)
    categories.check()
    report = DataReport(
        format=cfg.format,
        place=_place(cfg.data),
        counts={name: checker.counts[name] for name in ("images", "captions", "boxes") if checker.counts[name]}
        | ({"categories": len(categories)} if len(categories) else {}),
        findings=findings.sorted(),
        notes=() if cfg.open_images else ("Images were not looked for: which are missing or damaged is not known.",),
    )
    if cfg.json != NOT_GIVEN:
        cfg.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cfg.json, json.dumps(report.as_dict(), indent=1))
    return report


def _place(data: Any) -> str:
    """Name the file or folder with the labels."""
    names = ("annotations", "boxes", "objects", "labels", "shards")
    return str(next(getattr(data, name) for name in names if hasattr(data, name)))
