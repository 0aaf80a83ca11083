"""The report's verdict: how far each model reads, the effect on short texts, and the cost of training.

Two kinds of failure are distinguished. A test failed at its shortest length needs an ability that the model lacks, and
says nothing about how far it reads; a test passed there and failed at a longer length does. A collapse in perplexity
takes precedence over both.
"""

import math
from typing import get_args

from longlora.evaluation.results import HarnessScore, Retrieval
from longlora.evaluation.shares import Definition, questions_needed
from longlora.evaluation.text_results import COLLAPSE
from longlora.report.blocks import NOT_MEASURED, Cell, ReportSection, Table
from longlora.report.collect import ModelResults, TrainingRun
from longlora.support.wording import short_number

_PREFERRED_METRICS = ("acc_norm", "acc", "exact_match", "score")
_DEFINITIONS: dict[Definition, str] = {"bar": "by the bar", "nolima": "by NoLiMa's", "ruler": "by RULER's"}


def lead(model: ModelResults) -> str:
    """Describe in a few sentences how far a model reads, the most important one first."""
    first, *further = filter(None, [_collapse(model), *_retrieval(model)])
    return " ".join([f"{model.label} {first}", *(f"It {said}" for said in further)])


def _collapse(model: ModelResults) -> str:
    short, by_length = model.short_context, model.perplexity
    if short is not None and (short.ratio if short.low is None else short.low) > COLLAPSE:
        return (
            f"has lost its language: perplexity {short.perplexity:.1f} at {short.length:,} tokens, where its base has "
            f"{short.base_perplexity:.1f}."
        )
    if by_length is not None and (length := by_length.collapses_at):
        best = min((n for n in by_length.perplexity if n < length), key=lambda n: by_length.perplexity[n].perplexity)
        values = (f"{by_length.perplexity[n].perplexity:.1f} at {n:,} tokens" for n in (best, length))
        return f"breaks down at {length:,} tokens: perplexity {' and '.join(values)}, on the same targets."
    return ""


def _retrieval(model: ModelResults) -> list[str]:
    """Describe the tests that the model can do, those that it cannot, and those with too few questions."""
    tests = model.retrieval
    if not tests:
        return [_by_perplexity(model, "was not tested for retrieval")]
    able, unable, unsure = (_tests_of(model, kind) for kind in ("reads", "cannot", "too few"))
    sentences = []
    if able:
        sentences.append(_reads(model, able))
    if unable:
        shortest = max(test.lengths[0].length for test in unable.values())
        which = f"any of the {len(tests)} tests" if len(unable) == len(tests) > 1 else _listed(list(unable))
        failed = f"cannot do {which} reliably even at {shortest:,} tokens, the shortest tested"
        says_nothing = f"{failed}, which does not say how far it reads"
        sentences.append(f"{failed}." if able else _by_perplexity(model, says_nothing))
    if unsure:
        shares = _listed([f"{title} ({test.at_shortest})" for title, test in unsure.items()])
        bar = max(test.bar for test in unsure.values())
        enough = questions_needed(bar)
        sentences.append(
            f"was asked too few questions to say how far it reads by {shares}: certifying {bar:.0%} takes {enough} "
            f"correct answers of {enough}, or more questions."
        )
    return sentences


def _tests_of(model: ModelResults, kind: str) -> dict[str, Retrieval]:
    return {title: test for title, test in model.retrieval.items() if test.reading.kind == kind}


def _reads(model: ModelResults, able: dict[str, Retrieval]) -> str:
    title, weakest = _weakest_of(able)
    reached, failed = weakest.reading.reached, weakest.reading.failed
    longest = max(row.length for test in able.values() for row in test.lengths)
    of = f" of its {model.context:,}" if model.context else ""
    kinds = f"{len(able)} tests" + (" that it can do" if len(able) < len(model.retrieval) else "")
    sure = f"reliably at least {weakest.bar:.0%} right"
    if failed is None:
        among = f"all {kinds}" if len(able) > 1 else title
        return f"reads to {reached:,}{of} tokens, the longest tested, in {among}: {sure}."
    among = f"the hardest of {kinds}, {title}" if len(able) > 1 else title
    beyond = "" if weakest.reading.is_sure else ", too few questions to say more"
    return (
        f"reads to {reached:,}{of} tokens in {among}: {sure}. The longest tested is {longest:,}; at {failed:,}, "
        f"{weakest.shares()[failed]} were right{beyond}."
    )


def _by_perplexity(model: ModelResults, otherwise: str) -> str:
    """Complete a sentence about missing retrieval evidence with the evidence from perplexity."""
    result = model.perplexity
    if result is None or (reached := result.falls_to) is None or _collapse(model):
        return f"{otherwise}."
    shortest, longest = min(result.perplexity), max(result.perplexity)
    first, last = (f"{result.perplexity[length].perplexity:.1f}" for length in (shortest, reached))
    if reached == shortest:
        return f"{otherwise}; its perplexity ({first}) is no lower with more context than {shortest:,} tokens."
    tested = "the longest tested" if reached == longest else f"of {longest:,} tested"
    return (
        f"{otherwise}; its perplexity falls with longer context up to {reached:,} tokens, {tested} ({first} at "
        f"{shortest:,}, {last} there)."
    )


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _weakest_of(tests: dict[str, Retrieval]) -> tuple[str, Retrieval]:
    """Return the test with the shortest effective length; on a tie, the one with the fewest right answers."""

    def ability(named: tuple[str, Retrieval]) -> tuple[int, float]:
        shares = named[1].shares().values()
        return named[1].reading.reached or 0, sum(share.share for share in shares) / len(shares)

    return min(tests.items(), key=ability)


def retrieval_tests(models: list[ModelResults]) -> list[str]:
    """Return the titles of all tests run on any of the models."""
    return list(dict.fromkeys(title for model in models for title in model.retrieval))


def compared_benchmarks(model: ModelResults, models: list[ModelResults]) -> list[tuple[HarnessScore, HarnessScore]]:
    """Pair a model's scores with its base's, with one metric per common task."""
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


def verdict_section(models: list[ModelResults]) -> ReportSection:
    """Compare the models: a table with one row each, and one of effective lengths with a row per model and test."""
    header = ["model", "context", "reads to", "perplexity", "LongPPL", "short context", "training"]
    rows = [
        [
            model.label,
            f"{model.context:,} tokens" if model.context else Cell("unknown", "quiet"),
            _reads_to(model),
            _perplexity(model),
            _longppl(model),
            _short_context(model, models),
            cost(model.run) if model.run else Cell("no run found", "quiet"),
        ]
        for model in models
    ]
    used = [index for index in range(len(header)) if any(row[index] != NOT_MEASURED for row in rows)]
    blocks = [Table("All models", [header[i] for i in used], [[row[i] for i in used] for row in rows])]
    if lengths := [row for model in models for row in _effective_lengths(model)]:
        caption = "Effective length in tokens by three definitions; each rests on the lower end of a 95 % interval"
        header = ["test", "model", "right at the shortest length", *_DEFINITIONS.values(), "longest tested"]
        order = {title: place for place, title in enumerate(retrieval_tests(models))}
        blocks.append(Table(caption, header, sorted(lengths, key=lambda row: order.get(str(row[0]), len(order)))))
    return ReportSection("verdict", "Verdict", blocks, layout="cards")


def _effective_lengths(model: ModelResults) -> list[list[Cell | str]]:
    def cell(test: Retrieval, definition: Definition) -> Cell:
        reached, longest = test.effective_length["generated"][definition], test.lengths[-1].length
        if reached is None:
            kinds = {"cannot": "cannot do it", "too few": "too few questions", "reads": "none"}
            return Cell(kinds[test.reading.kind], "quiet")
        return Cell(f"{reached:,}", heat=min(1.0, reached / (model.context or longest)))

    return [
        [title, model.label, f"{test.at_shortest} at {test.lengths[0].length:,}"]
        + [cell(test, definition) for definition in get_args(Definition)]
        + [f"{test.lengths[-1].length:,}"]
        for title, test in model.retrieval.items()
        if not test.is_zero
    ] + _all_wrong(model)


def _all_wrong(model: ModelResults) -> list[list[Cell | str]]:
    """Combine the tests without a single right answer in one row."""
    zero = {title: test for title, test in model.retrieval.items() if test.is_zero}
    if not zero:
        return []
    asked = sum(share.num_trials for test in zero.values() for share in test.shares().values())
    longest = max(row.length for test in zero.values() for row in test.lengths)
    none = Cell("none", "quiet")
    return [[_listed(list(zero)), model.label, f"none of {asked:,} at any length", none, none, none, f"{longest:,}"]]


def cost(run: TrainingRun) -> str:
    """Describe a run's cost: steps, tokens, time and device."""
    parts = [f"{len(run.steps) and run.steps[-1]:,} steps"]
    if run.num_tokens is not None:
        parts.append(f"{short_number(run.num_tokens)} tokens")
    if run.hours is not None:
        parts.append(f"{run.hours:.1f} h" if run.hours >= 1 else f"{run.hours * 60:.0f} min")
    return ", ".join([*parts, run.device] if run.device else parts)


def _reads_to(model: ModelResults) -> Cell:
    if not model.retrieval:
        return NOT_MEASURED
    able = _tests_of(model, "reads")
    if not able:
        unsure = _tests_of(model, "too few")
        return Cell("too few questions", "quiet") if unsure else Cell("cannot do the tests", "bad")
    title, weakest = _weakest_of(able)
    reached, longest = weakest.reading.reached, weakest.reading.failed is None
    reads_all = model.context is not None and (reached or 0) >= model.context
    return Cell(f"{reached:,} tokens{', the longest tested' * longest} ({title})", "good" if reads_all else "")


def _perplexity(model: ModelResults) -> Cell:
    values = model.perplexity.perplexity if model.perplexity else {}
    measured = [(value.perplexity, length) for length, value in values.items() if math.isfinite(value.perplexity)]
    if not measured:
        return NOT_MEASURED
    texts = [f"{perplexity:.2f} at {length:,}" for perplexity, length in measured]
    if len(texts) == 1:
        return Cell(texts[0])
    return Cell(f"{texts[0]} → {texts[-1]}", "good" if measured[-1][0] < measured[0][0] else "bad")


def _longppl(model: ModelResults) -> Cell:
    result = model.longppl
    if result is None or result.key_tokens is None:
        return NOT_MEASURED
    return Cell(f"{result.key_tokens.perplexity:.2f} on {result.key_tokens.num_tokens:,} key tokens")


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
