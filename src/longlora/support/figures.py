"""The common style of all figures, and how they are saved."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlora.support.files import replaced_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG file atomically."""
    with replaced_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
