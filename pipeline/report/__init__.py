"""The report of a run: one HTML file, a Markdown twin with the same numbers, and a summary for the terminal."""

from pipeline.report.inputs import (
    Analysis,
    ClassResult,
    LabelQuality,
    NameRate,
    Picture,
    ReportInputs,
    Score,
    SizeResult,
    Stage,
    Table,
    Training,
    Trial,
)
from pipeline.report.terminal import summary_table
from pipeline.report.writer import ReportPaths, write_report

__all__ = [
    "Analysis",
    "ClassResult",
    "LabelQuality",
    "NameRate",
    "Picture",
    "ReportInputs",
    "ReportPaths",
    "Score",
    "SizeResult",
    "Stage",
    "Table",
    "Training",
    "Trial",
    "summary_table",
    "write_report",
]
