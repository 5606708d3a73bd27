"""The Markdown twin of the page: the same numbers, with pictures as files beside it."""

import re
from html import escape

from pipeline.report.canvas import Chart
from pipeline.report.inputs import Table
from pipeline.report.pictures import Drawing
from pipeline.report.sections import Report, Section
from pipeline.report.tables import input_table, run_table

FOLDER = "figures"
"""Where the pictures are, relative to the Markdown file."""
PIXELS_PER_INCH = 105


def as_markdown(report: Report) -> str:
    """Write a report as Markdown that refers to `figure_files`."""
    inputs = report.inputs
    blocks = [f"# {plain(inputs.title)}", " ".join(map(plain, report.findings))]
    for section in report.sections:
        blocks += _section(section)
    blocks += _pictures(report.drawings)
    for title, sentences in (("Notes", inputs.notes), ("Limits", inputs.limits)):
        blocks += [f"## {title}", "\n".join(f"- {plain(s)}" for s in sentences)] if sentences else []
    blocks += ["## Provenance", *_table(run_table(inputs))]
    blocks += _table(input_table(inputs.input_hashes)) if inputs.input_hashes else []
    blocks += ["Configuration:", "\n".join(f"    {line}" for line in inputs.config_text.splitlines())]
    return "\n\n".join(block for block in blocks if block) + "\n"


def figure_files(report: Report) -> dict[str, bytes]:
    """List the pictures the Markdown refers to, by file name."""
    charts = {_chart_file(chart): chart.light for section in report.sections for chart in section.charts}
    return charts | {_drawing_file(d): d.jpeg for drawings in report.drawings.values() for d in drawings}


def plain(text: str) -> str:
    """Escape a text so that Markdown shows it as it is, on one line."""
    escaped = re.sub(r"([\\`*\[\]|~#]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return escape(escaped, quote=False)


def _section(section: Section) -> list[str]:
    charts = "\n".join(_image(_chart_file(c), c.alt, round(c.width_in * PIXELS_PER_INCH)) for c in section.charts)
    written = [block for table in section.tables for block in _table(table)]
    return [f"## {plain(section.title)}", plain(section.intro), charts, *written]


def _table(table: Table) -> list[str]:
    rule = ["---" if index < table.num_names else "---:" for index in range(len(table.columns))]
    rows = [list(map(plain, table.columns)), rule, *(list(map(plain, row)) for row in table.rows)]
    return [f"{plain(table.caption)}:", "\n".join(f"| {' | '.join(row)} |" for row in rows)]


def _pictures(drawn: dict[str, list[Drawing]]) -> list[str]:
    blocks = ["## Pictures"] if drawn else []
    for heading, drawings in drawn.items():
        images = "\n".join(_image(_drawing_file(d), d.alt, 300) for d in drawings)
        told = "\n".join(f"- {plain(_words(drawing))}" for drawing in drawings)
        blocks += [f"### {plain(heading)}", images, told]
    return blocks


def _words(drawing: Drawing) -> str:
    return " – ".join(part for part in (drawing.picture.title, drawing.alt, drawing.picture.caption) if part)


def _image(file: str, alt: str, width: int) -> str:
    """Write an image of a given width, which Markdown's own form cannot; side by side where there is room."""
    return f'<img src="{FOLDER}/{file}" alt="{escape(" ".join(alt.split()))}" width="{width}">'


def _chart_file(chart: Chart) -> str:
    return f"{chart.name}.png"


def _drawing_file(drawing: Drawing) -> str:
    return f"{drawing.name}.jpg"
