"""The evaluation suite: all measurements at lengths up to a model's context, in one folder from which it resumes.

DIR/MODEL/suite.json          what was measured, and what was left out with the reason
DIR/MODEL/perplexity/         perplexity by length, on the same targets
DIR/MODEL/positions/          loss by position in a window of the whole context
DIR/MODEL/longppl/            perplexity on the tokens that need far context, chosen in DIR/key_tokens.json
DIR/MODEL/passkey/, needle/, topics/, recall/, association/, tracking/, counting/
DIR/MODEL/short/              the model compared with its base, at the base context
"""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from longlora.distributed import Processes, joined_processes
from longlora.errors import ConfigError
from longlora.evaluation import results
from longlora.evaluation.drawing import write_result
from longlora.evaluation.key_tokens import find_key_tokens, ladder, long_perplexity
from longlora.evaluation.perplexity import measure_positions, perplexity_by_length
from longlora.evaluation.questions import RetrievalTest, TrialId
from longlora.evaluation.retrieval import Sweep, retrieve
from longlora.evaluation.retrieval_tests import association, counting, needle, passkey, recall, topics, tracking
from longlora.evaluation.scoring import usual_stride
from longlora.evaluation.short_context import Losses, compare_losses, window_losses
from longlora.evaluation.subject import AS_IT_IS, Loading, Subject, base_of, folder_name, load_subject, named_context
from longlora.evaluation.texts import ModelAndTexts, Texts
from longlora.models.load import model_source
from longlora.support.choices import SuiteName
from longlora.tiny.stdlib import standard_library_files

logger = logging.getLogger("longlora")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The extent of a suite."""

    parts_of_context: tuple[int, ...]  # the lengths are the longest context divided by each of these
    depths: tuple[float, ...]
    trials: int  # passkey, needle, association: questions per length and depth
    trials_without_depth: int  # the other tests, whose facts open or fill the prompt: questions per length
    max_targets: int  # tokens scored per length, for the perplexity and LongPPL
    max_windows: int  # of the whole context, for the loss by position
    short_targets: int  # tokens scored at the base context, for the comparison with the base


SUITES: dict[SuiteName, Suite] = {
    "smoke": Suite(
        parts_of_context=(4,), depths=(0.5,), trials=1, trials_without_depth=2,
        max_targets=512, max_windows=1, short_targets=512,
    ),
    "quick": Suite(
        parts_of_context=(4, 1), depths=(0.0, 0.5, 1.0), trials=9, trials_without_depth=27,
        max_targets=4096, max_windows=8, short_targets=8192,
    ),
    "full": Suite(
        parts_of_context=(8, 4, 2, 1), depths=(0.0, 0.25, 0.5, 0.75, 1.0), trials=10, trials_without_depth=50,
        max_targets=16384, max_windows=32, short_targets=32768,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is the same for all models."""

    name: str
    suite: Suite
    texts: Texts
    lengths: list[int]  # they determine the perplexity's targets, which must be the same for each model
    seed: int
    beyond: bool
    loading: Loading
    keys: results.KeyTokens | None = None
    """The tokens that need far context; None if no evaluator is known, or the texts are too short."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The measurements of one model."""

    plan: _Plan
    base: str | None
    folder: Path
    record: results.SuiteRecord


def run_suite(
    models: Sequence[str],
    *,
    suite: SuiteName,
    output: str | Path,
    texts: Texts | None = None,
    base: str | None = None,
    evaluator: str | None = None,
    lengths: Sequence[int] | None = None,
    seed: int = 0,
    beyond: bool = False,
    loading: Loading = AS_IT_IS,
) -> list[results.SuiteRecord]:
    """Measure each model into its own folder in `output`; a repeated call resumes where the last one stopped.

    Lengths are fractions of the longest context of all models, or `lengths`; each model is measured up to its own
    context, or with `beyond` at all of them and at twice the longest context. What cannot be measured (a test does not
    fit into a short prompt, the texts are too short, or the base is unknown) is left out with a warning and recorded.
    Several processes share the retrieval questions; the main process does the rest, and only it returns records. The
    tokens that need far context (LongPPL) are chosen by `evaluator`, else by the first known base. `texts` defaults to
    the held-out files of Python's standard library, which every machine has.

    Raises:
        ConfigError: the suite is unknown, two models would share a folder, a folder holds other results, or a length
            exceeds the model's positions.
        CheckpointError: a model cannot be loaded, or produces NaN.
        DataError: the texts cannot be read, or a tokenizer does not preserve digits.
    """
    if suite not in SUITES:
        raise ConfigError(f"--suite must be one of {', '.join(SUITES)}, not {suite}")
    folders = {name: Path(output) / folder_name(name) for name in models}
    if len(set(folders.values())) < len(models):
        raise ConfigError(f"each model needs its own folder, but some of {', '.join(models)} have the same name")
    bases = {name: base or base_of(name) for name in models}
    if texts is None:
        files = [str(path) for path in standard_library_files("validation")]
        texts = Texts(files, name="held-out files of Python's standard library")
    plan = _Plan(
        name=suite,
        suite=SUITES[suite],
        texts=texts,
        lengths=shared_lengths([named_context(name) for name in models], SUITES[suite], lengths, beyond=beyond),
        seed=seed,
        beyond=beyond,
        loading=loading,
    )
    with joined_processes() as processes:
        chooser = evaluator or next(filter(None, bases.values()), None)
        if chooser and processes.is_main_process:
            plan = replace(plan, keys=_choose_keys(chooser, plan, Path(output)))
        # A base among the models is passed as its own base: it has no other base to compare its short context with.
        records = [
            _measure(name, folder, bases[name] or (name if name in bases.values() else None), plan, processes)
            for name, folder in folders.items()
        ]
    return records if processes.is_main_process else []


def shared_lengths(contexts: Sequence[int], suite: Suite, lengths: Sequence[int] | None, *, beyond: bool) -> list[int]:
    """Return the lengths for all models, so that they are comparable: `lengths`, or fractions of the longest context.

    Raises:
        ConfigError: a length exceeds every model's context, without `beyond`.
    """
    longest = max(contexts)
    chosen = sorted(set(lengths or [longest // part for part in suite.parts_of_context]))
    if beyond:
        return sorted({*chosen, 2 * longest})
    if chosen[-1] > longest or chosen[0] < 1:
        raise ConfigError(
            f"lengths must be 1 to {longest:,} tokens, the longest context of these models, not {chosen[-1]:,}: choose "
            "others, or measure beyond it with --beyond"
        )
    return chosen


def _choose_keys(evaluator: str, plan: _Plan, folder: Path) -> results.KeyTokens | None:
    """Let an evaluator choose the tokens that need far context, or read its choice; None if the texts are too short."""
    contexts = ladder(min(named_context(evaluator), max(plan.lengths)))
    material = plan.texts.read_by(load_subject(evaluator, plan.loading), least=max(plan.lengths))
    if len(contexts) < 2 or material.longest < contexts[-1]:
        return None
    return find_key_tokens(
        material,
        contexts=contexts,
        longest=min(max(plan.lengths), material.longest),
        max_targets=max(usual_stride(contexts[0]), plan.suite.max_targets),
        folder=folder,
    )


def _measure(name: str, folder: Path, base: str | None, plan: _Plan, processes: Processes) -> results.SuiteRecord:
    subject = load_subject(name, plan.loading, processes)
    context = subject.context
    record = results.SuiteRecord(
        **subject.about(),
        settings={"suite": plan.name, "seed": plan.seed, "data": plan.texts.description, "beyond": plan.beyond},
        lengths=[length for length in plan.lengths if length <= context or plan.beyond],
        left_out=[],
    )
    if longer := [f"{length:,}" for length in plan.lengths if length not in record.lengths]:
        record.left_out.append(f"{', '.join(longer)} tokens: beyond its {context:,} positions")
    job = _Job(plan=plan, base=base, folder=folder, record=record)
    losses = None
    if processes.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("\n%s: %s, %s tokens", name, plan.name, ", ".join(f"{n:,}" for n in record.lengths))
        losses = measure_curves(subject, job)
    processes.wait()
    _ask_questions(subject, job, processes)
    del subject  # frees its memory for the base
    gc.collect()
    if processes.is_main_process:
        if losses is not None:
            _compare_with_base(losses, job)
            gc.collect()
        for note in record.left_out:
            logger.warning("%s: left out: %s", name, note)
        record.write(folder)
    processes.wait()
    return record


def measure_curves(subject: Subject, job: _Job) -> Losses | None:
    """Measure perplexity by length, loss by position and LongPPL; return the losses to compare with a known base's."""
    plan, record = job.plan, job.record
    material = plan.texts.read_by(subject, least=max(plan.lengths))
    lengths = [length for length in record.lengths if length <= material.longest]
    if lengths != record.lengths:
        record.left_out.append(
            f"perplexity and loss by position beyond {material.longest:,} tokens, which is all the text there is: give "
            "more"
        )
    if lengths:
        longest = max(length for length in plan.lengths if length <= material.longest)
        targets = {"longest": longest, "stride": usual_stride(min(plan.lengths))}
        _perplexity(material, job, targets, lengths)
        _positions(material, job, targets, max(lengths))
        _long_perplexity(material, job, max(lengths))
    return _own_losses(subject, job)


def _perplexity(material: ModelAndTexts, job: _Job, targets: dict[str, int], lengths: list[int]) -> None:
    subject, plan, folder = material.subject, job.plan, job.folder / "perplexity"
    settings = material.about | {"targets": targets, "max_targets": plan.suite.max_targets}
    before = results.finished(results.PerplexityByLength, folder, settings, subject.weights)
    measured = dict(before.perplexity) if before else {}
    for length in lengths:
        if length in measured:
            continue
        measured |= perplexity_by_length(
            subject.model,
            material.documents,
            lengths=[length],
            longest=targets["longest"],
            stride=targets["stride"],
            max_targets=max(targets["stride"], plan.suite.max_targets),
            description="perplexity",
        )
        results.PerplexityByLength(  # written after each length, so that an interruption costs at most one
            **subject.about(),
            protocol="same-targets",
            data=plan.texts.description,
            perplexity=dict(sorted(measured.items())),
            settings=settings,
        ).write(folder)


def _positions(material: ModelAndTexts, job: _Job, targets: dict[str, int], length: int) -> None:
    most, folder = job.plan.suite.max_windows, job.folder / "positions"
    settings = material.about | {"targets": targets, "length": length, "max_windows": most}
    if not results.finished(results.LossByPosition, folder, settings, material.subject.weights):
        result = measure_positions(
            material,
            length=length,
            num_buckets=min(32, length - 1),
            max_windows=most,
            beyond=job.plan.beyond,
            settings=settings,
        )
        write_result(result, folder)


def _long_perplexity(material: ModelAndTexts, job: _Job, length: int) -> None:
    keys, left_out, folder = job.plan.keys, job.record.left_out, job.folder / "longppl"
    if keys is None:
        left_out.append("LongPPL: no model is known to choose the tokens; name one with --evaluator")
        return
    if keys.settings["tokens"] != material.about["tokens"]:
        left_out.append(f"LongPPL: {keys.model}, which chose the tokens, tokenizes these texts differently")
        return
    settings = keys.settings | {"length": length, "evaluator": keys.weights}
    if not results.finished(results.LongPerplexity, folder, settings, material.subject.weights):
        long_perplexity(material, keys, length=length, settings=settings).write(folder)


def _own_losses(subject: Subject, job: _Job) -> Losses | None:
    """Return the losses to compare with the base's; None if there is no base, or an earlier run compared them."""
    if job.base is None:
        job.record.left_out.append("short context: the model's base is unknown; name it with --base")
        return None
    if model_source(job.base) == model_source(subject.name):
        return None  # the base itself
    length = named_context(job.base)
    material = job.plan.texts.read_by(subject, least=length)
    if material.longest < length:
        note = f"short context: the text is shorter than the base's context, {length:,} tokens"
        job.record.left_out.append(note)
        return None
    windows = _short_windows(job, length)
    if results.finished(
        results.ShortContext, job.folder / "short", material.about | {"base": job.base} | windows, subject.weights
    ):
        return None
    return window_losses(material, **windows)


def _compare_with_base(own: Losses, job: _Job) -> None:
    """Score the base on the same windows, and write the comparison."""
    assert job.base is not None
    length = named_context(job.base)
    material = job.plan.texts.read_by(load_subject(job.base, job.plan.loading), least=length)
    if material.about["tokens"] != own.tokens:
        note = f"short context: {job.base} tokenizes the same texts differently and cannot be compared"
        job.record.left_out.append(note)
        return
    windows = _short_windows(job, length)
    base, settings = window_losses(material, **windows), material.about | {"base": job.base} | windows
    compare_losses(base, own, length=length, stride=windows["stride"], settings=settings).write(job.folder / "short")


def _short_windows(job: _Job, length: int) -> dict[str, int]:
    return {"length": length, "stride": usual_stride(length), "max_targets": job.plan.suite.short_targets}


def _ask_questions(subject: Subject, job: _Job, processes: Processes) -> None:
    """Run all retrieval tests, each at the lengths that have room for its questions."""
    plan, record, suite = job.plan, job.record, job.plan.suite
    by_depth, at_start = (suite.depths, suite.trials), ((0.0,), suite.trials_without_depth)
    for test, (depths, num_trials) in (
        (passkey(), by_depth),
        (needle(), by_depth),
        (topics(), at_start),
        (recall(), at_start),
        (association(), by_depth),
        (tracking(), at_start),
        (counting(), at_start),
    ):
        too_short = lengths_without_room(test, subject.tokenizer, record.lengths)
        record.left_out.extend(f"{test.name} at {n:,} tokens, because {reason}" for n, reason in too_short.items())
        if lengths := [length for length in record.lengths if length not in too_short]:
            sweep = Sweep(lengths=lengths, depths=depths, num_trials=num_trials, seed=plan.seed, beyond=plan.beyond)
            result = retrieve(subject, test, sweep, job.folder / test.name, processes)
            if processes.is_main_process:
                write_result(result, job.folder / test.name)


def lengths_without_room(
    test: RetrievalTest, tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int]
) -> dict[int, str]:
    """Return the lengths at which a question does not fit even without filler, each with the reason.

    Several questions are tried, because their size varies by a few tokens with the topics or names drawn.
    """
    too_short: dict[int, str] = {}
    for length in sorted(lengths):
        try:
            for number in range(8):
                depth = 0.0 if test.has_depths else None
                test.ask(tokenizer, TrialId(test.name, length, depth, number, number))
        except ConfigError as error:
            too_short[length] = str(error)
        else:
            break
    return too_short
