"""What the demo hands over: a table and a picture to look at, `report.json` to compute with, and what to try next."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longlora.support.figures import new_figure, plain, save_figure
from longlora.support.files import write_atomically
from longlora.support.wording import templates


@dataclass
class DemoResult:
    """What the demo measured; `report.json` is this."""

    settings: dict[str, Any]
    environment: dict[str, Any]
    perplexity: dict[str, dict[int, float]] = field(default_factory=dict)
    """Model by name, then context length in tokens."""
    standard_error: dict[str, dict[int, float]] = field(default_factory=dict)
    """Of the mean loss in nats per token, as in `perplexity`."""
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """Wall time of `training` and `evaluation` for each model; `shared_steps` were trained by an earlier one."""
    merge: dict[str, float] = field(default_factory=dict)
    """Agreement of the merged model with its adapter."""


def write_report(result: DemoResult, output: Path) -> None:
    """Write report, picture and a starter recipe into `output`, and print the table and the next steps.

    `report.json` comes last: it stands for a finished demo.
    """
    header = ["model", *map(str, result.perplexity["base"]), "training"]
    rows = []
    for name, values in result.perplexity.items():
        seconds = result.seconds[name]
        training = f"{seconds['training']:.0f} s" if "training" in seconds else ""
        if "shared_steps" in seconds:
            training += f" after {seconds['shared_steps']:.0f} shared steps"
        rows.append([name, *(f"{value:.2f}" for value in values.values()), training])
    verdict = _verdict(result)
    commands = [
        f"longlora train {output / 'starter.yaml'} model_name_or_path=MODEL data.source=TEXTS context_length=32768",
        "longlora eval runs/mine/adapter --suite quick --data HELD_OUT_TEXTS --out verdict",
        "longlora chat runs/mine/merged --document FILE",
    ]
    draw(result, output / "perplexity.png")
    texts = templates("demo/templates")
    write_atomically(output / "starter.yaml", texts.get_template("starter.yaml").render())
    report = texts.get_template("demo_report.md.j2").render(
        result=result, header=header, rows=rows, verdict=verdict, commands=commands
    )
    write_atomically(output / "report.md", report)
    write_atomically(output / "report.json", json.dumps(asdict(result), indent=2) + "\n")

    table = Table(title="Perplexity by context length (tokens)")
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    console.print(verdict)
    console.print(f"\nreport: {output / 'report.md'}   picture: {output / 'perplexity.png'}\n")
    console.print("Next, on a model of your own:")
    for command in commands:
        console.print(f"  {command}", soft_wrap=True)


def draw(result: DemoResult, path: Path) -> None:
    """Draw perplexity over context length, one line a model."""
    lengths = list(result.perplexity["base"])
    figure, axes = new_figure(8, 4.8)
    plain(axes, grid=False)
    untrained = {"base": "-", "interpolation only": "--"}
    for name, values in result.perplexity.items():
        (line,) = axes.plot(lengths, list(values.values()), marker="o", markersize=4, label=name)
        if name in untrained:
            line.set(color="#888888", linestyle=untrained[name])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    lowest, highest = axes.get_ylim()
    axes.set_yticks([tick for tick in (10, 20, 50, 100, 200, 500) if lowest < tick < highest])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    marked = {"base context": result.environment["base_context"], "extended to": result.settings["context_length"]}
    for label, length in marked.items():
        axes.axvline(length, color="#cccccc", zorder=0)
        axes.annotate(f" {label}", (length, 0.99), xycoords=("data", "axes fraction"), va="top", color="#888888")
    axes.set(xlabel="context length (tokens)", ylabel="perplexity (full attention, same targets)")
    axes.legend(frameon=False)
    save_figure(figure, path)


def _verdict(result: DemoResult) -> str:
    base_context, target = result.environment["base_context"], result.settings["context_length"]
    base, extended = result.perplexity["base"], result.perplexity["longlora, dense finish"]
    return (
        f"At {target} tokens the model extended with a dense finish stands at {extended[target]:.2f}: "
        f"{extended[target] / base[base_context]:.2f} x the base at its own {base_context} ({base[base_context]:.2f}), "
        f"{extended[target] / base[target]:.2f} x the base at {target} ({base[target]:.2f})."
    )
