"""The HTML page: one file that needs nothing else, readable in light and dark, on wide and narrow screens."""

import base64
import re
from html import escape

from pipeline.report.canvas import Chart
from pipeline.report.inputs import Table
from pipeline.report.pictures import Drawing
from pipeline.report.sections import Report, Section
from pipeline.report.style import STYLE
from pipeline.report.tables import input_table, run_table

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content policy of the page: whatever text it carries, no script runs and nothing is fetched."""


def as_html(report: Report) -> str:
    """Write a report as one HTML page."""
    inputs = report.inputs
    parts = [
        *map(_section, report.sections),
        _pictures(report.drawings),
        _sentences("notes", "Notes", inputs.notes),
        _sentences("limits", "Limits", inputs.limits),
        _provenance(report),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(inputs.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{_header(report, body)}\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def mark_phrases(caption: str, colours: dict[str, str]) -> str:
    """Mark the phrases of a caption in their colours; phrases it does not contain follow it.

    Returns:
        HTML; the texts are escaped.
    """
    by_text = {phrase.lower(): colour for phrase, colour in colours.items() if phrase.strip()}
    longest_first = "|".join(re.escape(text) for text in sorted(by_text, key=len, reverse=True))
    pieces = re.split(rf"(?<!\w)({longest_first})(?!\w)", caption, flags=re.IGNORECASE) if by_text else [caption]
    marked = [
        _mark(piece, by_text[piece.lower()]) if piece.lower() in by_text else escape(piece) for piece in pieces if piece
    ]
    found = {piece.lower() for piece in pieces}
    missing = [_mark(phrase, colour) for phrase, colour in colours.items() if phrase.lower() not in found]
    return " ".join(["".join(marked), *missing]).strip()


def _mark(phrase: str, colour: str) -> str:
    return f'<mark style="--c:{colour}">{escape(phrase)}</mark>'


def _header(report: Report, body: str) -> str:
    inputs = report.inputs
    facts = " · ".join(escape(fact) for fact in (inputs.created, inputs.hardware, inputs.git_commit[:12]) if fact)
    tiles = "".join(
        f'<div class="tile"><dt>{escape(t.label)}</dt>'
        f"<dd><b>{escape(t.value)}</b><span>{escape(t.note)}</span></dd></div>"
        for t in report.tiles
    )
    headings = re.findall(r'<section id="([\w-]+)"><h2>([^<]+)</h2>', body)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in headings)
    findings = "".join(f"{escape(sentence)} " for sentence in report.findings)
    return (
        f'<header><h1>{escape(inputs.title)}</h1><p class="facts">{facts}</p>'
        + (f'<dl class="tiles">{tiles}</dl>' if tiles else "")
        + (f'<p class="findings">{findings.strip()}</p>' if findings else "")
        + f"<nav>{links}</nav></header>"
    )


def _section(section: Section) -> str:
    charts = "".join(map(_chart, section.charts))
    return (
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2><p class="intro">{escape(section.intro)}</p>'
        + (f'<div class="charts">{charts}</div>' if charts else "")
        + f'<div class="tables">{"".join(map(_table, section.tables))}</div></section>'
    )


def _chart(chart: Chart) -> str:
    return (
        f'<figure style="--w:{chart.width_in}"><figcaption>{escape(chart.title)}</figcaption><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data("png", chart.dark)}">'
        f'<img src="{_data("png", chart.light)}" alt="{escape(chart.alt)}"></picture></figure>'
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"{_side(i, table)}>{escape(name)}</th>' for i, name in enumerate(table.columns))
    rows = "".join(
        "<tr>" + "".join(f"<td{_side(i, table)}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    caption = escape(table.caption)
    content = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    if table.folded:
        return f'<details><summary>{caption}</summary><div class="scroll"><table>{content}</details>'
    return f'<div class="scroll" tabindex="0"><table><caption>{caption}</caption>{content}'


def _side(column: int, table: Table) -> str:
    return "" if column < table.num_names else ' class="n"'


def _pictures(blocks: dict[str, list[Drawing]]) -> str:
    if not blocks:
        return ""
    inner = "".join(_block(heading, drawings) for heading, drawings in blocks.items())
    intro = "Boxes of one phrase share a colour; the number behind a phrase is its score."
    return f'<section id="pictures"><h2>Pictures</h2><p class="intro">{intro}</p>{inner}</section>'


def _block(heading: str, drawings: list[Drawing]) -> str:
    """Write pictures under a heading: of one image from several groups, or of one group over several images."""
    compared = len({drawing.picture.group for drawing in drawings}) > 1
    figures = "".join(_figure(drawing, compared) for drawing in drawings)
    text = next((d.picture.caption for d in drawings if d.picture.caption), "")
    words = f'<p class="words">{mark_phrases(text, drawings[0].colours)}</p>' if compared else ""
    return f'<h3>{escape(heading)}</h3>{words}<div class="pictures">{figures}</div>'


def _figure(drawing: Drawing, compared: bool) -> str:
    picture = drawing.picture
    words = "" if compared else f'<p class="words">{mark_phrases(picture.caption, drawing.colours)}</p>'
    return (
        f'<figure><img src="{_data("jpeg", drawing.jpeg)}" alt="{escape(drawing.alt)}">'
        f"<figcaption><b>{escape(picture.group if compared else picture.title)}</b>{words}</figcaption></figure>"
    )


def _sentences(name: str, title: str, sentences: list[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<section id="{name}"><h2>{title}</h2><ul>{items}</ul></section>' if items else ""


def _provenance(report: Report) -> str:
    inputs = report.inputs
    hashes = _table(input_table(inputs.input_hashes)) if inputs.input_hashes else ""
    return (
        '<section id="provenance"><h2>Provenance</h2>'
        f'<div class="tables">{_table(run_table(inputs))}{hashes}'
        f"<details><summary>Configuration</summary><pre>{escape(inputs.config_text)}</pre></details></div></section>"
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
