"""How trials were tuned: validation AP and loss by epoch, a panel for each data set, mode and number of shots."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.canvas import Chart, Theme, chart, legend, panels
from pipeline.report.inputs import Trial
from pipeline.report.tables import percent, shots_name

MAX_PANELS = 30
"""Panels drawn, those with the most shots first; MLflow has the curves of all trials."""
History = list[dict[str, float]]


def tuning_charts(trials: list[Trial]) -> list[Chart]:
    """Draw the way of every tuned trial; draws of one kind share a panel."""
    return [_chart(number, kind) for number, kind in enumerate(drawn_together(trials))]


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
