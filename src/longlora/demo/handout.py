"""What the demo hands over: a table and a picture to look at, `report.json` to compute with, and what to try next."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longlora.support.files import write_atomically


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
    draw(result, output / "perplexity.png")
    write_atomically(output / "starter.yaml", STARTER_RECIPE)
    write_atomically(output / "report.md", _markdown(result, output))
    write_atomically(output / "report.json", json.dumps(asdict(result), indent=2) + "\n")
    console = Console()
    console.print(_table(result))
    console.print(_verdict(result), highlight=False)
    console.print(f"\nreport: {output / 'report.md'}   picture: {output / 'perplexity.png'}\n", highlight=False)
    console.print("Next, on a model of your own:", highlight=False)
    for command in next_commands(output):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


STARTER_RECIPE = """\
# The demo's job on a model of your own, with the settings of the LongLoRA paper (arXiv 2309.12307, appendix B).
# MODEL and TEXTS stand for a directory or hub name, and for folders, files, globs or a data set.
model_name_or_path: MODEL
output_dir: runs/mine
context_length: 32768
data:
  source: TEXTS
attention:
  dense_finish: 0.2  # the last fifth of the steps with full attention; 0 is the paper
"""


def next_commands(output: Path) -> list[str]:
    """Three commands that do the demo's job on a user's model and texts."""
    return [
        f"longlora train {output / 'starter.yaml'} model_name_or_path=MODEL data.source=TEXTS context_length=32768",
        "longlora eval runs/mine/adapter --suite quick --data HELD_OUT_TEXTS --out verdict",
        "longlora chat runs/mine/merged --document FILE",
    ]


def draw(result: DemoResult, path: Path) -> None:
    """Draw perplexity over context length, one line a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    base, target = result.environment["base_context"], result.settings["context_length"]
    lengths = list(result.perplexity["base"])
    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    untrained = {"base": "-", "interpolation only": "--"}
    for name, values in result.perplexity.items():
        (line,) = axes.plot(lengths, list(values.values()), marker="o", markersize=4, label=name)
        if name in untrained:
            line.set(color="#888888", linestyle=untrained[name])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    ticks = [10, 20, 50, 100, 200, 500]
    lowest, highest = axes.get_ylim()
    axes.set_yticks([tick for tick in ticks if lowest < tick < highest])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    for length, label in ((base, "base context"), (target, "extended to")):
        axes.axvline(length, color="#cccccc", zorder=0)
        axes.annotate(f" {label}", (length, 0.99), xycoords=("data", "axes fraction"), va="top", color="#888888")
    axes.set(xlabel="context length (tokens)", ylabel="perplexity (full attention, same targets)")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _table(result: DemoResult) -> Table:
    table = Table(title="Perplexity by context length (tokens)")
    table.add_column("model")
    for length in result.perplexity["base"]:
        table.add_column(str(length), justify="right")
    table.add_column("training", justify="right")
    for row in _rows(result):
        table.add_row(*row)
    return table


def _rows(result: DemoResult) -> list[list[str]]:
    return [
        [name, *(f"{value:.2f}" for value in values.values()), _training_time(result.seconds[name])]
        for name, values in result.perplexity.items()
    ]


def _training_time(seconds: dict[str, float]) -> str:
    if "training" not in seconds:
        return ""
    shared = f" after {seconds['shared_steps']:.0f} shared steps" if "shared_steps" in seconds else ""
    return f"{seconds['training']:.0f} s{shared}"


def _verdict(result: DemoResult) -> str:
    base_context, target = result.environment["base_context"], result.settings["context_length"]
    base, extended = result.perplexity["base"], result.perplexity["longlora, dense finish"]
    return (
        f"At {target} tokens the model extended with a dense finish stands at {extended[target]:.2f}: "
        f"{extended[target] / base[base_context]:.2f} x the base at its own {base_context} ({base[base_context]:.2f}), "
        f"{extended[target] / base[target]:.2f} x the base at {target} ({base[target]:.2f})."
    )


def _markdown(result: DemoResult, output: Path) -> str:
    lengths = list(result.perplexity["base"])
    header = ["model", *map(str, lengths), "training"]
    lines = [" | ".join(header), " | ".join(["---", *["---:"] * (len(header) - 1)]), *map(" | ".join, _rows(result))]
    table = "\n".join(f"| {line} |" for line in lines)
    packages = ", ".join(f"{name} {number}" for name, number in result.environment["packages"].items())
    commands = "\n".join(next_commands(output))
    return f"""# Before and after

Perplexity on held-out files of Python's standard library, full attention, the same target tokens at every length.

{table}

{_verdict(result)}

![Perplexity over context length](perplexity.png)

Command: `longlora demo`. {result.environment["date"]}; {result.environment["machine"]}; {packages}.
Merged model in `merged/`: its logits differ from the adapter's by at most {result.merge["largest_difference"]:.2g}.

On a model of your own:

```sh
{commands}
```
"""
