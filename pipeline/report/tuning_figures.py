"""How trials were tuned: validation AP and loss by epoch, a panel for each data set, mode and number of shots.

And what averaging the tuned weights with the original ones keeps of both, a panel for each mode and number of shots.
"""

import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.canvas import Chart, Theme, chart, legend, panel, panels
from pipeline.report.inputs import Trial
from pipeline.report.tables import percent, shots_name

MAX_PANELS = 30
"""Panels drawn, those with the most shots first; MLflow has the curves of all trials."""
History = list[dict[str, float]]


def tuning_charts(trials: list[Trial]) -> list[Chart]:
    """Draw the way of every tuned trial; draws of one kind share a panel."""
    return [_chart(number, kind) for number, kind in enumerate(drawn_together(trials))]


def averaging_charts(trials: list[Trial]) -> list[Chart]:
    """Draw AP on what was tuned to and on the probe, means over data sets and draws, by the part of tuned weights."""
    kinds: dict[tuple[str, float], list[Trial]] = {}
    for trial in trials:
        if trial.averages:
            kinds.setdefault((trial.mode, trial.shots), []).append(trial)
    return [_averaging_chart(number, kind) for number, kind in enumerate(kinds.values())]


def drawn_together(trials: list[Trial]) -> list[list[Trial]]:
    """Group trials that have a way by data set, mode and shots, as many groups as there are panels."""
    kinds: dict[tuple[str, str, float], list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: -trial.shots):
        if len(trial.history) > 1:
            kinds.setdefault((trial.dataset, trial.mode, trial.shots), []).append(trial)
    return list(kinds.values())[:MAX_PANELS]


def _chart(number: int, trials: list[Trial]) -> Chart:
    first = trials[0]
    told = [_told(trial) for trial in trials]

    def draw(theme: Theme) -> Figure:
        figure, (ap, loss) = panels(theme, 4.2, 3.4, 2)
        for trial, colour in zip(trials, theme.series * len(trials), strict=False):
            _curve(ap, trial.history, "val_ap", colour, f"seed {trial.seed}")
            _curve(ap, trial.history, "val_ap50", colour, "")
            _curve(loss, trial.history, "loss", colour, "")
        ap.set_ylim(bottom=0)
        for axes, name in ((ap, "AP, AP50 (dotted)"), (loss, "Loss")):
            axes.set_ylabel(name, fontsize=8.5, color=theme.muted)
        loss.set_xlabel("Epoch", fontsize=8.5, color=theme.muted)
        if len(trials) > 1:
            legend(figure, ap, theme)
        return figure

    title = f"{first.dataset}, {first.mode}, {shots_name(first.shots)}"
    return chart(f"tuning_{number:02d}", title, "; ".join(told), draw, 4.2)


def _averaging_chart(number: int, trials: list[Trial]) -> Chart:
    first, rows = trials[0], [row for trial in trials for row in trial.averages]
    parts = sorted({row["tuned_part"] for row in rows})
    curves = {}
    for name, label in (("ap", "tuned to"), ("probe_ap", "probe")):
        seen = {part: [r[name] for r in rows if r["tuned_part"] == part and name in r] for part in parts}
        curves[label] = {part: statistics.fmean(values) for part, values in seen.items() if values}

    def draw(theme: Theme) -> Figure:
        figure, axes = panel(theme, 4.2, 2.4)
        for (label, curve), colour in zip(curves.items(), theme.series, strict=False):
            if curve:
                axes.plot(
                    [*curve], [*curve.values()], color=colour, linewidth=1.8, marker="o", markersize=4, label=label
                )
        axes.set_ylim(bottom=0)
        axes.set_xticks(parts, [f"{part:g}" for part in parts])
        axes.set_xlabel("Part of the tuned weights", fontsize=8.5, color=theme.muted)
        axes.set_ylabel("AP", fontsize=8.5, color=theme.muted)
        legend(figure, axes, theme)
        return figure

    told = [
        f"AP {label}: " + ", ".join(f"{percent(ap)} at {part:g}" for part, ap in curve.items())
        for label, curve in curves.items()
        if curve
    ]
    title = f"Averaged weights, {first.mode}, {shots_name(first.shots)}"
    return chart(f"averaging_{number:02d}", title, "; ".join(told), draw, 4.2)


def _curve(axes: Axes, history: History, name: str, colour: str, label: str) -> None:
    seen = [(row["epoch"], row[name]) for row in history if name in row]
    if seen:
        style = {"linewidth": 1.2, "linestyle": ":"} if name == "val_ap50" else {"linewidth": 1.8}
        axes.plot(*zip(*seen, strict=True), color=colour, label=label or "_", **style)


def _told(trial: Trial) -> str:
    rows = trial.history
    best = max(rows, key=lambda row: row["val_ap"])
    losses = [row["loss"] for row in rows if "loss" in row]
    text = (
        f"Validation AP of seed {trial.seed} from {percent(rows[0]['val_ap'])} to {percent(best['val_ap'])} at epoch "
    )
    text += f"{best['epoch']:g} of {rows[-1]['epoch']:g}"
    return f"{text}, loss from {losses[0]:.3f} to {losses[-1]:.3f}" if losses else text
