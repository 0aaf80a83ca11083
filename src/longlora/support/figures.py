"""The common style of all figures, and how they are saved."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlora.errors import ConfigError
from longlora.support.files import replaced_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150


def new_figure(width: float, height: float, **subplots: Any) -> "tuple[Figure, Any]":
    """Create a figure (sizes in inches) without pyplot or a display; `subplots` are passed to `Figure.subplots`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**subplots)


def plain(axes: "Axes", *, grid: bool = True) -> None:
    """Hide the top and right spines, and draw faint horizontal grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)


def figure_format(path: Path) -> str:
    """Return the format of a figure's file, by the name's suffix.

    Raises:
        ConfigError: figures are not written in that format.
    """
    if (suffix := path.suffix.removeprefix(".").lower()) not in ("png", "svg", "pdf"):
        raise ConfigError(f"a figure's name must end in .png, .svg or .pdf, found {path.name}; choose another name")
    return suffix


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure atomically, in the format of the file's suffix.

    Raises:
        ConfigError: as `figure_format`.
    """
    with replaced_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format=figure_format(path))


def png_bytes(figure: "Figure") -> bytes:
    """Return a figure as a PNG file's bytes, to be put into a page."""
    with io.BytesIO() as file:
        figure.savefig(file, dpi=DPI, format="png")
        return file.getvalue()
