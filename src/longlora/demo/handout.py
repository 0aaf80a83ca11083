"""The demo's report: a table, a picture, `report.json` for further computation, and commands to try next."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from longlora.support.figures import new_figure, plain, save_figure
from longlora.support.files import write_atomically
from longlora.support.wording import templates

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class DemoResult:
    """What the demo measured, and the contents of `report.json`."""

    settings: dict[str, Any]
    environment: dict[str, Any]
    perplexity: dict[str, dict[int, float]] = field(default_factory=dict)
    """By model name, then by context length in tokens."""
    standard_error: dict[str, dict[int, float]] = field(default_factory=dict)
    """Standard error of the mean loss in nats per token, keyed like `perplexity`."""
    recall: dict[str, dict[int, float]] = field(default_factory=dict)
    """Share of correct answers, keyed like `perplexity`: the value of one of eight keys, from far back."""
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """Wall time of `training` and `evaluation` for each model."""
    answers: dict[str, Any] = field(default_factory=dict)
    """A question at the target length that the recommended model answers and the base does not, if any."""
    merge: dict[str, float] = field(default_factory=dict)
    """Agreement of the merged model with its adapter."""


def write_report(result: DemoResult, output: Path) -> None:
    """Write the report and the picture into `output`, and print the table and the next steps.

    `report.json` is written last: it marks a finished demo.
    """
    lengths = [*map(str, result.perplexity["base"]), *(f"recall {length}" for length in result.recall["base"])]
    header = ["model", *lengths, "training"]
    rows = []
    for name, values in result.perplexity.items():
        seconds = result.seconds[name]
        training = f"{seconds['training']:.0f} s" if "training" in seconds else ""
        recalled = (f"{share:.0%}" for share in result.recall[name].values())
        rows.append([name, *(f"{value:.2f}" for value in values.values()), *recalled, training])
    verdict = _verdict(result)
    commands = [
        "longlora init MODEL --context 32768 --gpu-type rtx-4090 --data TEXTS --out recipe.yaml output_dir=runs/mine",
        "longlora train recipe.yaml",
        "longlora eval runs/mine/merged --suite quick --data HELD_OUT_TEXTS --out verdict",
        "longlora chat runs/mine/merged --document FILE",
    ]
    draw(result, output / "perplexity.png")
    texts = templates("demo/templates")
    report = texts.get_template("demo_report.md.j2").render(
        result=result, header=header, rows=rows, verdict=verdict, commands=commands
    )
    write_atomically(output / "report.md", report)
    write_atomically(output / "report.json", json.dumps(asdict(result), indent=2) + "\n")

    console = Console(highlight=False)
    middle = 1 + len(result.perplexity["base"])  # two tables, because one does not fit into 80 columns
    for title, columns in (("Perplexity", range(1, middle)), ("Recall", range(middle, len(header)))):
        table = Table("model", title=f"{title} by context length (tokens)")
        for column in columns:
            table.add_column(header[column].removeprefix("recall "), justify="right")
        for row in rows:
            table.add_row(row[0], *(row[column] for column in columns))
        console.print(table)
    console.print(verdict, markup=False)
    console.print(f"\nreport: {output / 'report.md'}   picture: {output / 'perplexity.png'}\n")
    console.print("Next, on your own model (`make` installs into .venv: activate it first):")
    for command in commands:
        console.print(f"  {command}", soft_wrap=True)


def draw(result: DemoResult, path: Path) -> None:
    """Draw perplexity and recall over context length, with one line per model."""
    figure, (left, right) = new_figure(11, 4.6, ncols=2)
    styles = {"base": ("#888888", "-"), "positions only": ("#888888", "--"), "recommended": ("#c44e52", "-")}
    for axes, measured in ((left, result.perplexity), (right, result.recall)):
        plain(axes, grid=False)
        for name, values in measured.items():
            lengths = list(values)
            (line,) = axes.plot(lengths, list(values.values()), marker="o", markersize=4, label=name)
            if name in styles:
                color, linestyle = styles[name]
                line.set(color=color, linestyle=linestyle, linewidth=2.4 if name == "recommended" else 1.5)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.set(xlabel="context length (tokens)")
        _mark_contexts(axes, result)
    left.set_yscale("log")
    lowest, highest = left.get_ylim()
    left.set_yticks([tick for tick in (10, 20, 50, 100, 200, 500) if lowest < tick < highest])
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("")
    left.set(ylabel="perplexity (full attention, same targets)")
    right.set(ylabel="questions answered right", ylim=(-0.03, 1.06))
    left.legend(loc="upper left", edgecolor="none", framealpha=1)
    save_figure(figure, path)


def _mark_contexts(axes: "Axes", result: DemoResult) -> None:
    marked = {"base context": result.environment["base_context"], "extended to": result.settings["context_length"]}
    for label, length in marked.items():
        axes.axvline(length, color="#cccccc", zorder=0)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "va": "bottom", "ha": "center"}
        axes.annotate(label, (length, 1.0), color="#888888", **place)


def _verdict(result: DemoResult) -> str:
    base_context, target = result.environment["base_context"], result.settings["context_length"]
    base, untrained, extended = (result.perplexity[name] for name in ("base", "positions only", "recommended"))
    text = (
        f"At {target} tokens the recommended model's perplexity is {extended[target]:.2f}: "
        f"{extended[target] / base[base_context]:.2f} x the base at its own {base_context} ({base[base_context]:.2f}), "
        f"{extended[target] / untrained[target]:.2f} x new positions without training ({untrained[target]:.2f}). "
        f"It recalls {result.recall['recommended'][target]:.0%} of the values asked for, the base "
        f"{result.recall['base'][target]:.0%}."
    )
    if result.answers:
        text += (
            f" One of them, {result.answers['distance']} tokens back: {result.answers['expected']}; the recommended "
            f"model answers {result.answers['recommended']!r}, the base {result.answers['base']!r}."
        )
    return text
