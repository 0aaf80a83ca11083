"""The picture of a run: loss, validation loss and learning rate over the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SMOOTHED_STEPS = 20
_LOSS, _VALIDATION, _RATE = "#1f5fa8", "#c2571a", "#666666"


def draw_curves(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the lines of `metrics.jsonl` into a PNG file.

    A heavy line is the mean of the last twenty logged losses, a light one each of them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training = [(line["step"], line["loss"], line["learning_rate"]) for line in metrics if "loss" in line]
    validation = [(line["step"], line["eval_loss"]) for line in metrics if "eval_loss" in line]
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes, rate_axes = figure.subplots(2, height_ratios=(4, 1), sharex=True)
    if training:
        steps, losses, rates = zip(*training, strict=True)
        few = len(training) <= _SMOOTHED_STEPS
        axes.plot(steps, losses, color=_LOSS, alpha=1 if few else 0.3, linewidth=1.5 if few else 0.8, label="training")
        if not few:
            axes.plot(steps, _smoothed(losses), color=_LOSS, linewidth=1.8, label="training, mean of 20")
        rate_axes.plot(steps, rates, color=_RATE, linewidth=1.2)
    if validation:
        steps, losses = zip(*validation, strict=True)
        axes.plot(steps, losses, color=_VALIDATION, marker="o", markersize=4, label="validation, full attention")
    if training or validation:
        axes.legend(frameon=False)
    axes.set_ylabel("loss (nats per token)")
    rate_axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for panel in (axes, rate_axes):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=150, format="png")
    temporary.replace(path)


def _smoothed(values: Sequence[float]) -> list[float]:
    return [
        sum(values[max(0, end - _SMOOTHED_STEPS) : end]) / min(end, _SMOOTHED_STEPS)
        for end in range(1, len(values) + 1)
    ]
