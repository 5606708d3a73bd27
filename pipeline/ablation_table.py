"""The ablation's numbers beside the paper's: means over seeds, and whether each effect goes the paper's way."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.report.inputs import Table
from pipeline.shards import write_atomically
from pipeline.zero_shot import COLUMNS

Scores = Mapping[str, Sequence[Mapping[str, float]]]
"""Per row what each finished seed scored, with its ``seed``."""

BASE = "many captions"
"""The row most others are compared with."""
LONGER = "many captions, labels of a longer trained teacher"
"""The row whose labels are made by the model of ``no captions``; both were trained equally long."""
STANDARD_ERRORS = 2.0
"""An effect within so many standard errors of zero is called noise."""
PAPER_COLUMNS = ("coco", "odinw", "lvis", "flickr30k")
OWN = ("base", "novel")

EFFECTS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "L_inter, no captions (Table 5)": ("no captions, L_inter", "no captions", (0.53, -0.50, 1.3, -0.46)),
    "L_inter, some captions (Table 5)": ("some captions, L_inter", "some captions", (0.58, 1.35, 0.8, -0.06)),
    "L_inter, many captions (Table 5)": ("many captions, L_inter", BASE, (0.76, 3.83, 1.1, 0.05)),
    "some captions instead of none (Table 5)": ("some captions", "no captions", (0.15, 8.21, 8.6, 1.20)),
    "many captions instead of some (Table 5)": (BASE, "some captions", (0.29, -2.03, 1.3, 0.23)),
    "L_mlm (Table 4, row 4 - 3)": ("many captions, L_mlm", BASE, (0.4, 1.1, 2.5, 0.8)),
    "L_inter (Table 4, row 5 - 3)": ("many captions, L_inter", BASE, (0.5, 1.9, 2.6, 0.1)),
    "L_inter and L_mlm (Table 4, row 6 - 3)": ("many captions, L_inter, L_mlm", BASE, (0.7, 2.0, 3.0, 0.6)),
    "unboxed phrases masked, not taught as absent": (BASE, "many captions, unboxed phrases taught as absent", ()),
    "captions, over the teacher": (BASE, "teacher", ()),
    "labels of a longer trained teacher, over the teacher's": (LONGER, BASE, ()),
    "captions, over that longer trained teacher": (LONGER, "no captions", ()),
    "second generation, over the first": ("second generation", BASE, ()),
    "second generation, over the teacher": ("second generation", "teacher", ()),
}
"""What is compared: the row with it, the row without, and the paper's differences in `PAPER_COLUMNS`. Table 5's models
are of size B and see 0, 4 and 12 million captions, Table 4's are of size T."""


def write_tables(out: Path, scores: Scores) -> str:
    """Write ``ablation.md`` and ``ablation.json``; return the text of the former."""
    effects = {name: compare(scores, name) for name in EFFECTS}
    text = "\n\n".join(_as_markdown(table) for table in tables(scores))
    write_atomically(out / "ablation.md", text + "\n")
    write_atomically(out / "ablation.json", json.dumps({"scores": scores, "effects": effects}, indent=1))
    return text


def tables(scores: Scores) -> list[Table]:
    """Lay out the means over seeds, and what each change does."""
    return [_means(scores), _effects({name: compare(scores, name) for name in EFFECTS})]


def compare(scores: Scores, name: str) -> dict[str, dict[str, float | str]]:
    """Subtract one row from another, seed by seed, and judge each column's effect against the paper's direction."""
    with_it, without, paper = EFFECTS[name]
    given = {row: {s["seed"]: s for s in scores.get(row, ())} for row in (with_it, without)}
    seeds = sorted(given[with_it].keys() & given[without].keys())
    theirs = dict(zip(PAPER_COLUMNS, paper, strict=False))
    found: dict[str, dict[str, float | str]] = {}
    for column in (*PAPER_COLUMNS, *OWN) if seeds else ():
        differences = [given[with_it][seed][column] - given[without][seed][column] for seed in seeds]
        mean, error = statistics.fmean(differences), standard_error(differences)
        found[column] = {"mean": mean, "standard_error": error, "verdict": _verdict(mean, error, theirs.get(column))}
        if column in theirs:
            found[column]["paper"] = theirs[column]
    return found


def standard_error(values: Sequence[float]) -> float:
    """Give the standard error of a mean; not a number for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _verdict(mean: float, error: float, paper: float | None) -> str:
    if math.isnan(error):
        return "one seed"
    if abs(mean) < STANDARD_ERRORS * error:
        return "within noise"
    if paper is None:
        return "better" if mean > 0 else "worse"
    return "agree" if mean * paper > 0 else "disagree"


def _means(scores: Scores) -> Table:
    return Table(
        caption="Mean over seeds ± standard deviation, percent",
        columns=["Trained with", "Seeds", *COLUMNS.values()],
        rows=[
            [row, str(len(found)), *(_spread([s[column] for s in found]) for column in COLUMNS)]
            for row, found in scores.items()
        ],
    )


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _effects(effects: Mapping[str, Mapping[str, Mapping[str, float | str]]]) -> Table:
    columns = (*PAPER_COLUMNS, *OWN)
    return Table(
        caption=f"Mean difference over seeds ± its standard error; noise is within {STANDARD_ERRORS:g} of them",
        columns=["Effect of", *(COLUMNS[column] for column in columns)],
        rows=[
            [name, *(_cell(found[column]) if column in found else "–" for column in columns)]
            for name, found in effects.items()
        ],
    )


def _as_markdown(table: Table) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join([f"{table.caption}:", "", *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(effect: Mapping[str, float | str]) -> str:
    error = float(effect["standard_error"])
    text = f"{float(effect['mean']):+.1f}" + ("" if math.isnan(error) else f" ± {error:.1f}")
    paper = f" (paper {float(effect['paper']):+.2f})" if "paper" in effect else ""
    return f"{text}{paper}: {effect['verdict']}"
