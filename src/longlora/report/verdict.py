"""The answer before the evidence: up to where each model reads, what that did to short texts, and what it cost."""

import math

from longlora.evaluation.results import HarnessScore, Retrieval
from longlora.report.blocks import NOT_MEASURED, Cell, Section, Table
from longlora.report.collect import ModelResults, TrainingRun
from longlora.support.wording import short_number

_PREFERRED_METRICS = ("acc_norm", "acc", "exact_match", "score")


def sentence(model: ModelResults) -> str:
    """Say in one sentence up to where a model reads, by the test that it does worst in."""
    if not model.retrieval:
        return f"{model.label}: retrieval was not tested, so nothing is said about how far it reads."
    weakest = _weakest_test(model)
    tests = "its only test" if len(model.retrieval) == 1 else f"the hardest of {len(model.retrieval)} tests"
    if weakest.reached is None:
        shortest = weakest.lengths[0]
        share = shortest.shares["generated"]
        return (
            f"{model.label} reads reliably at no tested length in {tests}, {weakest.title}: at {shortest.length:,}"
            f" tokens, the shortest, {share.share:.0%} right (95 % interval {share.low:.0%} to {share.high:.0%})."
        )
    claim = f" of its {model.context:,}" if model.context else ""
    return (
        f"{model.label} reads to {weakest.reached:,}{claim} tokens at ≥ {weakest.bar:.0%} in {tests}, {weakest.title}."
    )


def _weakest_test(model: ModelResults) -> Retrieval:
    """The test with the shortest effective length; of several, that with the fewest right answers."""

    def ability(test: Retrieval) -> tuple[int, float]:
        return test.reached or 0, sum(row.shares["generated"].share for row in test.lengths) / len(test.lengths)

    return min(model.retrieval.values(), key=ability)


def retrieval_tests(models: list[ModelResults]) -> list[str]:
    """Name the tests that any of the models went through."""
    return list(dict.fromkeys(title for model in models for title in model.retrieval))


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
        both.sort(key=lambda s: (*_PREFERRED_METRICS, s.metric).index(s.metric))
        if both:
            pairs[task] = both[0], of_base[task, both[0].metric]
    return list(pairs.values())


def verdict_section(models: list[ModelResults]) -> Section:
    """Lay the models side by side: one row each."""
    header = ["model", "says it reads", "reads to", "perplexity", "short context", "training"]
    rows = [
        [
            model.label,
            f"{model.context:,} tokens" if model.context else Cell("not known", "quiet"),
            _reads_to(model),
            _perplexity(model),
            _short_context(model, models),
            cost(model.run) if model.run else Cell("no run given", "quiet"),
        ]
        for model in models
    ]
    blocks = [Table("All models", header, rows)]
    if tests := retrieval_tests(models):
        caption = "Effective length by test: the longest tested length with the bar there and at every shorter one"
        rows = [[model.label, *(_effective(model, title) for title in tests)] for model in models]
        blocks.append(Table(caption, ["model", *tests], rows))
    return Section("verdict", "Verdict", blocks, layout="cards")


def cost(run: TrainingRun) -> str:
    """Say how many steps, tokens and hours a run took, and on what."""
    parts = [f"{len(run.steps) and run.steps[-1]:,} steps"]
    if run.num_tokens is not None:
        parts.append(f"{short_number(run.num_tokens)} tokens")
    if run.hours is not None:
        parts.append(f"{run.hours:.1f} h" if run.hours >= 1 else f"{run.hours * 60:.0f} min")
    return ", ".join([*parts, run.device] if run.device else parts)


def _reads_to(model: ModelResults) -> Cell:
    if not model.retrieval:
        return NOT_MEASURED
    weakest = _weakest_test(model)
    if weakest.reached is None:
        return Cell(f"no tested length ({weakest.title})", "bad")
    reads_all = model.context is not None and weakest.reached >= model.context
    return Cell(f"{weakest.reached:,} tokens ({weakest.title})", "good" if reads_all else "")


def _effective(model: ModelResults, title: str) -> Cell:
    test = model.retrieval.get(title)
    if test is None:
        return NOT_MEASURED
    longest = test.lengths[-1].length
    if test.reached is None:
        return Cell(f"none up to {longest:,}", heat=0.0)
    heat = min(1.0, test.reached / model.context) if model.context else None
    return Cell(f"{test.reached:,}{' (longest tested)' if test.reached == longest else ''}", heat=heat)


def _perplexity(model: ModelResults) -> Cell:
    values = model.perplexity.perplexity if model.perplexity else {}
    measured = [(value.perplexity, length) for length, value in values.items() if math.isfinite(value.perplexity)]
    if not measured:
        return NOT_MEASURED
    texts = [f"{perplexity:.2f} at {length:,}" for perplexity, length in measured]
    if len(texts) == 1:
        return Cell(texts[0])
    return Cell(f"{texts[0]} → {texts[-1]}", "good" if measured[-1][0] < measured[0][0] else "bad")


def _short_context(model: ModelResults, models: list[ModelResults]) -> Cell:
    result = model.short_context
    if result is None:
        return NOT_MEASURED
    change, benchmarks = f"{100 * (result.ratio - 1):+.1f} %", ""
    if compared := compared_benchmarks(model, models):
        mean = sum(own.value - base.value for own, base in compared) / len(compared)
        benchmarks = f"; {100 * mean:+.1f} points in {len(compared)} benchmark{'s' * (len(compared) > 1)}"
    if result.low is None or result.high is None:
        return Cell(f"{change} (one window, no interval){benchmarks}")
    interval = f"{100 * (result.low - 1):+.1f} to {100 * (result.high - 1):+.1f} %"
    text = f"{change} perplexity at {result.length:,} tokens ({interval}){benchmarks}"
    return Cell(text, "bad" if result.low > 1 else "good")
