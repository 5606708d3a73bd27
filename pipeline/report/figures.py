"""The charts of a report, each drawn twice: on light and on dark ground.

One chart holds one panel: the page lays the panels out, so that they stay readable at any width.
"""

import math
import statistics

import numpy as np
from matplotlib.figure import Figure

from pipeline.report.canvas import Chart, Theme, chart, legend, panel, plain
from pipeline.report.inputs import ZERO_SHOT, Score, Stage, Training, Trial
from pipeline.report.tables import (
    chains,
    count,
    mean_and_spread,
    percent,
    shorten,
    shots_mark,
    shots_name,
    unique,
    with_mean,
)

MAX_REASONS = 8
"""Reasons of one stage drawn by name; the rest share a bar."""
MAX_POINTS = 1500
"""Points of one curve: more cannot be seen."""
NAME_LENGTH = 24


def funnel_charts(stages: list[Stage]) -> list[Chart]:
    """Draw where every row went: totals as bars from zero, each reason as the piece it took away."""
    bars = [bar for chain in chains(stages) for bar in _waterfall(chain)]
    if not bars:
        return []
    alt = "Rows by stage and reason: " + "; ".join(f"{label} {count(length)}" for label, _, length, _ in bars)

    def draw(theme: Theme) -> Figure:
        figure, axes = panel(theme, 6.0, 0.5 + 0.27 * len(bars))
        longest = max(start + length for _, start, length, _ in bars) or 1
        for row, (_, start, length, kept) in enumerate(bars):
            axes.barh(row, length, left=start, height=0.7, color=theme.kept if kept else theme.rejected)
            text = count(length) if kept else f"−{count(length)}"
            axes.text(start + length + 0.01 * longest, row, text, va="center", fontsize=8.5, color=theme.ink)
        axes.set(xlim=(0, 1.14 * longest), ylim=(len(bars) - 0.4, -0.6))
        axes.set_yticks(range(len(bars)), [plain(label) for label, *_ in bars])
        for label, (_, _, _, kept) in zip(axes.get_yticklabels(), bars, strict=True):
            label.set(color=theme.ink if kept else theme.muted, fontweight="bold" if kept else "normal")
        axes.set_xticks([])
        axes.grid(visible=False)
        return figure

    return [chart("funnel", "Where every row went", alt, draw, 6.0)]


def score_charts(scores: list[Score]) -> list[Chart]:
    """Draw AP50 of all models per data set, one panel each for all, base and novel nouns."""
    panels = {"all": "ap50", "base": "ap50_base", "novel": "ap50_novel"}
    longest = max((score.ap50 for score in scores if not math.isnan(score.ap50)), default=0.0)
    longest = max([longest, *(v for s in scores for v in (s.ap50_base, s.ap50_novel) if v and not math.isnan(v))])
    charts = []
    for nouns, attribute in panels.items():
        values = {(s.model, s.dataset): getattr(s, attribute) for s in scores if percent(getattr(s, attribute)) != "–"}
        if values:
            charts.append(_score_chart(nouns, values, unique(s.model for s in scores), longest))
    return charts


def training_charts(trainings: list[Training]) -> list[Chart]:
    """Draw the loss and its parts over the steps, one panel per model."""
    charts = []
    for number, training in enumerate(trainings):
        curves = {name: _curve(training, name) for name in _loss_names(training)}
        if curves := {name: curve for name, curve in curves.items() if len(curve[0]) > 1}:
            charts.append(_loss_chart(f"loss_{number}", training.model, curves))
    return charts


def trial_charts(trials: list[Trial]) -> list[Chart]:
    """Draw AP over shots, one panel per data set and, first, one for their mean; all share the AP axis."""
    rows = with_mean(trials)
    top = (
        max((trial.ap for trial in rows if not math.isnan(trial.ap)), default=0.0) or 1.0
    )  # an axis of no length warns
    shots = sorted({trial.shots for trial in rows})
    return [
        _shots_chart(f"shots_{number:02d}", [trial for trial in rows if trial.dataset == dataset], shots, top)
        for number, dataset in enumerate(unique(trial.dataset for trial in rows))
    ]


def _waterfall(chain: list[Stage]) -> list[tuple[str, int, int, bool]]:
    """List bars as (label, start, length, kept) from the rows given to a chain down to those that came out."""
    bars = [(f"{chain[0].name}: in", 0, chain[0].rows_in, True)] if chain[0].rejects or len(chain) > 1 else []
    for stage in chain:
        left = stage.rows_in
        for reason, rows in _top_reasons(stage):
            left -= rows
            bars.append((reason, left, rows, False))
        bars.append((f"{stage.name}: out" if stage.rejects else stage.name, 0, stage.rows_out, True))
    return bars


def _top_reasons(stage: Stage) -> list[tuple[str, int]]:
    ordered = sorted(stage.rejects.items(), key=lambda item: (-item[1], item[0]))
    named = [(reason.split(":", 1)[-1].replace("_", " "), rows) for reason, rows in ordered]
    if len(named) <= MAX_REASONS:
        return named
    rest = named[MAX_REASONS - 1 :]
    return [*named[: MAX_REASONS - 1], (f"{len(rest)} other reasons", sum(rows for _, rows in rest))]


def _score_chart(nouns: str, values: dict[tuple[str, str], float], models: list[str], longest: float) -> Chart:
    datasets = unique(dataset for _, dataset in values)
    told = (f"{dataset} {model} {percent(value)}" for (model, dataset), value in values.items())
    height = 0.8 + len(datasets) * (0.22 + 0.2 * len(models))

    def draw(theme: Theme) -> Figure:
        figure, axes = panel(theme, 4.2, height)
        thickness = 0.78 / len(models)
        for index, model in enumerate(models):
            colour = theme.series[index % len(theme.series)]
            here = [(row, values[model, name]) for row, name in enumerate(datasets) if (model, name) in values]
            rows = [row + (index - (len(models) - 1) / 2) * thickness for row, _ in here]
            axes.barh(rows, [v for _, v in here], height=0.9 * thickness, color=colour, label=plain(model))
            for row, (_, value) in zip(rows, here, strict=True):
                axes.text(value + 0.012 * longest, row, percent(value), va="center", fontsize=8, color=theme.ink)
        axes.set(xlim=(0, 1.16 * max(longest, 1.0)), ylim=(len(datasets) - 0.45, -0.55))
        axes.set_yticks(range(len(datasets)), [plain(shorten(name, NAME_LENGTH)) for name in datasets])
        axes.grid(visible=False, axis="y")
        legend(figure, axes, theme)
        return figure

    return chart(f"scores_{nouns}", f"AP50, {nouns} nouns", "AP50 in percent: " + "; ".join(told), draw, 4.2)


def _loss_names(training: Training) -> list[str]:
    names = unique(key for row in training.history for key in row)
    return ["loss", *(name for name in names if name.startswith("loss_"))]


def _curve(training: Training, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the finite values of one logged quantity, in the order of steps."""
    points = sorted((row["step"], row[name]) for row in training.history if "step" in row and name in row)
    table = np.array([point for point in points if math.isfinite(point[1])], dtype=float).reshape(-1, 2)
    table = table[:: max(1, math.ceil(len(table) / MAX_POINTS))]
    return table[:, 0], table[:, 1]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Average over a window of a twentieth of the curve, shorter at its ends."""
    window = np.ones(max(1, len(values) // 20))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _loss_chart(name: str, model: str, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Chart:
    told = (f"{part} from {_smoothed(v)[0]:.3f} to {_smoothed(v)[-1]:.3f}" for part, (_, v) in curves.items())
    smallest = min(float(values.min()) for _, values in curves.values())

    def draw(theme: Theme) -> Figure:
        figure, axes = panel(theme, 4.2, 2.9)
        colours = (theme.ink, *theme.series)
        for index, (part, (steps, values)) in enumerate(curves.items()):
            colour = colours[index % len(colours)]
            axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.28)
            label = part.removeprefix("loss_") if index else "loss, all parts"
            width = 1.4 if index else 2.0
            axes.plot(steps, _smoothed(values), color=colour, linewidth=width, label=plain(label))
        if smallest > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("Step", fontsize=8.5, color=theme.muted)
        legend(figure, axes, theme)
        return figure

    return chart(name, f"Loss, {model}", f"Loss of {model} over steps: " + "; ".join(told), draw, 4.2)


def _shots_chart(name: str, trials: list[Trial], shots: list[float], top: float) -> Chart:
    by_mode = {mode: _aps(trials, mode) for mode in unique(trial.mode for trial in trials)}
    zero = by_mode.pop(ZERO_SHOT, {})
    cells = {(mode, n): aps for mode, curve in by_mode.items() for n, aps in curve.items()}
    told = [f"{ZERO_SHOT} {mean_and_spread(aps)}" for aps in zero.values()]
    told += [f"{mode} {shots_name(n)} {mean_and_spread(aps)}" for (mode, n), aps in cells.items()]

    def draw(theme: Theme) -> Figure:
        figure, axes = panel(theme, 3.2, 2.3)
        for index, (mode, tuned) in enumerate(by_mode.items()):
            colour = theme.series[index % len(theme.series)]
            curve = {**zero, **tuned}
            where = [shots.index(n) for n in curve]
            axes.fill_between(where, [*map(min, curve.values())], [*map(max, curve.values())], color=colour, alpha=0.25)
            means = [statistics.fmean(aps) for aps in curve.values()]
            axes.plot(where, means, color=colour, linewidth=1.8, marker="o", markersize=4, label=mode)
        for aps in zero.values():
            mean = statistics.fmean(aps)
            axes.axhline(mean, color=theme.muted, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
            axes.plot([0], [mean], color=theme.ink, marker="D", markersize=4.5, linestyle="", label=ZERO_SHOT)
        axes.set(xlim=(-0.35, len(shots) - 0.65), ylim=(0, 1.08 * top))
        axes.set_xticks(range(len(shots)), [shots_mark(n) for n in shots])
        axes.set_xlabel("Shots per class", fontsize=8.5, color=theme.muted)
        if len(by_mode) > 1:
            legend(figure, axes, theme)
        return figure

    return chart(name, trials[0].dataset, "AP in percent: " + "; ".join(told), draw, 3.2)


def _aps(trials: list[Trial], mode: str) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for trial in sorted(trials, key=lambda trial: trial.shots):
        if trial.mode == mode and not math.isnan(trial.ap):
            found.setdefault(trial.shots, []).append(trial.ap)
    return found
