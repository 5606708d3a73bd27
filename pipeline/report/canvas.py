"""What charts are drawn on: the colours of light and dark ground, an empty panel, and the finished chart.

Figures are made without pyplot, so nothing global (backend, settings, open windows) changes.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOTS_PER_INCH = 170


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one ground; series colours stay apart for colour-blind readers (after Okabe and Ito)."""

    surface: str
    ink: str
    muted: str
    grid: str
    kept: str
    rejected: str
    series: tuple[str, ...]


LIGHT = Theme(
    surface="#ffffff",
    ink="#1b2128",
    muted="#5a6572",
    grid="#e3e7ec",
    kept="#0072b2",
    rejected="#d98200",
    series=("#0072b2", "#d55e00", "#00795a", "#a8437f"),
)
DARK = Theme(
    surface="#171c22",
    ink="#e8edf2",
    muted="#9fabb8",
    grid="#2c343d",
    kept="#56b4e9",
    rejected="#e69f00",
    series=("#56b4e9", "#ff9a4d", "#35c79c", "#e596c3"),
)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One drawn panel."""

    name: str
    """File name without ending; unique in a report."""
    title: str
    """Heading of the panel."""
    alt: str
    """The numbers of the panel in words, for those who cannot see it."""
    light: bytes
    """PNG on light ground."""
    dark: bytes
    """PNG on dark ground."""
    width_in: float
    """Width it was drawn for, inches of text size."""


def panel(theme: Theme, width_in: float, height_in: float) -> tuple[Figure, Axes]:
    """Make an empty panel."""
    figure, [axes] = panels(theme, width_in, height_in, 1)
    return figure, axes


def panels(theme: Theme, width_in: float, height_in: float, rows: int) -> tuple[Figure, list[Axes]]:
    """Make empty panels above each other, over one horizontal axis."""
    figure = Figure(figsize=(width_in, height_in), facecolor=theme.surface, layout="constrained")
    made: list[Axes] = []
    for row in range(rows):
        axes = figure.add_subplot(rows, 1, row + 1, facecolor=theme.surface, sharex=made[0] if made else None)
        axes.tick_params(which="both", length=0, labelsize=8.5, labelcolor=theme.muted, labelbottom=row == rows - 1)
        axes.grid(color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        made.append(axes)
    return figure, made


def legend(figure: Figure, axes: Axes, theme: Theme) -> None:
    """Explain the labelled parts of a panel above it."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=8.5,
        labelcolor=theme.ink,
        handlelength=1.2,
        columnspacing=1.2,
    )


def plain(text: str) -> str:
    """Keep matplotlib from reading dollar signs in names as formulas."""
    return text.replace("$", r"\$")


def chart(name: str, title: str, alt: str, draw: Callable[[Theme], Figure], width_in: float) -> Chart:
    """Draw a panel on both grounds."""
    return Chart(name=name, title=title, alt=alt, light=_png(draw(LIGHT)), dark=_png(draw(DARK)), width_in=width_in)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH, pil_kwargs={"optimize": True})
    return stream.getvalue()
