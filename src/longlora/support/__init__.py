"""Shared helpers: atomic files, digests, journals, progress bars, figures, wording, optional packages."""
