"""From texts, wherever they are kept, to rows of exactly one context length."""

from longlora.data.pack import pack_rows
from longlora.data.sources import DocumentSource, read_documents
from longlora.data.tokenize import tokenize_documents

__all__ = ["DocumentSource", "pack_rows", "read_documents", "tokenize_documents"]
