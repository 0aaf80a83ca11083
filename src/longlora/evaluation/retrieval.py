"""Run a retrieval test: ask the trials, log the answers, resume after an interruption, and summarize."""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from longlora.distributed import Processes, joined_processes
from longlora.evaluation.drawing import write_result
from longlora.evaluation.logits import Model
from longlora.evaluation.questions import FinishedTrial, Question, RetrievalTest, TrialId, check_digits, trial_grid
from longlora.evaluation.reader import check_positions, read_answer
from longlora.evaluation.results import Retrieval, RetrievalRow
from longlora.evaluation.scoring import usual_lengths
from longlora.evaluation.shares import BAR, Share, check_bar, wilson
from longlora.evaluation.subject import Loading, Subject, load_subject, provenance, tokenizer_digest
from longlora.support.files import write_atomically
from longlora.support.journal import Journal, json_line, read_journal
from longlora.support.progress import progress_bar

LOG_FILE = "trials.jsonl"
_PARTS = "trials.part-*.jsonl"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The questions of a retrieval test, and the bar for the verdict."""

    lengths: Sequence[int] | None = None  # tokens of prompt and answer; None for fractions of the model's context
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    num_trials: int = 10  # per length and depth
    seed: int = 0
    bar: float = BAR  # the lower bound of the share's interval must reach it
    beyond: bool = False  # allow more tokens than the model has positions


def run_retrieval(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    test: RetrievalTest,
    *,
    lengths: Sequence[int],
    output: str | Path,
    depths: Sequence[float] = Sweep.depths,
    num_trials: int = Sweep.num_trials,
    seed: int = Sweep.seed,
    bar: float = Sweep.bar,
    beyond: bool = False,
    model_name: str = "",
    command: str | None = None,
    processes: Processes | None = None,
    show_progress: bool = True,
) -> Retrieval:
    """Ask `num_trials` questions at each length and depth, and return the shares of correct answers and the verdict.

    Each finished trial is immediately written as a line of `trials.jsonl` in `output`. A repeated call with the same
    model, test and seed asks only missing trials, including added lengths, depths or trials; anything else that would
    change a trial is refused. With several processes, each takes every n-th trial, and all of them return the result.

    Raises:
        ConfigError: an argument is out of range, a prompt exceeds the model's positions, or the folder holds trials of
            another evaluation.
        DataError: the tokenizer does not preserve digits, or the log cannot be read.
        CheckpointError: the model produces NaN; earlier trials are in the log.
    """
    sweep = Sweep(lengths=lengths, depths=depths, num_trials=num_trials, seed=seed, bar=bar, beyond=beyond)
    subject = Subject(name=model_name, model=model, tokenizer=tokenizer)
    processes = processes or Processes()
    return retrieve(subject, test, sweep, Path(output), processes, command=command, show_progress=show_progress)


def retrieve(
    subject: Subject,
    test: RetrievalTest,
    sweep: Sweep,
    folder: Path,
    processes: Processes,
    *,
    command: str | None = None,
    show_progress: bool = True,
) -> Retrieval:
    """Run a test as `run_retrieval` does; lengths default to an eighth, a quarter, a half and the whole of the context.

    Raises:
        ConfigError, DataError, CheckpointError: as `run_retrieval`.
    """
    check_bar(sweep.bar)
    check_digits(subject.tokenizer)
    lengths = usual_lengths(subject.context) if sweep.lengths is None else sweep.lengths
    depths = sweep.depths if test.has_depths else [None]
    grid = trial_grid(test.name, lengths=lengths, depths=depths, num_trials=sweep.num_trials, seed=sweep.seed)
    # Fail now, not after hours of work, if the longest prompt does not fit.
    _ask(subject, test, grid[-1], beyond=sweep.beyond)
    settings = {"test": test.name} | test.settings | {"seed": sweep.seed, "model": subject.name}
    settings |= {"weights": subject.weights, "tokenizer": tokenizer_digest(subject.tokenizer)}
    folder.mkdir(parents=True, exist_ok=True)

    def finished_by_all() -> dict[TrialId, FinishedTrial]:
        processes.wait()
        if processes.is_main_process:
            gather(folder, settings, grid)
        processes.wait()
        return gather(folder, settings, grid)

    finished = finished_by_all()
    processes.wait()
    missing = [trial for trial in grid if trial not in finished]
    own = missing[processes.index :: processes.count]
    completed = (len(grid) - len(missing)) // processes.count
    show, num_right = show_progress and processes.is_main_process, 0.0
    with (
        open_log(folder, settings, processes) as log,
        progress_bar(test.name, total=completed + len(own), completed=completed, show_progress=show) as advance,
    ):
        for num_asked, trial in enumerate(own, start=1):
            answered = _answer(subject, test, trial, beyond=sweep.beyond)
            log.append(asdict(answered))
            num_right += answered.scores["generated"]
            advance(1, f"{trial.length:,} tokens, {num_right:.0f} of {num_asked} right")
    finished = finished_by_all()
    trials = [finished[trial] for trial in grid]
    return summarise(trials, test, bar=sweep.bar, settings=settings, provenance=provenance(command))


def measure_retrieval(
    model_name: str, test: RetrievalTest, sweep: Sweep, loading: Loading, *, output: str | Path
) -> Retrieval | None:
    """Load a model, run a retrieval test and write its result; return None in all but the main process.

    Raises:
        CheckpointError, ConfigError, DataError: as `run_retrieval` and `load_subject`.
    """
    with joined_processes() as processes:
        result = retrieve(load_subject(model_name, loading, processes), test, sweep, Path(output), processes)
        if not processes.is_main_process:
            return None
        write_result(result, output)
    return result


def summarise(
    trials: Sequence[FinishedTrial],
    test: RetrievalTest,
    *,
    bar: float,
    settings: dict[str, Any],
    provenance: dict[str, Any],
) -> Retrieval:
    """Summarize the finished trials of one test."""
    lengths = sorted({trial.length for trial in trials})
    return Retrieval(
        model=settings["model"],
        weights=settings["weights"],
        test=test.name,
        bar=bar,
        chance=test.measures,
        lengths=[_at_length([trial for trial in trials if trial.length == n], test.measures) for n in lengths],
        settings=settings,
        provenance=provenance,
    )


def _at_length(trials: Sequence[FinishedTrial], measures: Mapping[str, float]) -> RetrievalRow:
    def shares(some: Sequence[FinishedTrial]) -> dict[str, Share]:
        return {name: wilson(sum(trial.scores[name] for trial in some), len(some)) for name in measures}

    return RetrievalRow(
        length=trials[0].length,
        mean_tokens=statistics.fmean(trial.num_tokens for trial in trials),
        mean_distance=statistics.fmean(trial.distance for trial in trials),
        shares=shares(trials),
        by_depth={
            "drawn" if depth is None else f"{depth:g}": shares([trial for trial in trials if trial.depth == depth])
            for depth in dict.fromkeys(trial.depth for trial in trials)
        },
        means={
            name: statistics.fmean(trial.scores[name] for trial in trials)
            for name in trials[0].scores
            if name not in measures
        },
    )


def _ask(subject: Subject, test: RetrievalTest, trial: TrialId, *, beyond: bool) -> Question:
    question = test.ask(subject.tokenizer, trial)
    check_positions(subject.model, len(question.input_ids) + question.max_new_tokens, beyond=beyond)
    return question


def _answer(subject: Subject, test: RetrievalTest, trial: TrialId, *, beyond: bool) -> FinishedTrial:
    started = time.perf_counter()
    question = _ask(subject, test, trial, beyond=beyond)
    answer, scores = read_answer(subject.model, subject.tokenizer, question)
    return FinishedTrial(
        **trial._asdict(),
        num_tokens=len(question.input_ids),
        distance=question.distance,
        expected=list(question.expected),
        answer=answer,
        scores=scores,
        seconds=round(time.perf_counter() - started, 3),
    )


@contextmanager
def open_log(folder: Path, settings: Mapping[str, Any], processes: Processes) -> Iterator[Journal]:
    """Open the journal of finished trials; with several processes, each writes its own file until `gather`.

    Raises:
        ConfigError: it was begun with other settings, or another process has it open.
        DataError: it cannot be read.
    """
    name = LOG_FILE if processes.count == 1 else f"trials.part-{processes.index}-of-{processes.count}.jsonl"
    journal = Journal(folder / name, settings)
    try:
        yield journal
    finally:
        journal.close()
        (folder / f"{name}.lock").unlink(missing_ok=True)


def gather(folder: Path, settings: Mapping[str, Any], order: Iterable[TrialId] = ()) -> dict[TrialId, FinishedTrial]:
    """Merge the files of all processes into one, sorted by `order`, and return all finished trials.

    Raises:
        ConfigError: the folder holds an evaluation with other settings.
        DataError: a file was modified and cannot be read.
    """
    parts = sorted(folder.glob(_PARTS))
    trials = [
        trial
        for path in (folder / LOG_FILE, *parts)
        for trial in read_journal(path, settings, lambda line: FinishedTrial(**line))
    ]
    found = {trial.identity: trial for trial in trials}
    if parts:
        place = {identity: number for number, identity in enumerate(order)}
        lines = sorted(found.values(), key=lambda trial: place.get(trial.identity, len(place)))
        text = json_line({"settings": settings}) + "".join(json_line(asdict(trial)) for trial in lines)
        write_atomically(folder / LOG_FILE, text)
        for path in parts:
            path.unlink()
    return found
