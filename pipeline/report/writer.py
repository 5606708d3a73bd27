"""Write a report's files."""

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.report.inputs import ReportInputs
from pipeline.report.markdown import FOLDER, as_markdown, figure_files
from pipeline.report.page import as_html
from pipeline.report.sections import compose
from pipeline.shards import write_atomically


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where a report was written."""

    html: Path
    """The page: one file, complete in itself."""
    markdown: Path
    """The Markdown twin."""
    figures: Path
    """Folder of the pictures the Markdown refers to."""


def write_report(inputs: ReportInputs, out: Path) -> ReportPaths:
    """Write the report of a run into a folder, replacing an earlier one.

    Pictures come first and the texts last, each file atomically, so that no text refers to a picture not yet there.
    """
    report = compose(inputs)
    paths = ReportPaths(html=out / "report.html", markdown=out / "report.md", figures=out / FOLDER)
    paths.figures.mkdir(parents=True, exist_ok=True)
    for name, content in figure_files(report).items():
        beside = paths.figures / f".{name}.{os.getpid()}"
        beside.write_bytes(content)
        beside.replace(paths.figures / name)
    write_atomically(paths.markdown, as_markdown(report))
    write_atomically(paths.html, as_html(report))
    return paths
