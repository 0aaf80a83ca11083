"""The evidence: curves, heat maps, tables, settings and commands, a section for each kind of measurement."""

import math
import shlex
from collections.abc import Mapping
from typing import Any

from longlora.evaluation.results import PerplexityByLength, Retrieval, RetrievalRow, Share
from longlora.report.benchmarks import against_base, benchmarks_section
from longlora.report.blocks import NOT_MEASURED, Block, Cell, Chart, Code, Level, Point, Section, Series, Table
from longlora.report.collect import Collection, ModelResults
from longlora.report.runs import TrainingRun
from longlora.report.verdict import cost

_MOST_POINTS = 80  # more are averaged in a curve of training
_VERBS = {"generated": "answered", "chosen": "chosen"}


def evidence(collection: Collection) -> list[Section]:
    """Return the sections that have something to show, in the order of a reader's questions."""
    models = collection.models
    sections = [
        _retrieval(models),
        _depth(models),
        _perplexity(models),
        _positions(models),
        _short_context(models),
        benchmarks_section(models),
        _training(collection),
        _left_out(models),
        _settings(collection),
    ]
    return [section for section in sections if section.blocks]


def _retrieval(models: list[ModelResults]) -> Section:
    blocks: list[Block] = []
    for title in dict.fromkeys(title for model in models for title in model.retrieval):
        having = [
            (style, model, model.retrieval[title]) for style, model in enumerate(models) if title in model.retrieval
        ]
        measures = list(dict.fromkeys(measure for _, _, test in having for measure in test.chance))
        blocks += [_share_chart(title, measure, having, several=len(measures) > 1) for measure in measures]
    return Section(
        anchor="retrieval",
        title="Retrieval",
        paragraphs=[
            "Share of right answers by length of the prompt. The effective length is the longest tested length with "
            "the bar there and at every shorter one, all depths together; mind the intervals."
        ],
        blocks=blocks,
    )


def _share_chart(
    title: str, measure: str, having: list[tuple[int, ModelResults, Retrieval]], *, several: bool
) -> Chart:
    series = [
        Series(
            label=model.label,
            style=style,
            points=[
                Point(x=row.length, y=share.share, low=share.low, high=share.high)
                for row in test.rows
                if (share := row.shares.get(measure))
            ],
        )
        for style, model, test in having
    ]
    first = having[0][2]
    levels = [Level(label=f"bar {first.bar:.0%}", y=first.bar)]
    if chance := first.chance.get(measure):
        levels.append(Level(label=f"chance {chance:.0%}", y=chance))
    lengths = sorted({row.length for _, _, test in having for row in test.rows})
    rows = [
        [
            Cell(text=model.label),
            *(_share_cell(_at(test, length), measure) for length in lengths),
        ]
        for _, model, test in having
    ]
    name = f"{title}: {_VERBS.get(measure, measure)}" if several else title
    return Chart(
        title=name,
        x_label="length (tokens)",
        y_label="right answers",
        series=series,
        table=Table(caption=f"{name}, by length in tokens", header=["model", *_tokens(lengths)], rows=rows),
        x_ticks=[float(length) for length in lengths],
        percent=True,
        levels=levels,
        intervals="95 % intervals (Wilson)",
    )


def _depth(models: list[ModelResults]) -> Section:
    titles = dict.fromkeys(title for model in models for title in model.retrieval)
    tests = [(title, model, model.retrieval[title]) for title in titles for model in models if title in model.retrieval]
    return Section(
        anchor="depth",
        title="Retrieval by depth",
        paragraphs=[
            "Right answers by length (across, in tokens) and by depth of the fact (down; 0 is the text's beginning). "
            "A model that reads nothing but the last part of a text is right in the lowest rows only."
        ],
        blocks=[_heat_map(title, model, test) for title, model, test in tests if len(test.rows[0].by_depth) > 1],
    )


def _heat_map(title: str, model: ModelResults, test: Retrieval) -> Table:
    rows = [
        [Cell(text=depth), *(_heat_cell(row.by_depth.get(depth, {}).get("generated")) for row in test.rows)]
        for depth in test.rows[0].by_depth
    ]
    header = ["depth", *_tokens([row.length for row in test.rows])]
    return Table(caption=f"{title}: {model.label}", header=header, rows=rows, is_map=True)


def _at(test: Retrieval, length: int) -> RetrievalRow | None:
    return next((row for row in test.rows if row.length == length), None)


def _share_cell(row: RetrievalRow | None, measure: str) -> Cell:
    share = row.shares.get(measure) if row else None
    if share is None:
        return NOT_MEASURED
    return Cell(text=f"{share.share:.0%} ({share.low:.0%} to {share.high:.0%}, {share.num_trials} trials)")


def _heat_cell(share: Share | None) -> Cell:
    return NOT_MEASURED if share is None else Cell(text=f"{share.share:.0%}", heat=share.share)


def _perplexity(models: list[ModelResults]) -> Section:
    charts: list[Block] = []
    # Only losses of the same tokens can be compared: each choice of them has its own chart.
    groups = dict.fromkeys(_scored(model.perplexity) for model in models if model.perplexity)
    for group in groups:
        having = [
            (style, model, model.perplexity.rows)
            for style, model in enumerate(models)
            if model.perplexity and _scored(model.perplexity) == group
        ]
        lengths = sorted({row.length for _, _, rows in having for row in rows})
        series = [
            Series(
                label=model.label,
                style=style,
                points=[
                    Point(
                        x=row.length,
                        y=row.perplexity,
                        low=row.perplexity * math.exp(-2 * row.standard_error) if row.standard_error else None,
                        high=row.perplexity * math.exp(2 * row.standard_error) if row.standard_error else None,
                    )
                    for row in rows
                    if row.perplexity is not None
                ],
            )
            for style, model, rows in having
        ]
        by_length = [{row.length: row.perplexity for row in rows} for _, _, rows in having]
        table_rows = [
            [Cell(text=model.label), *(_number(values.get(length)) for length in lengths)]
            for (_, model, _), values in zip(having, by_length, strict=True)
        ]
        protocol, data, _ = group
        num_tokens = max(row.num_tokens for _, _, rows in having for row in rows)
        caption = f"{data}: {num_tokens:,} tokens scored, protocol {protocol}"
        charts.append(
            Chart(
                title=caption,
                x_label="context length (tokens)",
                y_label="perplexity",
                series=series,
                table=Table(caption=caption, header=["model", *_tokens(lengths)], rows=table_rows),
                x_ticks=[float(length) for length in lengths],
                wide_range=True,
                intervals="± 2 standard errors",
            )
        )
    note = (
        "Lower is better. A low perplexity does not show that a model reads far: the next word mostly depends on the "
    )
    return Section(
        anchor="perplexity",
        title="Perplexity by context length",
        paragraphs=[note + "last few hundred. Models with other tokenizers cannot be compared by it."],
        blocks=charts,
    )


def _scored(result: PerplexityByLength) -> tuple[str, str, str]:
    return result.protocol, result.data, result.targets


def _positions(models: list[ModelResults]) -> Section:
    having = [(style, model, model.positions) for style, model in enumerate(models) if model.positions]
    blocks: list[Block] = []
    if having:
        series = [
            Series(
                label=model.label,
                style=style,
                points=[
                    Point(
                        x=(bucket.start + bucket.end - 1) / 2,
                        y=bucket.loss,
                        low=bucket.loss - 2 * bucket.standard_error if bucket.standard_error else None,
                        high=bucket.loss + 2 * bucket.standard_error if bucket.standard_error else None,
                    )
                    for bucket in curve.buckets
                ],
            )
            for style, model, curve in having
        ]
        rows = [
            [
                Cell(text=model.label),
                Cell(text=f"{curve.length:,}"),
                Cell(text=str(curve.num_windows)),
                Cell(text=curve.verdict),
            ]
            for _, model, curve in having
        ]
        header = ["model", "window (tokens)", "windows", "what the curve says"]
        blocks.append(
            Chart(
                title="Loss by position in the window",
                x_label="tokens before the target",
                y_label="loss (nats per token)",
                series=series,
                table=Table(caption="Loss by position", header=header, rows=rows),
                intervals="± 2 standard errors",
            )
        )
    return Section(
        anchor="positions",
        title="Loss by position",
        paragraphs=[
            "A model that uses what it reads gives a falling curve; where it turns up for good, reading stops."
        ],
        blocks=blocks,
    )


def _short_context(models: list[ModelResults]) -> Section:
    rows = [
        [
            Cell(text=model.label),
            Cell(text=result.base),
            Cell(text=f"{result.length:,}"),
            Cell(text=f"{result.base_perplexity:.3f} → {result.perplexity:.3f}"),
            Cell(
                text=f"{result.difference:+.4f} ± {result.standard_error:.4f}"
                if result.standard_error
                else f"{result.difference:+.4f}"
            ),
            Cell(text=f"{result.num_tokens:,}"),
            Cell(text=result.verdict),
        ]
        for model in models
        if (result := model.short_context)
    ]
    header = ["model", "base", "length", "perplexity", "difference (nats per token)", "tokens", "verdict"]
    caption = "Base and extended model on the same tokens, at the base's own context"
    table = Table(caption=caption, header=header, rows=rows)
    return Section(
        anchor="short-context",
        title="Short context",
        paragraphs=[
            "What the extension did to texts that the base could read already; differences are paired by window."
        ],
        blocks=[table, *against_base(models)] if rows else [],
    )


def _training(collection: Collection) -> Section:
    runs = [(name, run) for name, run in collection.all_runs if run.steps]
    if not runs:
        return Section(anchor="training", title="Training")
    series = [Series(label=name, style=style, points=_averaged(run)) for style, (name, run) in enumerate(runs)]
    header = ["run", "model", "context", "attention", "steps, tokens, time", "last loss"]
    rows = [
        [
            Cell(text=name),
            Cell(text=str(run.recipe.get("model_name_or_path", ""))),
            Cell(text=f"{run.recipe.get('context_length', 0):,}"),
            Cell(text=_attention(run.recipe)),
            cost(run),
            Cell(text=f"{run.losses[-1]:.3f}"),
        ]
        for name, run in runs
    ]
    note = "Losses of other attention, texts or tokenizers cannot be compared. The time is from the first start to the "
    return Section(
        anchor="training",
        title="Training",
        paragraphs=[note + "last write of the log, pauses included."],
        blocks=[
            Chart(
                title="Training loss",
                x_label="optimizer step",
                y_label="loss (nats per token)",
                series=series,
                table=Table(caption="Training runs", header=header, rows=rows),
            )
        ],
    )


def _averaged(run: TrainingRun) -> list[Point]:
    """Average neighbouring steps so that at most so many points remain: single steps are mostly noise."""
    size = math.ceil(len(run.steps) / _MOST_POINTS)
    parts = [(run.steps[at : at + size], run.losses[at : at + size]) for at in range(0, len(run.steps), size)]
    means = [Point(x=sum(steps) / len(steps), y=sum(losses) / len(losses)) for steps, losses in parts]
    return [point for point in means if math.isfinite(point.y)]


def _attention(recipe: Mapping[str, Any]) -> str:
    attention = recipe.get("attention") or {}
    finish = f", dense finish {attention['dense_finish']:g}" if attention.get("dense_finish") else ""
    return f"{attention.get('pattern', '')}{finish}"


def _settings(collection: Collection) -> Section:
    blocks: list[Block] = []
    for model in collection.models:
        rows = []
        for found in model.sources:
            place = found.provenance
            settings = {k: v for k, v in found.settings.items() if k not in ("model", "weights", "tokenizer")}
            versions = ", ".join(f"{name} {number}" for name, number in dict(place.get("packages", {})).items())
            rows.append(
                [
                    Cell(text=found.path.parent.name + "/" + found.path.name),
                    Cell(text=str(place.get("date", ""))),
                    Cell(text=str(place.get("device", ""))),
                    Cell(text=", ".join(f"{name}={value}" for name, value in settings.items())),
                    Cell(text=versions),
                ]
            )
        header = ["file", "date", "device", "settings", "versions"]
        weights = next((found.weights for found in model.sources if found.weights), None)
        digest = f", weights {weights}" if weights else ""
        blocks.append(Table(caption=f"{model.label}: {model.name}{digest}", header=header, rows=rows))
        commands = dict.fromkeys(str(found.provenance.get("command", "")) for found in model.sources)
        if lines := [command for command in commands if command]:
            blocks.append(Code(caption=f"Commands of {model.label}", text="\n".join(lines)))
    for name, run in collection.all_runs:
        command = next((start["command"] for start in run.starts if start.get("command")), None)
        if command:
            text = shlex.join(["longlora", *map(str, command[1:])])
            blocks.append(Code(caption=f"Training of {name}", text=text))
    return Section(anchor="settings", title="Settings and commands", blocks=blocks)


def _left_out(models: list[ModelResults]) -> Section:
    rows = [
        [Cell(text=model.label), Cell(text=note)] for model in models if model.left_out for note in model.left_out.notes
    ]
    table = Table(caption="Not measured, and why", header=["model", "what and why"], rows=rows)
    return Section(anchor="left-out", title="Left out", blocks=[table] if rows else [])


def _number(value: float | None) -> Cell:
    return NOT_MEASURED if value is None else Cell(text=f"{value:.2f}")


def _tokens(lengths: list[int]) -> list[str]:
    return [f"{length:,}" for length in lengths]
