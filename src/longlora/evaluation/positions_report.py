"""The curve of loss by position to look at: a table, a picture, and `positions.json` to compute with."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from longlora.evaluation.loss_by_position import PositionLoss, reading_stops_at
from longlora.support.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class PositionsResult:
    """Loss by position of one model in windows of one length; `positions.json` is this."""

    model: str
    length: int
    context: int
    """Positions that the model says it has."""

    num_windows: int
    curve: list[PositionLoss]
    provenance: dict[str, Any]
    weights: str | None = None
    """Digest of the weights, as `model_identity` gives it."""

    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Say in one sentence where the loss is lowest and whether it rises for good after that."""
        lowest, stop = min(self.curve, key=lambda bucket: bucket.loss), reading_stops_at(self.curve)
        place = f"the loss is lowest, {lowest.loss:.3f}, after {lowest.start:,} to {lowest.end - 1:,} tokens"
        if stop is None:
            return f"{place}, and does not rise for good by more than two standard errors"
        return f"{place}, and from {stop:,} tokens on stays above that by more than two standard errors"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        curve = [bucket.to_dict() for bucket in self.curve]
        return vars(self) | {
            "curve": curve,
            "reading_stops_at": reading_stops_at(self.curve),
            "verdict": self.verdict,
        }


def write_positions(result: PositionsResult, output: Path) -> None:
    """Write picture and `positions.json` into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    draw(result, output / "positions.png")
    write_atomically(output / "positions.json", json.dumps(result.to_dict(), indent=2) + "\n")


def positions_table(result: PositionsResult) -> Table:
    """Tabulate the curve."""
    table = Table(title=f"Loss by position, {result.num_windows} windows of {result.length:,} tokens")
    for column in ("tokens before", "loss (nats)", "± standard error", "perplexity"):
        table.add_column(column, justify="right")
    for bucket in result.curve:
        table.add_row(
            f"{bucket.start:,} to {bucket.end - 1:,}",
            f"{bucket.loss:.3f}",
            f"{bucket.standard_error:.3f}",
            f"{math.exp(min(bucket.loss, 700)):.2f}",
        )
    return table


def draw(result: PositionsResult, path: Path) -> None:
    """Draw loss over position with a band of two standard errors, and the model's own context if it lies within."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    middles = [(bucket.start + bucket.end - 1) / 2 for bucket in result.curve]
    losses = [bucket.loss for bucket in result.curve]
    errors = [0.0 if math.isnan(bucket.standard_error) else bucket.standard_error for bucket in result.curve]
    axes.plot(middles, losses, marker="o", markersize=3)
    axes.fill_between(
        middles,
        [loss - 2 * error for loss, error in zip(losses, errors, strict=True)],
        [loss + 2 * error for loss, error in zip(losses, errors, strict=True)],
        alpha=0.25,
        label="± 2 standard errors",
    )
    if result.context < result.length:
        axes.axvline(result.context, color="#888888", linestyle="--", linewidth=1, label="the model's context")
    axes.set(
        xlabel="position: tokens before the target",
        ylabel="loss (nats per token)",
        title=f"{result.num_windows} windows of {result.length:,} tokens",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
