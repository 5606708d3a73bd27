"""What can be wrong with human-labelled data, how bad it is, and the report of it; `pipeline.data_lint` looks."""

import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pipeline.lint_report import printable

ERROR, WARNING, NOTE = "error", "warning", "note"
"""The import stops, loses a row, or gets a wrong label · something is left out or looks wrong · worth knowing."""

SEVERITIES = (ERROR, WARNING, NOTE)
NUM_EXAMPLES = 3
_EXAMPLE_CHARS = 100
_WIDTH = 118
_STOPS = "the import stops there"
_LEFT_OUT = "the box is left out"
_KEPT = "kept as it is"


class Kind(NamedTuple):
    """One thing that can be found."""

    severity: str
    """One of `SEVERITIES`."""
    fate: str
    """What becomes of such an entry at import."""


KINDS: dict[str, Kind] = {
    "file_unreadable": Kind(ERROR, "absent, or not of the format: the import stops"),
    "entry_malformed": Kind(ERROR, f"not what the format has in this place: {_STOPS}"),
    "image_id_twice": Kind(ERROR, _STOPS),
    "image_missing": Kind(ERROR, "the row is rejected as missing_image"),
    "image_unreadable": Kind(ERROR, "no whole picture: the row is rejected as unreadable_image"),
    "image_size_differs": Kind(ERROR, "boxes would not fit: the row is rejected as size_mismatch"),
    "image_unknown": Kind(ERROR, f"labels of an image that is not listed: {_STOPS}"),
    "caption_blank": Kind(ERROR, "the row is rejected as empty_caption"),
    "box_malformed": Kind(ERROR, f"no four numbers: {_STOPS}"),
    "span_malformed": Kind(ERROR, f"no list of [begin, end): {_STOPS}"),
    "mask_malformed": Kind(ERROR, f"neither polygons nor an RLE object, or not one per box: {_STOPS}"),
    "xml_malformed": Kind(ERROR, f"no annotation, or a document type: {_STOPS}"),
    "markup_broken": Kind(ERROR, "marks do not close: the row is rejected as broken_markup"),
    "category_unknown": Kind(ERROR, f"a box of a category that is not listed, or has no name: {_STOPS}"),
    "category_id_twice": Kind(ERROR, "the last name given wins, for all boxes of the id"),
    "annotation_id_zero": Kind(WARNING, "kept; as ground truth, pycocotools takes a match with it for none"),
    "annotation_id_twice": Kind(WARNING, "both kept; as ground truth, pycocotools knows the last one only"),
    "box_not_finite": Kind(WARNING, f"NaN or infinite: {_LEFT_OUT} or cut"),
    "box_without_area": Kind(WARNING, _LEFT_OUT),
    "box_outside": Kind(WARNING, f"wholly outside the picture: {_LEFT_OUT}"),
    "box_over_edge": Kind(WARNING, "by more than a pixel: cut there; were pictures scaled without their boxes?"),
    "box_without_span": Kind(WARNING, f"no words of the caption are its own: {_LEFT_OUT}"),
    "box_without_name": Kind(WARNING, _LEFT_OUT),
    "span_outside": Kind(WARNING, "ends after the caption, or begins before it: the span is left out"),
    "span_empty": Kind(WARNING, "no characters: the span is left out"),
    "span_blank": Kind(WARNING, "nothing but blanks: kept, and the box teaches no word"),
    "span_cuts_word": Kind(WARNING, "begins or ends inside a word: kept, and the box teaches the whole word's tokens"),
    "polygon_without_corners": Kind(WARNING, "under three corners, or half a point: the polygon is left out"),
    "caption_too_long": Kind(WARNING, "kept; words beyond the limit, and their boxes, are never learned"),
    "category_name_twice": Kind(WARNING, "both ids kept; in training they are one category"),
    "category_name_blank": Kind(WARNING, "a prompt has nothing to say for it"),
    "category_dummy_parent": Kind(WARNING, "no class of its own, yet prompts would name it: delete it from the file"),
    "negative_unknown": Kind(WARNING, "absent or not exhaustive category that is not listed: kept, and never used"),
    "negative_boxed": Kind(WARNING, "said to be absent, yet it has a box in the image: the box is kept"),
    "image_bytes_twice": Kind(WARNING, "the same picture under two names: both kept; jobs.guard removes one"),
    "image_file_twice": Kind(WARNING, "the same file in two entries: both kept, each without the other's boxes"),
    "box_twice": Kind(WARNING, "the same box and category twice in one image: both kept"),
    "category_ids_from_zero": Kind(NOTE, "kept: 0 is a class like any other"),
    "category_ids_with_gaps": Kind(NOTE, "kept: ids need not follow one another"),
    "category_unused": Kind(NOTE, "no box has it: it only ever serves as an absent name in prompts"),
    "box_over_edge_slightly": Kind(NOTE, "by a pixel or less: cut at the edge"),
    "box_of_crowd": Kind(NOTE, "kept with its flag; its category counts as not fully boxed"),
    "phrase_without_box": Kind(NOTE, "kept as a phrase that has none"),
    "image_size_not_stated": Kind(NOTE, "taken from the picture"),
    "image_without_boxes": Kind(NOTE, "kept as a row without boxes; training passes it over"),
    # Finished shards: what is found there has been imported already.
    "manifest_missing": Kind(ERROR, "unfinished: training refuses the directory"),
    "manifest_malformed": Kind(ERROR, "training refuses the directory"),
    "schema_version_differs": Kind(ERROR, "training refuses the directory: import it again"),
    "shard_missing": Kind(ERROR, "training stops: import it again"),
    "shard_unreadable": Kind(ERROR, "no parquet, or a damaged one: training stops"),
    "shard_changed": Kind(ERROR, "its rows or hash are not those of the manifest: nobody knows what it holds"),
    "column_missing": Kind(ERROR, "training stops: import it again"),
    "columns_disagree": Kind(ERROR, "per-box lists of unequal length: training stops or teaches wrong labels"),
    "row_malformed": Kind(ERROR, "its status, kind or text cannot be: training stops or passes it over"),
    "sample_id_twice": Kind(ERROR, "both are trained on, and share their random numbers"),
    "shard_stray": Kind(WARNING, "not in the manifest: never read"),
}
"""All that is looked for. Order: as a reader would want to repair it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of oddity and where it was seen."""

    kind: str
    """Key of `KINDS`."""
    severity: str
    """One of `SEVERITIES`."""
    count: int
    """How often it was found."""
    fate: str
    """What becomes of such entries at import."""
    examples: tuple[str, ...]
    """The first few, with their ids."""


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What was found; `str` gives it for a person, `as_dict` for a program."""

    format: str
    """Format that was looked for."""
    place: str
    """File or folder that was looked at."""
    counts: dict[str, int]
    """How much there was of what."""
    findings: tuple[Finding, ...]
    """Worst first."""
    notes: tuple[str, ...] = ()
    """Whatever else a person should know of this look."""

    @property
    def errors(self) -> int:
        """Kinds of severity `ERROR`."""
        return sum(finding.severity == ERROR for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Give what JSON can hold."""
        return asdict(self) | {"errors": self.errors}

    def __str__(self) -> str:
        """Lay the report out for a person."""
        counted = ", ".join(f"{what} {count:,}" for what, count in self.counts.items())
        head = [f"{printable(self.place)}, read as {self.format}", counted, *self.notes]
        lines = [line for finding in self.findings for line in _lines(finding)]
        table = ["", f"{'severity':<9}{'kind':<26}{'count':>9}  what becomes of it", *lines] if lines else []
        return "\n".join([*head, *table, "", self._verdict()])

    def _verdict(self) -> str:
        kinds = Counter(finding.severity for finding in self.findings)
        found = [f"{kinds[name]} {name}{'s' * (kinds[name] > 1)}" for name in SEVERITIES if kinds[name]]
        return f"Kinds of finding: {', '.join(found)}" if found else "Nothing was found."


class Findings:
    """Collects what is found: every count, the first few examples."""

    def __init__(self, fates: Mapping[str, str] | None = None) -> None:
        """Start empty; ``fates`` replaces what `KINDS` says becomes of some kinds."""
        self._fates = dict(fates or {})
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        """Count one more of a kind of `KINDS`; ``example`` says which entry it is, and what is there."""
        examples = self._examples.setdefault(kind, [])
        self._counts[kind] += 1
        if len(examples) < NUM_EXAMPLES:
            examples.append(_short(example))

    def sorted(self) -> tuple[Finding, ...]:
        """List the findings, worst first, each severity in the order of `KINDS`."""
        order = list(KINDS)
        found = [
            Finding(
                kind=kind,
                severity=KINDS[kind].severity,
                count=count,
                fate=self._fates.get(kind, KINDS[kind].fate),
                examples=tuple(self._examples[kind]),
            )
            for kind, count in self._counts.items()
        ]
        return tuple(sorted(found, key=lambda f: (SEVERITIES.index(f.severity), order.index(f.kind))))


def _lines(finding: Finding) -> list[str]:
    head = f"{finding.severity:<9}{finding.kind:<26}{finding.count:>9,}  "
    first, *rest = textwrap.wrap(finding.fate, _WIDTH - len(head))
    more = [" " * len(head) + line for line in rest]
    return [head + first, *more, *(f"{'':9}  {example}" for example in finding.examples)]


def _short(example: str) -> str:
    text = printable(re.sub(r"\s", " ", example[: 2 * _EXAMPLE_CHARS]))
    return text if len(text) <= _EXAMPLE_CHARS else f"{text[: _EXAMPLE_CHARS - 1]}…"
