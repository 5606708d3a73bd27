"""The report of a run: one HTML file, a Markdown twin with the same numbers, and a summary for the terminal."""

from pipeline.report.inputs import LabelQuality, Picture, ReportInputs, Score, Stage, Training, Trial
from pipeline.report.tables import summary_table
from pipeline.report.writer import ReportPaths, write_report

__all__ = [
    "LabelQuality",
    "Picture",
    "ReportInputs",
    "ReportPaths",
    "Score",
    "Stage",
    "Training",
    "Trial",
    "summary_table",
    "write_report",
]
