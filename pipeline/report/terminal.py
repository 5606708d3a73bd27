"""A report's numbers in plain text, for the person who waits at a terminal."""

from dataclasses import replace

from pipeline.report.analysis_tables import class_tables, error_tables
from pipeline.report.inputs import Analysis, ReportInputs, Stage, Table
from pipeline.report.tables import chains, count, score_table, shorten, trial_tables

TERMINAL_COLUMNS = 100
"""Widest line of the summary on a terminal."""
MAX_CLASSES = 10
"""Classes told on a terminal, the ones with the most truth."""
_ASCII = str.maketrans({"±": "+-", "−": "-", "–": "-", "→": "->", "…": "..", "·": "|"})


def as_text(table: Table) -> str:
    """Write a table in aligned columns of plain ASCII marks, for a terminal."""
    cells = [[shorten(cell, 28).translate(_ASCII) for cell in row] for row in [table.columns, *table.rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        aligned = [
            cell.ljust(width) if index < table.num_names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def summary_table(inputs: ReportInputs) -> str:
    """Sum a run up in plain text for a terminal: rows of the funnel, scores, few-shot means, classes."""
    parts = [as_text(score_table(inputs.scores))] if inputs.scores else []
    parts += [f"{t.caption}\n{as_text(t)}" for t in trial_tables(inputs.trials) if not t.folded]
    parts += [f"{t.caption}\n{as_text(t)}" for t in inputs.details if not t.folded]
    parts += _analysis_parts(inputs.analysis) if inputs.analysis else []
    funnels = [_funnel_lines(chain) for chain in chains(inputs.stages)]
    return "\n\n".join((["\n".join(funnels)] if funnels else []) + parts).translate(_ASCII)


def _funnel_lines(chain: list[Stage]) -> str:
    way = " → ".join([f"rows  {count(chain[0].rows_in)}", *(f"{s.name} {count(s.rows_out)}" for s in chain)])
    reasons = [(rows, reason) for stage in chain for reason, rows in stage.rejects.items()]
    if not reasons:
        return shorten(way, TERMINAL_COLUMNS)
    listed = ", ".join(f"{reason} {count(rows)}" for rows, reason in sorted(reasons, reverse=True))
    rejected = f"      rejected {count(sum(stage.num_rejected for stage in chain))}: {listed}"
    return f"{shorten(way, TERMINAL_COLUMNS)}\n{shorten(rejected, TERMINAL_COLUMNS - 1)}"


def _analysis_parts(analysis: Analysis) -> list[str]:
    classes, [kinds, _] = class_tables(analysis), error_tables(analysis)
    return [f"{t.caption}\n{as_text(replace(t, rows=t.rows[: MAX_CLASSES + 1]))}" for t in (*classes, kinds)]
