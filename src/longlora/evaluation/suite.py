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
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from longlora.distributed import Processes, joined
from longlora.errors import ConfigError
from longlora.evaluation.drawing import write_result
from longlora.evaluation.harness import run_harness
from longlora.evaluation.questions import RetrievalTest, TrialId
from longlora.evaluation.results import KeyTokens, SuiteRecord
from longlora.evaluation.retrieval import Sweep, retrieve
from longlora.evaluation.retrieval_tests import association, counting, needle, passkey, recall, topics, tracking
from longlora.evaluation.subject import AS_IT_IS, Loading, base_of, load_subject, named_context
from longlora.evaluation.suite_texts import Amount, TextJob, choose_keys, measure_curves, measure_short
from longlora.evaluation.texts import Texts
from longlora.tiny.stdlib import standard_library_files

logger = logging.getLogger("longlora")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The extent of a suite."""

    parts_of_context: tuple[int, ...]  # the lengths are the longest context divided by each of these
    depths: tuple[float, ...]
    trials: int  # passkey, needle, association: questions per length and depth
    trials_without_depth: int  # the other tests, whose facts open or fill the prompt: questions per length
    text: Amount


SUITES = {
    "smoke": Suite(
        parts_of_context=(4,),
        depths=(0.5,),
        trials=1,
        trials_without_depth=2,
        text=Amount(max_targets=512, max_windows=1, short_targets=512),
    ),
    "quick": Suite(
        parts_of_context=(4, 1),
        depths=(0.0, 0.5, 1.0),
        trials=9,
        trials_without_depth=27,
        text=Amount(max_targets=4096, max_windows=8, short_targets=8192),
    ),
    "full": Suite(
        parts_of_context=(8, 4, 2, 1),
        depths=(0.0, 0.25, 0.5, 0.75, 1.0),
        trials=10,
        trials_without_depth=50,
        text=Amount(max_targets=16384, max_windows=32, short_targets=32768),
    ),
}


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is the same for all models."""

    name: str
    suite: Suite
    texts: Texts
    lengths: list[int]
    seed: int
    beyond: bool
    loading: Loading
    keys: KeyTokens | None = None
    """The tokens that need far context; None if no evaluator is known, or the texts are too short."""


def run_suite(
    models: Sequence[str],
    *,
    suite: str,
    output: str | Path,
    texts: Texts | None = None,
    base: str | None = None,
    evaluator: str | None = None,
    lengths: Sequence[int] | None = None,
    seed: int = 0,
    beyond: bool = False,
    loading: Loading = AS_IT_IS,
) -> list[SuiteRecord]:
    """Measure each model into its own folder in `output`; a repeated call resumes where the last one stopped.

    Lengths are fractions of the longest context of all models, or `lengths`; each model is measured up to its own
    context, or with `beyond` at all of them and at twice the longest context. What cannot be measured (a test does not
    fit into a short prompt, the texts are too short, or the base is unknown) is left out with a warning and recorded.
    Several processes share the retrieval questions; the first does the rest, and only it returns records. The tokens
    that need far context (LongPPL) are chosen by `evaluator`, else by the first known base. `texts` defaults to the
    held-out files of Python's standard library, which every machine has.

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
    with joined() as processes:
        chooser = evaluator or next(filter(None, bases.values()), None)
        if chooser and processes.is_first:
            keys = choose_keys(chooser, texts, plan.lengths, plan.suite.text, Path(output), loading)
            plan = replace(plan, keys=keys)
        # A base among the models is passed as its own base: it has no other base to compare its short context with.
        records = [
            _measure(name, folder, bases[name] or (name if name in bases.values() else None), plan, processes)
            for name, folder in folders.items()
        ]
    return records if processes.is_first else []


def benchmark(
    models: Sequence[str],
    tasks: Sequence[str],
    *,
    output: str | Path,
    task_files: Sequence[str | Path] = (),
    base: str | None = None,
    loading: Loading = AS_IT_IS,
) -> None:
    """Run tasks of the harness on each model and on the models' bases, each into its own folder.

    Raises:
        ConfigError, DataError, CheckpointError: as `run_harness`.
    """
    bases = [base or base_of(name) for name in models]
    for name in dict.fromkeys([*models, *(known for known in bases if known)]):
        folder = Path(output) / folder_name(name) / "harness"
        run_harness(name, tasks, output=folder, task_files=task_files, loading=loading)


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


def folder_name(model: str) -> str:
    """Turn a model's name into a folder name: the last three parts of its path."""
    parts = [part for part in Path(model).parts if part not in ("/", ".", "..")]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts[-3:])) or "model"


def _measure(name: str, folder: Path, base: str | None, plan: _Plan, processes: Processes) -> SuiteRecord:
    subject = load_subject(name, plan.loading, processes)
    context = subject.context
    record = SuiteRecord(
        **subject.about(),
        settings={"suite": plan.name, "seed": plan.seed, "data": plan.texts.description, "beyond": plan.beyond},
        lengths=[length for length in plan.lengths if length <= context or plan.beyond],
        left_out=[],
    )
    if longer := [f"{length:,}" for length in plan.lengths if length not in record.lengths]:
        record.left_out.append(f"{', '.join(longer)} tokens: beyond its {context:,} positions")
    job = TextJob(
        texts=plan.texts,
        lengths=plan.lengths,
        amount=plan.suite.text,
        base=base,
        keys=plan.keys,
        folder=folder,
        record=record,
    )
    losses = None
    if processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("\n%s: %s, %s tokens", name, plan.name, ", ".join(f"{n:,}" for n in record.lengths))
        losses = measure_curves(subject, job)
    processes.wait()
    suite = plan.suite
    for test, depths, num_trials in (
        (passkey(), suite.depths, suite.trials),
        (needle(), suite.depths, suite.trials),
        (topics(), suite.depths, suite.trials_without_depth),
        (recall(), (0.0,), suite.trials_without_depth),
        (association(), suite.depths, suite.trials),
        (tracking(), (0.0,), suite.trials_without_depth),
        (counting(), (0.0,), suite.trials_without_depth),
    ):
        too_short = lengths_without_room(test, subject.tokenizer, record.lengths)
        record.left_out.extend(f"{test.name} at {n:,} tokens, because {reason}" for n, reason in too_short.items())
        if lengths := [length for length in record.lengths if length not in too_short]:
            sweep = Sweep(lengths=lengths, depths=depths, num_trials=num_trials, seed=plan.seed, beyond=plan.beyond)
            result = retrieve(subject, test, sweep, folder / test.name, processes)
            if processes.is_first:
                write_result(result, folder / test.name)
    del subject  # frees its memory for the base
    gc.collect()
    if processes.is_first:
        if losses is not None:
            measure_short(losses, job, plan.loading)
        for note in record.left_out:
            logger.warning("%s: left out: %s", name, note)
        record.write(folder)
    processes.wait()
    return record


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
