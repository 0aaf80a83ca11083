"""The evidence: curves, heat maps, tables, settings and commands, a section for each kind of measurement."""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from longlora.evaluation.results import HarnessScore, PerplexityByLength, Retrieval, Share
from longlora.report.blocks import NOT_MEASURED, Block, Cell, Chart, Code, Level, Point, Section, Series, Table
from longlora.report.collect import Collection, ModelResults
from longlora.report.runs import TrainingRun
from longlora.report.verdict import compared_benchmarks, cost, retrieval_tests

_MOST_POINTS = 80  # more are averaged in a curve of training
_MEASURES = {"generated": "answered", "chosen": "chosen"}

Result = TypeVar("Result")


class Of(NamedTuple, Generic[Result]):
    """A result with its model's label, and with the style that the model has in all charts."""

    style: int
    label: str
    result: Result

    def line(self, points: Iterable[Point]) -> Series:
        """Make a line of a chart; what is not finite has its place in the table alone."""
        return Series(label=self.label, style=self.style, points=[point for point in points if math.isfinite(point.y)])


def evidence(collection: Collection) -> list[Section]:
    """Return the sections that have something to show, in the order of a reader's questions."""
    models = collection.models
    sections = [
        Section(
            anchor="retrieval",
            title="Retrieval",
            note="Share of right answers by length of the prompt. The effective length is the longest tested length "
            "with the bar there and at every shorter one, all depths together; mind the intervals.",
            blocks=_share_charts(models),
            layout="charts",
        ),
        Section(
            anchor="depth",
            title="Retrieval by depth",
            note="Right answers by length (across, in tokens) and by depth of the fact (down; 0 is the text's "
            "beginning). A model that reads nothing but the last part of a text is right in the lowest rows only.",
            blocks=_heat_maps(models),
            layout="maps",
        ),
        Section(
            anchor="perplexity",
            title="Perplexity by context length",
            note="Lower is better. A low perplexity does not show that a model reads far: the next word mostly depends "
            "on the last few hundred. Models with other tokenizers cannot be compared by it.",
            blocks=_perplexity_charts(models),
            layout="charts",
        ),
        Section(
            anchor="positions",
            title="Loss by position",
            note="A model that uses what it reads gives a falling curve; where it turns up for good, reading stops.",
            blocks=_position_charts(models),
            layout="charts",
        ),
        Section(
            anchor="short-context",
            title="Short context",
            note="What the extension did to texts that the base could read already; differences are paired by window.",
            blocks=_short_context_tables(models),
        ),
        Section(anchor="harness", title="Benchmarks", blocks=_benchmark_tables(models)),
        Section(
            anchor="training",
            title="Training",
            note="Losses of other attention, texts or tokenizers cannot be compared. The time is from the first start "
            "to the last write of the log, pauses included.",
            blocks=_training_charts(collection),
            layout="charts",
        ),
        Section(anchor="left-out", title="Left out", blocks=_left_out_tables(models)),
        Section(anchor="settings", title="Settings and commands", blocks=_settings(collection)),
    ]
    return [section for section in sections if section.blocks]


def _share_charts(models: list[ModelResults]) -> list[Chart]:
    charts = []
    for title in retrieval_tests(models):
        tests = [
            Of(i, model.label, model.retrieval[title]) for i, model in enumerate(models) if title in model.retrieval
        ]
        measures = list(dict.fromkeys(measure for test in tests for measure in test.result.chance))
        for measure in measures:
            name = f"{title}: {_MEASURES.get(measure, measure)}" if len(measures) > 1 else title
            charts.append(_share_chart(name, measure, tests))
    return charts


def _share_chart(name: str, measure: str, tests: list[Of[Retrieval]]) -> Chart:
    def shares(test: Retrieval) -> list[tuple[int, Share]]:
        return [(row.length, row.shares[measure]) for row in test.lengths if measure in row.shares]

    def text(share: Share) -> str:
        return f"{share.share:.0%} ({share.low:.0%} to {share.high:.0%}, {share.num_trials} trials)"

    lengths = sorted({row.length for test in tests for row in test.result.lengths})
    texts = [(label, {length: text(share) for length, share in shares(test)}) for _, label, test in tests]
    bar, chance = tests[0].result.bar, tests[0].result.chance.get(measure)
    levels = [Level(label=f"bar {bar:.0%}", y=bar)]
    return Chart(
        title=name,
        x_label="length (tokens)",
        y_label="right answers",
        series=[
            test.line(Point(x=length, y=s.share, low=s.low, high=s.high) for length, s in shares(test.result))
            for test in tests
        ],
        table=_by_length(f"{name}, by length in tokens", lengths, texts),
        x_ticks=lengths,
        percent=True,
        levels=[*levels, Level(label=f"chance {chance:.0%}", y=chance)] if chance else levels,
        intervals="95 % intervals (Wilson)",
    )


def _heat_maps(models: list[ModelResults]) -> list[Table]:
    def cell(share: Share | None) -> Cell:
        return Cell(text=f"{share.share:.0%}", heat=share.share) if share else NOT_MEASURED

    return [
        Table(
            caption=f"{title}: {model.label}",
            header=["depth", *(f"{row.length:,}" for row in test.lengths)],
            rows=[
                [depth, *(cell(row.by_depth.get(depth, {}).get("generated")) for row in test.lengths)]
                for depth in test.lengths[0].by_depth
            ],
        )
        for title in retrieval_tests(models)
        for model in models
        if (test := model.retrieval.get(title)) and len(test.lengths[0].by_depth) > 1
    ]


def _perplexity_charts(models: list[ModelResults]) -> list[Chart]:
    # Only losses of the same tokens can be compared: each choice of them has its own chart.
    groups: dict[tuple[str, str, str], list[Of[PerplexityByLength]]] = {}
    for style, model in enumerate(models):
        if result := model.perplexity:
            choice = result.protocol, result.data, json.dumps(result.settings, sort_keys=True)
            groups.setdefault(choice, []).append(Of(style, model.label, result))
    return [_perplexity_chart(group) for group in groups.values()]


def _perplexity_chart(group: list[Of[PerplexityByLength]]) -> Chart:
    lengths = sorted({length for of in group for length in of.result.perplexity})
    num_tokens = max(value.num_tokens for of in group for value in of.result.perplexity.values())
    texts = [
        (label, {length: f"{value.perplexity:.2f}" for length, value in result.perplexity.items()})
        for _, label, result in group
    ]
    first = group[0].result
    caption = f"{first.data}: {num_tokens:,} tokens scored, protocol {first.protocol}"
    return Chart(
        title=caption,
        x_label="context length (tokens)",
        y_label="perplexity",
        series=[
            of.line(
                _point(length, math.log(value.perplexity), value.standard_error, math.exp)
                for length, value in of.result.perplexity.items()
            )
            for of in group
        ],
        table=_by_length(caption, lengths, texts),
        x_ticks=lengths,
        wide_range=True,
        intervals="± 2 standard errors",
    )


def _by_length(caption: str, lengths: list[int], texts: list[tuple[str, dict[int, str]]]) -> Table:
    rows = [[label, *(known.get(length, NOT_MEASURED) for length in lengths)] for label, known in texts]
    return Table(caption=caption, header=["model", *(f"{length:,}" for length in lengths)], rows=rows)


def _point(x: float, loss: float, standard_error: float, transform: Callable[[float], float] = float) -> Point:
    """Draw a loss, or `transform` of it, with two standard errors on both sides."""
    if not standard_error or math.isnan(standard_error):
        return Point(x=x, y=transform(loss))
    low, high = loss - 2 * standard_error, loss + 2 * standard_error
    return Point(x=x, y=transform(loss), low=transform(low), high=transform(high))


def _position_charts(models: list[ModelResults]) -> list[Chart]:
    curves = [Of(i, model.label, model.positions) for i, model in enumerate(models) if model.positions]
    chart = Chart(
        title="Loss by position in the window",
        x_label="tokens before the target",
        y_label="loss (nats per token)",
        series=[
            curve.line(_point((b.start + b.end - 1) / 2, b.loss, b.standard_error) for b in curve.result.curve)
            for curve in curves
        ],
        table=Table(
            caption="Loss by position",
            header=["model", "window (tokens)", "windows", "what the curve says"],
            rows=[[label, f"{curve.length:,}", str(curve.num_windows), curve.verdict] for _, label, curve in curves],
        ),
        intervals="± 2 standard errors",
    )
    return [chart] if curves else []


def _short_context_tables(models: list[ModelResults]) -> list[Table]:
    rows = [
        [
            model.label,
            result.base,
            f"{result.length:,}",
            f"{result.base_perplexity:.3f} → {result.perplexity:.3f}",
            f"{result.difference:+.4f}" + (f" ± {result.standard_error:.4f}" if result.standard_error else ""),
            f"{result.num_tokens:,}",
            result.verdict,
        ]
        for model in models
        if (result := model.short_context)
    ]
    header = ["model", "base", "length", "perplexity", "difference (nats per token)", "tokens", "verdict"]
    caption = "Base and extended model on the same tokens, at the base's own context"
    return [Table(caption=caption, header=header, rows=rows), *_against_base(models)] if rows else []


def _against_base(models: list[ModelResults]) -> list[Table]:
    """Put benchmarks of models and bases beside each other.

    Their errors are taken as independent: `sqrt(error**2 + base_error**2)`, which is too large rather than too small,
    for both were asked the same.
    """
    rows = []
    for model in models:
        for own, base in compared_benchmarks(model, models):
            difference = f"{own.value - base.value:+.3f}"
            if own.standard_error is not None and base.standard_error is not None:
                difference += f" ± {math.hypot(own.standard_error, base.standard_error):.3f}"
            rows.append([model.label, own.task, own.metric, f"{base.value:.3f} → {own.value:.3f}", difference])
    header = ["model", "task", "metric", "base → model", "difference ± standard error"]
    return [Table(caption="Benchmarks of base and extended model", header=header, rows=rows)] if rows else []


def _benchmark_tables(models: list[ModelResults]) -> list[Table]:
    found = [{(score.task, score.metric): score for score in model.harness.scores} for model in models if model.harness]

    def cell(score: HarnessScore | None) -> Cell | str:
        if score is None:
            return NOT_MEASURED
        error = f" ± {score.standard_error:.3f}" if score.standard_error else ""
        return f"{score.value:.3f}{error}" + (f" ({score.num_samples:,})" if score.num_samples else "")

    names = dict.fromkeys(name for scores in found for name in scores)
    table = Table(
        caption="lm-evaluation-harness: value ± standard error (samples)",
        header=["task", *(model.label for model in models if model.harness)],
        rows=[[", ".join(name), *(cell(scores.get(name)) for scores in found)] for name in names],
    )
    return [table] if names else []


def _training_charts(collection: Collection) -> list[Chart]:
    runs = [Of(style, name, run) for style, (name, run) in enumerate(collection.all_runs) if run.steps]
    rows = [
        [
            name,
            str(run.recipe.get("model_name_or_path", "")),
            f"{run.recipe.get('context_length', 0):,}",
            _attention(run.recipe),
            cost(run),
            f"{run.losses[-1]:.3f}",
        ]
        for _, name, run in runs
    ]
    header = ["run", "model", "context", "attention", "steps, tokens, time", "last loss"]
    chart = Chart(
        title="Training loss",
        x_label="optimizer step",
        y_label="loss (nats per token)",
        series=[run.line(_averaged(run.result)) for run in runs],
        table=Table(caption="Training runs", header=header, rows=rows),
    )
    return [chart] if runs else []


def _averaged(run: TrainingRun) -> list[Point]:
    """Average neighbouring steps so that at most so many points remain: single steps are mostly noise."""
    size = math.ceil(len(run.steps) / _MOST_POINTS)
    parts = [(run.steps[at : at + size], run.losses[at : at + size]) for at in range(0, len(run.steps), size)]
    return [Point(x=sum(steps) / len(steps), y=sum(losses) / len(losses)) for steps, losses in parts]


def _attention(recipe: Mapping[str, Any]) -> str:
    attention = recipe.get("attention") or {}
    finish = f", dense finish {attention['dense_finish']:g}" if attention.get("dense_finish") else ""
    return f"{attention.get('pattern', '')}{finish}"


def _left_out_tables(models: list[ModelResults]) -> list[Table]:
    rows = [[model.label, note] for model in models if model.left_out for note in model.left_out.left_out]
    return [Table(caption="Not measured, and why", header=["model", "what and why"], rows=rows)] if rows else []


def _settings(collection: Collection) -> list[Block]:
    blocks: list[Block] = []
    for model in collection.models:
        blocks.append(_sources(model))
        commands = dict.fromkeys(str(found.provenance.get("command", "")) for found in model.sources)
        if lines := "\n".join(filter(None, commands)):
            blocks.append(Code(caption=f"Commands of {model.label}", text=lines))
    for name, run in collection.all_runs:
        if command := next((start["command"] for start in run.starts if start.get("command")), None):
            text = shlex.join(["longlora", *map(str, command[1:])])
            blocks.append(Code(caption=f"Training of {name}", text=text))
    return blocks


def _sources(model: ModelResults) -> Table:
    rows = [
        [
            f"{found.path.parent.name}/{found.path.name}",
            str(found.provenance.get("date", "")),
            str(found.provenance.get("device", "")),
            ", ".join(f"{k}={v}" for k, v in found.settings.items() if k not in ("model", "weights", "tokenizer")),
            ", ".join(f"{name} {number}" for name, number in found.provenance.get("packages", {}).items()),
        ]
        for found in model.sources
    ]
    weights = next((f", weights {found.weights}" for found in model.sources if found.weights), "")
    header = ["file", "date", "device", "settings", "versions"]
    return Table(caption=f"{model.label}: {model.name}{weights}", header=header, rows=rows)
