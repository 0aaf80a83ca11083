"""Texts from templates, and numbers as people read them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def templates(folder: str, *, finalize: Callable[[Any], Any] | None = None) -> "Environment":
    """Open a folder of the package, such as `report/templates`, as templates of jinja2.

    What a template of HTML (`*.html.j2`) prints is escaped. `finalize` is asked about every value that is printed.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("longlora", folder),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def short_number(value: float) -> str:
    """Write a large number with three digits, as in 1.23 M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:g}"
