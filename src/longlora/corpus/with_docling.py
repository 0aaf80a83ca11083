"""PDF to text by docling, which finds headings, tables and formulas with models of its own; used where it is installed.

This path has not been run by longlora's tests: docling and its models are not among what they install.
"""

from importlib.util import find_spec
from pathlib import Path

from longlora.corpus.markup import MarkedText, UnreadableFileError


def has_docling() -> bool:
    """Tell whether docling can be imported."""
    return find_spec("docling") is not None


def read_by_docling(path: Path) -> MarkedText:
    """Read a PDF as docling's Markdown; tables stay, as Markdown tables.

    Raises:
        UnreadableFileError: docling cannot convert it, or finds no text.
    """
    from docling.document_converter import DocumentConverter

    result = DocumentConverter().convert(path, raises_on_error=False)
    if result.document is None or result.errors:
        raise UnreadableFileError(f"docling: {'; '.join(str(error) for error in result.errors) or 'no document'}")
    text = result.document.export_to_markdown()
    if not text.strip():
        raise UnreadableFileError("docling finds no text in it")
    return MarkedText(text=text, title=result.document.name or "", num_parts=len(result.document.pages))
