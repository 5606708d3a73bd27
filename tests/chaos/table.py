"""The table of what came of every fault: for a terminal and for a page."""

from collections.abc import Mapping, Sequence

from tests.chaos.matrix import FAULTS, SENSELESS, STAGES

HEAD = ("fault", "stage", "outcome", "recovered, s", "ended, s", "rows lost", "duplicates", "broken", "when and what")
Line = Mapping[str, object]


def as_text(lines: Sequence[Line], skipped: Mapping[tuple[str, str], str]) -> str:
    rows = [HEAD, *_rows(lines, skipped)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    laid_out = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(laid_out)


def as_markdown(lines: Sequence[Line], skipped: Mapping[tuple[str, str], str]) -> str:
    rows = [HEAD, tuple("---" for _ in HEAD), *_rows(lines, skipped)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows) + "\n"


def _rows(lines: Sequence[Line], skipped: Mapping[tuple[str, str], str]) -> list[tuple[str, ...]]:
    """Give a row to each cell of the matrix, in its order, as far as something is known of it."""
    found = {(line["fault"], line["stage"]): line for line in lines}
    rows = []
    for cell in ((fault, stage) for fault in FAULTS for stage in STAGES):
        if cell in found:
            rows.append(_row(found[cell]))
        elif reason := skipped.get(cell) or SENSELESS.get(cell):
            rows.append((*cell, "not run", *[""] * 5, reason))
    return rows


def _row(line: Line) -> tuple[str, ...]:
    tries = line["tries"]
    outcome = "went on by itself" if tries == 1 else f"through on try {tries}"
    if line["lost"] or line["doubled"] or line["broken"]:
        outcome = "FAILED"
    numbers = ("recovered_s", "ended_s", "lost", "doubled", "broken")
    return (str(line["fault"]), str(line["stage"]), outcome, *(str(line[n]) for n in numbers), str(line["moment"]))
