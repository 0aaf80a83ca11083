"""The report's evidence: charts, heat maps, tables, settings and commands, one section per kind of measurement."""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from longlora.evaluation.results import HarnessScore, PerplexityByLength, Retrieval
from longlora.evaluation.shares import Share
from longlora.evaluation.text_results import Perplexity
from longlora.report.blocks import NOT_MEASURED, Block, Cell, Chart, Code, Level, Point, ReportSection, Series, Table
from longlora.report.collect import Collection, ModelResults, TrainingRun
from longlora.report.verdict import compared_benchmarks, cost, retrieval_tests

_MOST_POINTS = 80  # in a training curve; more are averaged
_LOSS, _ERRORS = "loss (nats per token)", "± 2 standard errors"
_MEASURES = {"generated": "answered", "chosen": "chosen"}


def evidence(collection: Collection) -> list[ReportSection]:
    """Return the sections that have content, in the order of a reader's questions."""
    models = collection.models
    sections = [
        ReportSection("retrieval", "Retrieval", _share_charts(models), layout="charts"),
        ReportSection("depth", "Retrieval by depth", _heat_maps(models), layout="maps"),
        ReportSection("perplexity", "Perplexity by context length", _perplexity_charts(models), layout="charts"),
        ReportSection("far-tokens", "Perplexity where far context matters", _distance_charts(models), layout="charts"),
        ReportSection("positions", "Loss by position", _position_charts(models), layout="charts"),
        ReportSection("short-context", "Short context", _short_context_tables(models)),
        ReportSection("harness", "Benchmarks", _benchmark_tables(models)),
        ReportSection("training", "Training", _training_charts(collection), layout="charts"),
        ReportSection("left-out", "Left out", _left_out_tables(models)),
        ReportSection("settings", "Settings and commands", _settings(collection)),
    ]
    return [section for section in sections if section.blocks]


def _line(model: ModelResults, points: Iterable[Point]) -> Series:
    return Series(model.label, model.style, list(points))


def _point(
    x: float, loss: float, standard_error: float, text: str = "", transform: Callable[[float], float] = float
) -> Point:
    """Return a loss, or `transform` of it, with two standard errors on either side."""
    if not standard_error or math.isnan(standard_error):
        return Point(x, transform(loss), text=text)
    value, low, high = (transform(loss + errors * standard_error) for errors in (0, -2, 2))
    return Point(x, value, low, high, text)


def _share_charts(models: list[ModelResults]) -> list[Chart]:
    charts = []
    for title in retrieval_tests(models):
        tests = [(model, model.retrieval[title]) for model in models if title in model.retrieval]
        measures = list(dict.fromkeys(measure for _, test in tests for measure in test.chance))
        for measure in measures:
            if all(share.share == 0 for _, test in tests for share in test.shares(measure).values()):
                continue  # the verdict covers these in one line
            name = f"{title}: {_MEASURES.get(measure, measure)}" if len(measures) > 1 else title
            charts.append(_share_chart(name, measure, tests))
    return charts


def _share_chart(name: str, measure: str, tests: list[tuple[ModelResults, Retrieval]]) -> Chart:
    def point(length: int, s: Share) -> Point:
        text = f"{s.share:.0%} ({s.low:.0%} to {s.high:.0%}, {s.num_trials} trials)"
        return Point(length, s.share, s.low, s.high, text)

    bar, chance = tests[0][1].bar, tests[0][1].chance.get(measure)
    levels = [Level(f"bar {bar:.0%}", bar)]
    return Chart(
        title=name,
        x_label="length (tokens)",
        y_label="right answers",
        series=[_line(model, (point(*item) for item in test.shares(measure).items())) for model, test in tests],
        by_length=True,
        percent=True,
        levels=[*levels, Level(f"chance {chance:.0%}", chance)] if chance else levels,
        intervals="95 % intervals (Wilson)",
    )


def _heat_maps(models: list[ModelResults]) -> list[Table]:
    def cell(share: Share | None) -> Cell:
        return Cell(f"{share.share:.0%}", heat=share.share) if share else NOT_MEASURED

    return [
        Table(
            f"{title}: {model.label}",
            ["depth", *(f"{row.length:,}" for row in test.lengths)],
            [
                [depth, *(cell(row.by_depth.get(depth, {}).get("generated")) for row in test.lengths)]
                for depth in test.lengths[0].by_depth
            ],
        )
        for title in retrieval_tests(models)
        for model in models
        if (test := model.retrieval.get(title)) and len(test.lengths[0].by_depth) > 1 and not test.is_zero
    ]


def _perplexity_charts(models: list[ModelResults]) -> list[Chart]:
    # Losses are comparable only on the same tokens: each choice of tokens gets its own chart.
    groups: dict[tuple[str, str, str], list[tuple[ModelResults, PerplexityByLength]]] = {}
    for model in models:
        if result := model.perplexity:
            choice = result.protocol, result.data, json.dumps(result.settings, sort_keys=True)
            groups.setdefault(choice, []).append((model, result))
    return [_perplexity_chart(group) for group in groups.values()]


def _perplexity_chart(group: list[tuple[ModelResults, PerplexityByLength]]) -> Chart:
    def point(length: int, value: Perplexity) -> Point:
        text = f"{value.perplexity:.2f}"
        return _point(length, math.log(value.perplexity), value.standard_error, text, math.exp)

    num_tokens = max(value.num_tokens for _, result in group for value in result.perplexity.values())
    first = group[0][1]
    return Chart(
        title=f"{first.data}: {num_tokens:,} tokens scored, protocol {first.protocol}",
        x_label="context length (tokens)",
        y_label="perplexity",
        series=[_line(model, (point(*item) for item in result.perplexity.items())) for model, result in group],
        by_length=True,
        wide_range=True,
        intervals=_ERRORS,
    )


def _distance_charts(models: list[ModelResults]) -> list[Chart]:
    found = [(model, model.longppl) for model in models if model.longppl]
    far = [(model, result.by_distance) for model, result in found if result.by_distance]
    rows = [
        [model.label, result.evaluator, f"{result.length:,}"]
        + ([f"{keys.perplexity:.2f}", f"{keys.num_tokens:,}"] if (keys := result.key_tokens) else ["", "0"])
        + [f"{result.all_targets.perplexity:.2f}", f"{result.num_targets:,}"]
        for model, result in found
    ]
    header = ["model", "chosen by", "given", "LongPPL", "key tokens", "perplexity of all", "tokens"]
    chart = Chart(
        title="Loss by distance of the evidence",
        x_label="tokens to the evidence, at most",
        y_label=_LOSS,
        series=[_line(model, (_point(p.end, p.loss, p.standard_error) for p in parts)) for model, parts in far],
        table=Table("Perplexity on the tokens that need far context (LongPPL)", header, rows),
        by_length=True,
        intervals=_ERRORS,
    )
    return [chart] if far else []


def _position_charts(models: list[ModelResults]) -> list[Chart]:
    curves = [(model, model.positions) for model in models if model.positions]
    rows = [[model.label, f"{curve.length:,}", str(curve.num_windows), curve.verdict] for model, curve in curves]
    chart = Chart(
        title="Loss by position in the window",
        x_label="tokens before the target",
        y_label=_LOSS,
        series=[
            _line(model, (_point((b.start + b.end - 1) / 2, b.loss, b.standard_error) for b in curve.curve))
            for model, curve in curves
        ],
        table=Table("Loss by position", ["model", "window (tokens)", "windows", "verdict"], rows),
        intervals=_ERRORS,
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
    caption = "Base and extended model on the same tokens, at the base context"
    return [Table(caption, header, rows), *_against_base(models)] if rows else []


def _against_base(models: list[ModelResults]) -> list[Table]:
    """Compare benchmark scores of models and their bases.

    Their errors are treated as independent, `sqrt(error**2 + base_error**2)`; since both models answered the same
    questions, this is an overestimate rather than an underestimate.
    """
    rows = []
    for model in models:
        for own, base in compared_benchmarks(model, models):
            difference = f"{own.value - base.value:+.3f}"
            if own.standard_error is not None and base.standard_error is not None:
                difference += f" ± {math.hypot(own.standard_error, base.standard_error):.3f}"
            rows.append([model.label, own.task, own.metric, f"{base.value:.3f} → {own.value:.3f}", difference])
    header = ["model", "task", "metric", "base → model", "difference ± standard error"]
    return [Table("Benchmarks of base and extended model", header, rows)] if rows else []


def _benchmark_tables(models: list[ModelResults]) -> list[Table]:
    def cell(score: HarnessScore | None) -> Cell | str:
        if score is None:
            return NOT_MEASURED
        error = f" ± {score.standard_error:.3f}" if score.standard_error else ""
        return f"{score.value:.3f}{error}" + (f" ({score.num_samples:,})" if score.num_samples else "")

    found = [{(score.task, score.metric): score for score in model.harness.scores} for model in models if model.harness]
    names = dict.fromkeys(name for scores in found for name in scores)
    header = ["task", *(model.label for model in models if model.harness)]
    rows = [[", ".join(name), *(cell(scores.get(name)) for scores in found)] for name in names]
    return [Table("lm-evaluation-harness: value ± standard error (samples)", header, rows)] if names else []


def _training_charts(collection: Collection) -> list[Chart]:
    runs = [(name, style, run) for style, (name, run) in enumerate(collection.all_runs) if run.steps]
    rows = [
        [
            name,
            str(run.recipe.get("model_name_or_path", "")),
            f"{run.recipe.get('context_length', 0):,}",
            _attention(run.recipe),
            cost(run),
            f"{run.losses[-1]:.3f}",
        ]
        for name, _, run in runs
    ]
    header = ["run", "model", "context", "attention", "steps, tokens, time", "last loss"]
    chart = Chart(
        title="Training loss",
        x_label="optimizer step",
        y_label=_LOSS,
        series=[Series(name, style, _averaged(run)) for name, style, run in runs],
        table=Table("Training runs", header, rows),
    )
    return [chart] if runs else []


def _averaged(run: TrainingRun) -> list[Point]:
    """Average adjacent steps down to at most `_MOST_POINTS` points: single steps are mostly noise."""
    size = math.ceil(len(run.steps) / _MOST_POINTS)
    parts = [(run.steps[at : at + size], run.losses[at : at + size]) for at in range(0, len(run.steps), size)]
    return [Point(sum(steps) / len(steps), sum(losses) / len(losses)) for steps, losses in parts]


def _attention(recipe: Mapping[str, Any]) -> str:
    attention = recipe.get("attention") or {}
    finish = f", dense finish {attention['dense_finish']:g}" if attention.get("dense_finish") else ""
    full = f", one layer of {interval} full" if (interval := attention.get("full_attention_interval")) else ""
    unshifted = "" if attention.get("shift", True) else ", unshifted"
    return f"{attention.get('pattern', '')}{unshifted}{full}{finish}"


def _left_out_tables(models: list[ModelResults]) -> list[Table]:
    rows = [[model.label, note] for model in models if model.suite for note in model.suite.left_out]
    return [Table("Not measured, with the reason", ["model", "left out"], rows)] if rows else []


def _settings(collection: Collection) -> list[Block]:
    blocks: list[Block] = []
    for model in collection.models:
        blocks.append(_sources(model))
        commands = dict.fromkeys(str(found.provenance.get("command", "")) for found in model.sources)
        if lines := "\n".join(filter(None, commands)):
            blocks.append(Code(f"Commands of {model.label}", lines))
    for name, run in collection.all_runs:
        if command := next((start["command"] for start in run.starts if start.get("command")), None):
            text = shlex.join(["longlora", *map(str, command[1:])])
            blocks.append(Code(f"Training of {name}", text))
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
    return Table(f"{model.label}: {model.name}{weights}", header, rows)
