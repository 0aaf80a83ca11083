"""Scores of lm-evaluation-harness, by themselves and against a base."""

import math

from longlora.evaluation.results import HarnessScore
from longlora.report.blocks import NOT_MEASURED, Cell, Section, Table
from longlora.report.collect import ModelResults

_PREFERRED = ("acc_norm", "acc", "exact_match", "score")


def compared_benchmarks(model: ModelResults, models: list[ModelResults]) -> list[tuple[HarnessScore, HarnessScore]]:
    """Pair a model's scores with its base's, one metric for each task that both did."""
    base_name = model.short_context.base if model.short_context else None
    base = next((other for other in models if other.name == base_name), None)
    if base is None or base.harness is None or model.harness is None:
        return []
    of_base = {(score.task, score.metric): score for score in base.harness.scores}
    pairs = {}
    for task in dict.fromkeys(score.task for score in model.harness.scores):
        both = [s for s in model.harness.scores if s.task == task and (task, s.metric) in of_base]
        both.sort(key=lambda s: _PREFERRED.index(s.metric) if s.metric in _PREFERRED else len(_PREFERRED))
        if both:
            pairs[task] = both[0], of_base[task, both[0].metric]
    return list(pairs.values())


def against_base(models: list[ModelResults]) -> list[Table]:
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
            values = f"{base.value:.3f} → {own.value:.3f}"
            rows.append([Cell(text=text) for text in (model.label, own.task, own.metric, values, difference)])
    header = ["model", "task", "metric", "base → model", "difference ± standard error"]
    return [Table(caption="Benchmarks of base and extended model", header=header, rows=rows)] if rows else []


def benchmarks_section(models: list[ModelResults]) -> Section:
    """Tabulate every score of every model."""
    having = [model for model in models if model.harness]
    names = list(dict.fromkeys((s.task, s.metric) for m in having if m.harness for s in m.harness.scores))
    rows = []
    for task, metric in names:
        row = [Cell(text=f"{task}, {metric}")]
        for model in having:
            scores = model.harness.scores if model.harness else []
            score = next((s for s in scores if (s.task, s.metric) == (task, metric)), None)
            if score is None:
                row.append(NOT_MEASURED)
                continue
            error = f" ± {score.standard_error:.3f}" if score.standard_error else ""
            samples = f" ({score.num_samples:,})" if score.num_samples else ""
            row.append(Cell(text=f"{score.value:.3f}{error}{samples}"))
        rows.append(row)
    caption = "lm-evaluation-harness: value ± standard error (samples)"
    table = Table(caption=caption, header=["task", *(model.label for model in having)], rows=rows)
    return Section(anchor="harness", title="Benchmarks", blocks=[table] if rows else [])
