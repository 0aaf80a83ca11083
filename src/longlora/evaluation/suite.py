"""The whole verdict on a model: every measurement at lengths up to its context, in one folder that can be gone on with.

DIR/MODEL/suite.json          what was measured, and what was left out and why
DIR/MODEL/perplexity/         perplexity by length, on the same targets
DIR/MODEL/positions/          loss by position in a window of the whole context
DIR/MODEL/passkey/, needle/, topics/, recall/
DIR/MODEL/short/              the model against its base, at the base's own context
"""

import gc
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError
from longlora.evaluation.against_base import base_of, named_context
from longlora.evaluation.logits import Model, context_of
from longlora.evaluation.measure import load_shared
from longlora.evaluation.needle import needle
from longlora.evaluation.passkey import passkey
from longlora.evaluation.processes import Processes, joined
from longlora.evaluation.recall import recall
from longlora.evaluation.retrieval import run_retrieval
from longlora.evaluation.retrieval_report import write_result
from longlora.evaluation.shares import DEFAULT_BAR
from longlora.evaluation.subject import model_identity, provenance
from longlora.evaluation.suite_texts import Curves, SuiteTexts, measure_curves, measure_short
from longlora.evaluation.texts import Texts
from longlora.evaluation.topics import topics
from longlora.evaluation.trials import RetrievalTest, TrialId
from longlora.models.load import DtypeName
from longlora.support.files import write_atomically
from longlora.tiny.stdlib import standard_library_files

logger = logging.getLogger("longlora")

SUITE_FILE = "suite.json"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """How much of everything is asked."""

    parts_of_context: tuple[int, ...]
    """The lengths: the model's context divided by each of these."""

    depths: tuple[float, ...]
    trials: int
    """Questions at each length and depth, of passkey and needle."""

    trials_without_depth: int
    """Questions at each length of topics, and of recall, whose fact opens the prompt."""

    curves: Curves


SUITES = {
    "smoke": Suite(
        parts_of_context=(4,),
        depths=(0.5,),
        trials=1,
        trials_without_depth=2,
        curves=Curves(max_targets=512, max_windows=1, short_targets=512),
    ),
    "quick": Suite(
        parts_of_context=(4, 1),
        depths=(0.0, 0.5, 1.0),
        trials=4,
        trials_without_depth=12,
        curves=Curves(max_targets=4096, max_windows=8, short_targets=8192),
    ),
    "full": Suite(
        parts_of_context=(8, 4, 2, 1),
        depths=(0.0, 0.25, 0.5, 0.75, 1.0),
        trials=10,
        trials_without_depth=50,
        curves=Curves(max_targets=16384, max_windows=32, short_targets=32768),
    ),
}


@dataclass(kw_only=True)
class SuiteRecord:
    """What a suite did with one model; `suite.json` is this."""

    model: str
    weights: str
    context: int
    """Tokens that the model says it reads."""

    settings: dict[str, Any]
    lengths: list[int]
    left_out: list[str] = field(default_factory=list)
    """What was not measured, each with its reason."""

    provenance: dict[str, Any] = field(default_factory=dict)


def standard_texts() -> Texts:
    """Return the texts that every machine has: the held-out files of Python's standard library."""
    files = [str(path) for path in standard_library_files("validation")]
    return Texts(files, name="held-out files of Python's standard library")


def run_suite(
    models: Sequence[str],
    *,
    suite: str,
    output: str | Path,
    texts: Texts | None = None,
    base: str | None = None,
    lengths: Sequence[int] | None = None,
    seed: int = 0,
    beyond: bool = False,
    device_map: str | None = None,
    dtype: DtypeName = "auto",
) -> list[SuiteRecord]:
    """Measure each model into a folder of its own in `output`; started again, go on where it stopped.

    Lengths are parts of the longest context of all models, or `lengths`, each model up to its own context; with
    `beyond` all of them and twice the longest context too. What cannot be measured, because a test has no room in a
    short prompt, the texts are too short, or the base is not known, is left out with a warning and noted. Several
    processes share the questions of retrieval; the first does the rest, and has the records.

    Raises:
        ConfigError: a suite is not known, two models would share a folder, a folder holds other results, or a length is
            beyond the model's positions.
        CheckpointError: a model cannot be loaded, or produces NaN.
        DataError: the texts cannot be read, or a tokenizer loses digits.
    """
    if suite not in SUITES:
        raise ConfigError(f"--suite must be one of {', '.join(SUITES)}, not {suite}")
    folders = {name: Path(output) / folder_name(name) for name in models}
    if len(set(folders.values())) < len(models):
        raise ConfigError(f"each model needs a folder of its own, and of {', '.join(models)} some have the same name")
    bases = {name: base or base_of(name) for name in models}
    shared = shared_lengths([named_context(name) for name in models], SUITES[suite], lengths, beyond=beyond)
    records = []
    with joined() as processes:
        for name, folder in folders.items():
            run = _Run(name, folder, SUITES[suite], processes, seed=seed, device_map=device_map, dtype=dtype)
            # Of a model that others were made of nobody asks whether it kept its own short context.
            its_base = bases[name] or (name if name in bases.values() else None)
            records.append(run.measure(suite, texts or standard_texts(), its_base, shared, beyond=beyond))
    return records if processes.is_first else []


def benchmark(
    models: Sequence[str],
    tasks: Sequence[str],
    *,
    output: str | Path,
    task_files: Sequence[str | Path] = (),
    base: str | None = None,
    device_map: str | None = None,
    dtype: DtypeName = "auto",
) -> None:
    """Run tasks of the harness on each model and on the bases they were made of, each into its own folder.

    Raises:
        ConfigError, DataError, CheckpointError: as `run_harness`.
    """
    from longlora.evaluation.harness import run_harness

    bases = [base or base_of(name) for name in models]
    for name in dict.fromkeys([*models, *(known for known in bases if known)]):
        folder = Path(output) / folder_name(name) / "harness"
        run_harness(name, tasks, output=folder, task_files=task_files, device_map=device_map, dtype=dtype)


def shared_lengths(contexts: Sequence[int], suite: Suite, lengths: Sequence[int] | None, *, beyond: bool) -> list[int]:
    """Choose the lengths for all models at once, so that they can be compared: parts of the longest context.

    Raises:
        ConfigError: a length is beyond every model's context and that was not asked for.
    """
    longest = max(contexts)
    chosen = sorted(set(lengths or [longest // part for part in suite.parts_of_context]))
    if beyond:
        return sorted({*chosen, 2 * longest})
    if chosen[-1] > longest or chosen[0] < 1:
        raise ConfigError(
            f"lengths must be 1 to {longest:,} tokens, the longest context of these models, not {chosen[-1]:,}: choose "
            "others, or measure beyond on purpose with --beyond"
        )
    return chosen


def folder_name(model: str) -> str:
    """Turn a model's name into that of a folder: the last three parts of a path."""
    parts = [part for part in Path(model).parts if part not in ("/", ".", "..")]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts[-3:])) or "model"


class _Run:
    """The suite of one model."""

    def __init__(
        self,
        name: str,
        folder: Path,
        suite: Suite,
        processes: Processes,
        *,
        seed: int,
        device_map: str | None,
        dtype: DtypeName,
    ) -> None:
        self._name, self._folder, self._suite = name, folder, suite
        self._processes, self._seed, self._device_map, self._dtype = processes, seed, device_map, dtype

    def measure(
        self, suite_name: str, texts: Texts, base: str | None, shared: Sequence[int], *, beyond: bool
    ) -> SuiteRecord:
        model, tokenizer = load_shared(self._name, self._processes, self._device_map, self._dtype)
        context = context_of(model)
        record = SuiteRecord(
            model=self._name,
            weights=model_identity(model),
            context=context,
            settings={"suite": suite_name, "seed": self._seed, "data": texts.description, "beyond": beyond},
            lengths=[length for length in shared if length <= context or beyond],
            provenance=provenance(),
        )
        if longer := [f"{length:,}" for length in shared if length not in record.lengths]:
            record.left_out.append(f"{', '.join(longer)} tokens: beyond its {context:,} positions")
        read = SuiteTexts(texts, shared)
        losses = None
        if self._processes.is_first:
            self._folder.mkdir(parents=True, exist_ok=True)
            logger.info("\n%s: %s, %s tokens", self._name, suite_name, ", ".join(f"{n:,}" for n in record.lengths))
            losses = measure_curves(model, tokenizer, read, record, self._suite.curves, self._folder, base)
        self._processes.wait()
        for test, depths, num_trials in self._tests():
            self._retrieve(model, tokenizer, test, depths, num_trials, record, beyond=beyond)
        del model  # its memory is the base's now
        gc.collect()
        if self._processes.is_first:
            if losses is not None and base is not None:
                measure_short(
                    base, losses, read, record, self._suite.curves, self._folder, self._device_map, self._dtype
                )
            for note in record.left_out:
                logger.warning("%s: left out: %s", self._name, note)
            write_atomically(self._folder / SUITE_FILE, json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n")
        self._processes.wait()
        return record

    def _tests(self) -> list[tuple[RetrievalTest, Sequence[float], int]]:
        suite = self._suite
        return [
            (passkey(), suite.depths, suite.trials),
            (needle(), suite.depths, suite.trials),
            (topics(), suite.depths, suite.trials_without_depth),
            (recall(), (0.0,), suite.trials_without_depth),
        ]

    def _retrieve(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        test: RetrievalTest,
        depths: Sequence[float],
        num_trials: int,
        record: SuiteRecord,
        *,
        beyond: bool,
    ) -> None:
        room = lengths_with_room(test, tokenizer, record.lengths)
        for length, reason in room.too_short.items():
            record.left_out.append(f"{test.name} at {length:,} tokens, because {reason}")
        if not room.lengths:
            return
        result = run_retrieval(
            model,
            tokenizer,
            test,
            lengths=room.lengths,
            depths=depths,
            num_trials=num_trials,
            seed=self._seed,
            bar=DEFAULT_BAR,
            beyond=beyond,
            output=self._folder / test.name,
            model_name=self._name,
            processes=self._processes,
        )
        if self._processes.is_first:
            write_result(result, self._folder / test.name)


@dataclass(frozen=True)
class Room:
    """Lengths that a test fits into, and for those that it does not the reason."""

    lengths: list[int]
    too_short: dict[int, str]


def lengths_with_room(test: RetrievalTest, tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int]) -> Room:
    """Leave out the lengths in which a question of the test has no room even without filler.

    Which topics or names are drawn decides over a few tokens, so that several questions are tried.
    """
    too_short: dict[int, str] = {}
    for length in sorted(lengths):
        trials = [TrialId(test.name, length, 0.0 if test.has_depths else None, number, number) for number in range(8)]
        reason = _first_reason(lambda trial: test.ask(tokenizer, trial), trials)
        if reason is None:
            break
        too_short[length] = reason
    return Room([length for length in sorted(lengths) if length not in too_short], too_short)


def _first_reason(ask: Callable[[TrialId], object], trials: Sequence[TrialId]) -> str | None:
    for trial in trials:
        try:
            ask(trial)
        except ConfigError as error:
            return str(error)
    return None
