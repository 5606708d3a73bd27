"""The tables of what a detector gets right and wrong; fractions are written in percent."""

import math
from collections.abc import Sequence

from glipv2.evaluation.errors import Point
from pipeline.report.inputs import Analysis, ClassResult, NameRate, Table
from pipeline.report.tables import count, percent, share

MAX_ROWS = 100
"""Classes or names in a table; all of them are in the json beside the report."""
ALL = "all classes"
SHOWN_MEASURES = ("AP", "AP50", "AP75", "AR100")


def in_percent(fraction: float) -> str:
    """Write a fraction in percent, or a dash where there is none."""
    return percent(100 * fraction)


def score_text(value: float) -> str:
    """Write a score of any scale, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.2f}" if 0 <= value <= 1 else f"{value:.4g}"


def class_tables(analysis: Analysis) -> list[Table]:
    """Build the table of average precision by class."""
    rows = [[c.name, count(c.curve.num_truth), *_measures(c.measures)] for c in analysis.classes[:MAX_ROWS]]
    mean = [ALL, count(analysis.overall.num_truth), *_measures(analysis.measures)]
    return [
        Table(
            caption=f"Average precision and recall by class, percent{cut(analysis.classes)}",
            columns=["Class", "Truth boxes", *SHOWN_MEASURES],
            rows=[mean, *rows],
        )
    ]


def error_tables(analysis: Analysis) -> list[Table]:
    """Build the tables of false positives by kind and of what was found by size."""
    wrong = sum(analysis.kinds.values())
    kinds = [[kind, count(number), share(number, wrong)] for kind, number in analysis.kinds.items()]
    sizes = [
        [s.name, count(s.num_truth), count(s.num_found), share(s.num_found, s.num_truth), in_percent(s.ap)]
        for s in analysis.sizes
    ]
    at = f"at {score_text(analysis.threshold)}"
    return [
        Table(caption=f"False positives {at}", columns=["Kind", "Detections", "Share"], rows=kinds),
        Table(
            caption=f"Objects by COCO's sizes; found {at}",
            columns=["Size", "Truth boxes", "Found", "Recall", "AP"],
            rows=sizes,
        ),
    ]


def threshold_tables(analysis: Analysis) -> list[Table]:
    """Build the table of precision and recall at the deployed threshold, and of the threshold that would be best."""
    curves = [(ALL, analysis.overall), *((c.name, c.curve) for c in analysis.classes[:MAX_ROWS])]
    rows = []
    for name, curve in curves:
        best = curve.best()
        rows.append([name, *_point(curve.at(analysis.threshold)), in_percent(best.f1), score_text(best.threshold)])
    return [
        Table(
            caption=f"At the deployed threshold {score_text(analysis.threshold)}, percent{cut(analysis.classes)}",
            columns=["Class", "Right", "Wrong", "Precision", "Recall", "F1", "Best F1", "Best threshold"],
            rows=rows,
        )
    ]


def calibration_tables(analysis: Analysis) -> list[Table]:
    """Build the table of scores and the share that is right."""
    if analysis.calibration is None:
        return []
    rows = [
        [f"{b.low:.1f}–{b.high:.1f}", count(b.count), score_text(b.mean_score), in_percent(b.share_right)]
        for b in analysis.calibration.bins
    ]
    caption = f"Expected calibration error {in_percent(analysis.calibration.error)} points"
    return [Table(caption=caption, columns=["Score", "Detections", "Mean score", "Right, percent"], rows=rows)]


def absent_tables(analysis: Analysis) -> list[Table]:
    """Build the table of names asked for where they are not, beside the same names where they are."""
    if not analysis.absent:
        return []
    together = [total(analysis.absent, listed=listed) for listed in (False, True)]
    rows = [_rates(row) for row in (*together, *by_absent_rate(analysis.absent)[:MAX_ROWS]) if row.num_absent]
    return [
        Table(
            caption=f"Pictures in which a name finds something at {score_text(analysis.threshold)}, worst name first"
            + cut(analysis.absent),
            columns=["Name", "Asked, absent", "Found", "Percent", "Asked, present", "Found", "Percent"],
            rows=rows,
        )
    ]


def total(rates: Sequence[NameRate], *, listed: bool) -> NameRate:
    """Sum up the names of the data set, or those of the further list."""
    own = [rate for rate in rates if rate.listed == listed]
    return NameRate(
        name="all further names" if listed else "all names of the data set",
        listed=listed,
        num_absent=sum(rate.num_absent for rate in own),
        num_absent_found=sum(rate.num_absent_found for rate in own),
        num_present=sum(rate.num_present for rate in own),
        num_present_found=sum(rate.num_present_found for rate in own),
    )


def by_absent_rate(rates: Sequence[NameRate]) -> list[NameRate]:
    """Sort names by how often they find something that is not there; those never asked for are left out."""
    asked = [rate for rate in rates if rate.num_absent]
    return sorted(asked, key=lambda rate: (-rate.num_absent_found / rate.num_absent, -rate.num_absent_found, rate.name))


def cut(rows: Sequence[ClassResult | NameRate]) -> str:
    """Say how many rows a table leaves out, if it does."""
    if len(rows) <= MAX_ROWS:
        return ""
    return f"; the first {MAX_ROWS} of {count(len(rows))}, all are in the json beside the report"


def _measures(measures: dict[str, float]) -> list[str]:
    return [in_percent(measures[name]) for name in SHOWN_MEASURES]


def _point(point: Point) -> list[str]:
    return [
        *map(count, (point.num_right, point.num_wrong)),
        *map(in_percent, (point.precision, point.recall, point.f1)),
    ]


def _rates(rate: NameRate) -> list[str]:
    cells = [rate.name]
    for found, asked in ((rate.num_absent_found, rate.num_absent), (rate.num_present_found, rate.num_present)):
        cells += [count(asked), count(found), in_percent(found / asked)] if asked else ["–"] * 3
    return cells
