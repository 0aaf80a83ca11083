"""A report as one HTML page that needs nothing but itself: no script, no request, light or dark as the reader likes."""

from html import escape
from importlib.resources import files
from itertools import groupby

from longlora.report.blocks import Block, Cell, Chart, Code, Document, Section, Table
from longlora.report.svg import NUM_STYLES, key, level_key, line_chart

_STRONG = 0.6  # with the style sheet's colours either ink has a contrast of 4.5 here, and the other one beyond
_CARD_TABLES = frozenset({"verdict"})


def render_page(document: Document) -> str:
    """Write a document as HTML; every text in it is escaped."""
    style = files("longlora.report").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in document.sections)
    lead = "".join(
        f'<li class="s{index % NUM_STYLES}"><span>{escape(text)}</span></li>'
        for index, text in enumerate(document.lead)
    )
    body = "".join(_section(section) for section in document.sections)
    # The policy makes the promise binding: a browser that opens this page asks nobody for anything.
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(document.title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(document.title)}</h1>
<div class="date">{escape(document.date)}</div>
<ul class="lead">{lead}</ul>
<nav aria-label="Sections">{links}</nav>
</header>
<main>{body}</main>
<footer>Written by <code>longlora report</code> from the files of evaluations and runs, and from nothing else.</footer>
</body>
</html>
"""


def _section(section: Section) -> str:
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in section.paragraphs)
    parts, counter = [], 0
    for kind, group in groupby(section.blocks, key=_layout):
        drawn = []
        for block in group:
            drawn.append(_block(block, identity=f"{section.anchor}-{counter}", cards=section.anchor in _CARD_TABLES))
            counter += 1
        parts.append(f'<div class="charts {kind}">{"".join(drawn)}</div>' if kind else "".join(drawn))
    return f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>{paragraphs}{"".join(parts)}</section>'


def _layout(block: Block) -> str:
    """Charts stand beside one another, and so do heat maps; tables take the whole width."""
    if isinstance(block, Chart):
        return "lines"
    if isinstance(block, Table) and block.is_map:
        return "maps"
    return ""


def _block(block: Block, *, identity: str, cards: bool) -> str:
    if isinstance(block, Chart):
        return _chart(block, identity)
    if isinstance(block, Code):
        return f'<div class="code-caption">{escape(block.caption)}</div><pre tabindex="0">{escape(block.text)}</pre>'
    return _table(block, cards=cards)


def _chart(chart: Chart, identity: str) -> str:
    names = "".join(f"<li>{key(series.style)}<span>{escape(series.label)}</span></li>" for series in chart.series)
    names += "".join(
        f"<li>{level_key(at)}<span>{escape(level.label)}</span></li>" for at, level in enumerate(chart.levels)
    )
    note = f"<figcaption>{escape(chart.intervals)}</figcaption>" if chart.intervals else ""
    return (
        f'<figure><h3>{escape(chart.title)}</h3><ul class="legend">{names}</ul>{line_chart(chart, identity=identity)}'
        f"{note}<details><summary>The numbers</summary>{_table(chart.table)}</details></figure>"
    )


def _table(table: Table, *, cards: bool = False) -> str:
    # Roles again, because display: block, as on narrow screens, takes a table's meaning away from screen readers.
    header = "".join(f'<th scope="col" role="columnheader">{escape(text)}</th>' for text in table.header)
    rows = "".join(f'<tr role="row">{_row(table, row)}</tr>' for row in table.rows)
    classes = ["cards"] * cards + ["map"] * table.is_map
    of_class = f' class="{" ".join(classes)}"' if classes else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.caption)}">'
        f'<table{of_class} role="table"><caption>{escape(table.caption)}</caption>'
        f'<thead><tr role="row">{header}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(table: Table, row: list[Cell]) -> str:
    first, *others = row
    cells = [f'<th scope="row" role="rowheader">{escape(first.text)}</th>']
    for label, cell in zip(table.header[1:], others, strict=True):
        classes, style = list[str]([cell.tone] if cell.tone else []), ""
        if cell.heat is not None:
            classes += ["heat", "strong"] if cell.heat >= _STRONG else ["heat"]
            style = f' style="--h:{cell.heat:.3f}"'
        of_class = f' class="{" ".join(classes)}"' if classes else ""
        cells.append(
            f'<td role="cell" data-label="{escape(label)}"{of_class}{style}><span>{escape(cell.text)}</span></td>'
        )
    return "".join(cells)
