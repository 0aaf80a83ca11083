"""The answer before the evidence: up to where each model reads, what that did to short texts, and what it cost."""

from longlora.evaluation.results import Retrieval
from longlora.report.benchmarks import compared_benchmarks
from longlora.report.blocks import NOT_MEASURED, Cell, Section, Table, Tone
from longlora.report.collect import ModelResults
from longlora.report.runs import TrainingRun


def sentence(model: ModelResults) -> str:
    """Say in one sentence up to where a model reads, by the test that it does worst in."""
    claim = f" of its {model.context:,}" if model.context else ""
    if not model.retrieval:
        return f"{model.label}: retrieval was not tested, so nothing is said about how far it reads."
    weakest = weakest_test(model)
    reached = weakest.reached
    tests = "its only test" if len(model.retrieval) == 1 else f"the hardest of {len(model.retrieval)} tests"
    if reached is None:
        shortest = weakest.rows[0]
        share = shortest.shares["generated"]
        return (
            f"{model.label} reads reliably at no tested length in {tests}, {weakest.title}: at {shortest.length:,}"
            f" tokens, the shortest, {share.share:.0%} right (95 % interval {share.low:.0%} to {share.high:.0%})."
        )
    return f"{model.label} reads to {reached:,}{claim} tokens at ≥ {weakest.bar:.0%} in {tests}, {weakest.title}."


def weakest_test(model: ModelResults) -> Retrieval:
    """Return the test with the shortest effective length; of several, that with the fewest right answers."""

    def ability(test: Retrieval) -> tuple[int, float]:
        return test.reached or 0, sum(row.shares["generated"].share for row in test.rows) / len(test.rows)

    return min(model.retrieval.values(), key=ability)


def verdict_section(models: list[ModelResults]) -> Section:
    """Lay the models side by side: one row each."""
    header = ["model", "says it reads", "reads to", "perplexity", "short context", "training"]
    rows = [
        [
            Cell(text=model.label),
            Cell(text=f"{model.context:,} tokens") if model.context else Cell(text="not known", tone="quiet"),
            _reads_to(model),
            _perplexity(model),
            _short_context(model, models),
            cost(model.run),
        ]
        for model in models
    ]
    blocks = [Table(caption="All models", header=header, rows=rows)]
    tests = list(dict.fromkeys(title for model in models for title in model.retrieval))
    if tests:
        caption = "Effective length by test: the longest tested length with the bar there and at every shorter one"
        blocks.append(
            Table(
                caption=caption,
                header=["model", *tests],
                rows=[[Cell(text=model.label), *(_effective(model, title) for title in tests)] for model in models],
            )
        )
    return Section(anchor="verdict", title="Verdict", blocks=list(blocks))


def cost(run: TrainingRun | None) -> Cell:
    """Tokens and hours of a run."""
    if run is None:
        return Cell(text="no run given", tone="quiet")
    parts = [f"{len(run.steps) and run.steps[-1]:,} steps"]
    if run.num_tokens is not None:
        parts.append(f"{short_number(run.num_tokens)} tokens")
    if run.hours is not None:
        parts.append(f"{run.hours:.1f} h" if run.hours >= 1 else f"{run.hours * 60:.0f} min")
    if run.device:
        parts.append(run.device)
    return Cell(text=", ".join(parts))


def short_number(value: float) -> str:
    """Write a large number with three digits, as in 1.23 M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:g}"


def _reads_to(model: ModelResults) -> Cell:
    if not model.retrieval:
        return NOT_MEASURED
    weakest = weakest_test(model)
    if weakest.reached is None:
        return Cell(text=f"no tested length ({weakest.title})", tone="bad")
    tone: Tone = "good" if model.context and weakest.reached >= model.context else ""
    return Cell(text=f"{weakest.reached:,} tokens ({weakest.title})", tone=tone)


def _effective(model: ModelResults, title: str) -> Cell:
    test = model.retrieval.get(title)
    if test is None:
        return NOT_MEASURED
    if test.reached is None:
        return Cell(text=f"none up to {test.rows[-1].length:,}", heat=0.0)
    limit = " (longest tested)" if test.reached == test.rows[-1].length else ""
    heat = min(1.0, test.reached / model.context) if model.context else None
    return Cell(text=f"{test.reached:,}{limit}", heat=heat)


def _perplexity(model: ModelResults) -> Cell:
    rows = model.perplexity.rows if model.perplexity else []
    measured = [row for row in rows if row.perplexity is not None]
    if not measured:
        return NOT_MEASURED
    first, last = measured[0], measured[-1]
    text = f"{last.perplexity:.2f} at {last.length:,}"
    if first is last:
        return Cell(text=text)
    assert first.perplexity is not None and last.perplexity is not None
    tone: Tone = "good" if last.perplexity < first.perplexity else "bad"
    return Cell(text=f"{first.perplexity:.2f} at {first.length:,} → {text}", tone=tone)


def _short_context(model: ModelResults, models: list[ModelResults]) -> Cell:
    result = model.short_context
    if result is None:
        return NOT_MEASURED
    benchmarks = _benchmarks(model, models)
    change = f"{100 * (result.ratio - 1):+.1f} %"
    if result.low is None or result.high is None:
        return Cell(text=f"{change} (one window, no interval){benchmarks}")
    interval = f"{100 * (result.low - 1):+.1f} to {100 * (result.high - 1):+.1f} %"
    tone: Tone = "bad" if result.low > 1 else "good"
    return Cell(text=f"{change} perplexity at {result.length:,} tokens ({interval}){benchmarks}", tone=tone)


def _benchmarks(model: ModelResults, models: list[ModelResults]) -> str:
    compared = compared_benchmarks(model, models)
    if not compared:
        return ""
    mean = sum(own.value - base.value for own, base in compared) / len(compared)
    count = "1 benchmark" if len(compared) == 1 else f"{len(compared)} benchmarks"
    return f"; {100 * mean:+.1f} points in {count}"
