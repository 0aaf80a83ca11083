"""Write a report as HTML and Markdown.

The HTML page is self-contained, without scripts or requests, and follows the reader's light or dark mode. The Markdown
has the same text and numbers, with tables instead of charts.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longlora.report.blocks import Report
from longlora.report.charts import PAGES, line_chart
from longlora.report.collect import Collection, collect
from longlora.report.evidence import evidence
from longlora.report.verdict import lead, verdict_section
from longlora.support.files import write_atomically
from longlora.support.wording import templates

PAGE, TEXT = "report.html", "report.md"


def write_report(paths: Sequence[str], output: Path) -> Path:
    """Read evaluations and runs below `paths`, and write `report.html` and `report.md` into `output`.

    Each path is a folder of `longlora eval`, of a suite or of a training run, or contains several of these; `NAME=PATH`
    gives everything below PATH that name in the report. Returns the page's path.

    Raises:
        ConfigError: a path does not exist, or nothing is found below it.
        DataError: a file is damaged, or two models of the same name differ in their weights.
    """
    report = compose(collect(paths))
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / TEXT, render_markdown(report))
    write_atomically(output / PAGE, render_page(report))
    return output / PAGE


def compose(collection: Collection) -> Report:
    """Build a report from the collected results."""
    models = collection.models
    names = " and ".join(model.label for model in models) if len(models) < 3 else f"{len(models)} models"
    title = f"How far do they read? {names}" if len(models) > 1 else f"How far does it read? {names}"
    sections = [verdict_section(models)] if models else []
    return Report(
        title=title if models else "Training runs",
        lead=[lead(model) for model in models],
        sections=sections + evidence(collection),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def render_page(report: Report) -> str:
    """Render a report as HTML; all text is escaped."""
    return PAGES.get_template("report.html.j2").render(report=report, line_chart=line_chart)


def render_markdown(report: Report) -> str:
    """Render a report as Markdown; no text can break out of its table or code block."""
    markdown = templates("report/templates", finalize=_plain)
    return markdown.get_template("report.md.j2").render(report=report)


def _plain(value: Any) -> Any:
    """Escape the characters that are special in Markdown and in HTML within it."""
    if hasattr(value, "__html__"):  # marked as safe in the template
        return value
    text = str(value).replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(re.sub(r"([\\|*_`\[\]#])", r"\\\1", text).split())
