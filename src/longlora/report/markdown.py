"""A report as Markdown: the same words and numbers, and the charts as their tables."""

from longlora.report.blocks import Block, Chart, Code, Document, Table


def render_markdown(document: Document) -> str:
    """Write a document as Markdown; nothing in it can break out of its table or its block of code."""
    parts = [f"# {_plain(document.title)}", document.date, "\n".join(f"- {_plain(text)}" for text in document.lead)]
    for section in document.sections:
        parts += [f"## {_plain(section.title)}", *map(_plain, section.paragraphs)]
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Chart):
        return _table(block.table)
    if isinstance(block, Code):
        fence = "```"
        while fence in block.text:
            fence += "`"
        return f"{_plain(block.caption)}:\n\n{fence}sh\n{block.text}\n{fence}"
    return _table(block)


def _table(table: Table) -> str:
    rows = [table.header, ["---"] * len(table.header), *([cell.text for cell in row] for row in table.rows)]
    lines = ["| " + " | ".join(text if text == "---" else _plain(text) for text in row) + " |" for row in rows]
    return f"{_plain(table.caption)}\n\n" + "\n".join(lines)


def _plain(text: str) -> str:
    """Take their meaning away from the signs that Markdown, and the HTML in it, would act upon."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\")
    for sign in "|*_`[]#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
