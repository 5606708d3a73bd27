"""The charts of what a detector gets right and wrong."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glipv2.evaluation.errors import Calibration, Curve
from pipeline.report.analysis_tables import by_absent_rate, in_percent, score_text
from pipeline.report.canvas import Chart, Theme, chart, legend, panel, plain
from pipeline.report.inputs import Analysis, NameRate
from pipeline.report.tables import count, share, shorten

MAX_BARS = 30
"""Classes or names drawn; the tables have more."""
MAX_CURVES = 11
"""Classes with a panel of their own."""
MAX_POINTS = 1500
"""Points of one curve: more cannot be seen."""
NAME_LENGTH = 24


def class_charts(analysis: Analysis) -> list[Chart]:
    """Draw AP of the classes with the most truth, AP50 as a mark beyond it."""
    shown = [c for c in analysis.classes if c.curve.num_truth][:MAX_BARS]
    if not shown:
        return []
    told = (f"{c.name} {in_percent(c.measures['AP'])}, {in_percent(c.measures['AP50'])}" for c in shown)
    names = [plain(f"{shorten(c.name, NAME_LENGTH)}  {count(c.curve.num_truth)}") for c in shown]

    def draw(theme: Theme) -> Figure:
        figure, axes = _rows(theme, names)
        ap, ap50 = ([100 * c.measures[name] for c in shown] for name in ("AP", "AP50"))
        axes.barh(range(len(shown)), ap, height=0.66, color=theme.kept, label="AP")
        axes.plot(ap50, range(len(shown)), "D", markersize=4.5, color=theme.rejected, label="AP50")
        axes.set_xlim(0, 104)
        axes.set_xlabel("Percent; behind a name its truth boxes", fontsize=8.5, color=theme.muted)
        legend(figure, axes, theme)
        return figure

    some = f", the {len(shown)} of {count(len(analysis.classes))} with the most truth"
    title = "AP by class" + (some if len(shown) < len(analysis.classes) else "")
    return [chart("classes", title, "AP and AP50 in percent: " + "; ".join(told), draw, 6.0)]


def kind_charts(analysis: Analysis) -> list[Chart]:
    """Draw how many false positives there are of each kind."""
    kinds = analysis.kinds
    if not any(kinds.values()):
        return []
    alt = "False positives: " + "; ".join(f"{kind} {count(number)}" for kind, number in kinds.items())

    def draw(theme: Theme) -> Figure:
        figure, axes = _rows(theme, list(kinds))
        longest = max(kinds.values())
        axes.barh(range(len(kinds)), list(kinds.values()), height=0.66, color=theme.rejected)
        for row, number in enumerate(kinds.values()):
            text = f"{count(number)}  {share(number, sum(kinds.values()))}"
            axes.text(number + 0.015 * longest, row, text, va="center", fontsize=8.5, color=theme.ink)
        axes.set(xlim=(0, 1.3 * longest), xticks=[])
        axes.grid(visible=False)
        return figure

    return [chart("kinds", f"False positives at {score_text(analysis.threshold)}", alt, draw, 6.0)]


def curve_charts(analysis: Analysis) -> list[Chart]:
    """Draw precision over recall of all classes together, then of the classes with the most truth."""
    curves = [("All classes", analysis.overall), *((c.name, c.curve) for c in analysis.classes[:MAX_CURVES])]
    if len(curves) == 2:  # of one class, all is the same
        del curves[0]
    return [
        _curve_chart(f"curve_{number:02d}", name, curve, analysis.threshold)
        for number, (name, curve) in enumerate(curves)
        if len(curve.scores) and curve.num_truth
    ]


def calibration_charts(analysis: Analysis) -> list[Chart]:
    """Draw the share that is right by score, with the counts."""
    calibration = analysis.calibration
    if calibration is None or not any(b.count for b in calibration.bins):
        return []
    bins = [b for b in calibration.bins if b.count]
    told = (f"{b.low:.1f} to {b.high:.1f}: {in_percent(b.share_right)} of {count(b.count)}" for b in bins)

    def draw(theme: Theme) -> Figure:
        figure, axes = panel(theme, 4.8, 3.2)
        axes.bar([b.low + 0.05 for b in bins], [b.share_right for b in bins], width=0.088, color=theme.kept)
        axes.plot([0, 1], [0, 1], color=theme.ink, linewidth=1, linestyle=(0, (3, 3)))
        for b in bins:
            text = _compact(b.count)
            axes.text(b.low + 0.05, b.share_right + 0.015, text, ha="center", fontsize=7.5, color=theme.muted)
        _unit_axes(axes, theme, "Score", "Share right, count above")
        return figure

    title = f"Calibration, expected error {_points(calibration)}"
    return [chart("calibration", title, "Percent right by score: " + "; ".join(told), draw, 4.8)]


def absent_charts(analysis: Analysis) -> list[Chart]:
    """Draw how often a name finds something where it is not and where it is, the worst name first."""
    shown = by_absent_rate(analysis.absent)[:MAX_BARS]
    if not shown:
        return []
    alt = "Percent of pictures, absent and present: " + "; ".join(map(_told, shown))

    def draw(theme: Theme) -> Figure:
        figure, axes = _rows(theme, [plain(shorten(rate.name, NAME_LENGTH)) for rate in shown])
        present = [(row, rate) for row, rate in enumerate(shown) if rate.num_present]
        axes.barh(
            [row + 0.2 for row, _ in present],
            [100 * rate.num_present_found / rate.num_present for _, rate in present],
            height=0.36,
            color=theme.kept,
            label="present",
        )
        absent = [100 * rate.num_absent_found / rate.num_absent for rate in shown]
        axes.barh([row - 0.2 for row in range(len(shown))], absent, height=0.36, color=theme.rejected, label="absent")
        axes.set_xlim(0, 104)
        axes.set_xlabel("Percent of pictures in which the name finds something", fontsize=8.5, color=theme.muted)
        legend(figure, axes, theme)
        return figure

    return [chart("absent", "Found where present, found though absent", alt, draw, 6.0)]


def _curve_chart(name: str, title: str, curve: Curve, threshold: float) -> Chart:
    deployed, best = curve.at(threshold), curve.best()
    alt = (
        f"At {score_text(threshold)}: precision {in_percent(deployed.precision)}, recall "
        f"{in_percent(deployed.recall)} percent; "
        f"best F1 {in_percent(best.f1)} percent at {score_text(best.threshold)}"
    )
    step = len(curve.scores) // MAX_POINTS + 1

    def draw(theme: Theme) -> Figure:
        figure, axes = panel(theme, 3.2, 2.7)
        axes.plot(curve.recall[::step], curve.precision[::step], color=theme.kept, linewidth=1.6)
        marks = ((deployed, "o", theme.ink, "deployed"), (best, "D", theme.rejected, "best F1"))
        for point, marker, colour, label in marks:
            text = f"{label}, {score_text(point.threshold)}"
            axes.plot([point.recall], [point.precision], marker, markersize=6, color=colour, label=text, clip_on=False)
        _unit_axes(axes, theme, "Recall", "Precision")
        legend(figure, axes, theme)
        return figure

    return chart(name, title, alt, draw, 3.2)


def _rows(theme: Theme, names: list[str]) -> tuple[Figure, Axes]:
    """Make a panel with a row for each name."""
    figure, axes = panel(theme, 6.0, 0.9 + 0.25 * len(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names, color=theme.ink)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _unit_axes(axes: Axes, theme: Theme, across: str, up: str) -> None:
    axes.set(xlim=(0, 1.02), ylim=(0, 1.08))
    axes.set_xlabel(across, fontsize=8.5, color=theme.muted)
    axes.set_ylabel(up, fontsize=8.5, color=theme.muted)


def _compact(number: int) -> str:
    """Write a count in at most four characters or so."""
    return str(number) if number < 1000 else f"{number / 1000:.3g}k" if number < 1e6 else f"{number / 1e6:.3g}M"


def _points(calibration: Calibration) -> str:
    return f"{in_percent(calibration.error)} points"


def _told(rate: NameRate) -> str:
    return f"{rate.name} {share(rate.num_absent_found, rate.num_absent)}, " + share(
        rate.num_present_found, rate.num_present
    )
