"""Run a retrieval test: make the trials, ask, log, resume after an interruption, and sum up."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from longlora.distributed import Processes
from longlora.evaluation.logits import Model
from longlora.evaluation.reader import Reader, check_positions
from longlora.evaluation.results import Retrieval
from longlora.evaluation.shares import DEFAULT_BAR, check_bar, summarise
from longlora.evaluation.subject import Subject, provenance, tokenizer_identity, usual_lengths
from longlora.evaluation.trials import (
    DEFAULT_DEPTHS,
    DEFAULT_TRIALS,
    FinishedTrial,
    Question,
    RetrievalTest,
    Sweep,
    TrialId,
    check_digits,
    gather,
    open_log,
    trial_grid,
)
from longlora.support.journal import Journal
from longlora.support.progress import progress_bar


def run_retrieval(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    test: RetrievalTest,
    *,
    lengths: Sequence[int],
    output: str | Path,
    depths: Sequence[float] = DEFAULT_DEPTHS,
    num_trials: int = DEFAULT_TRIALS,
    seed: int = 0,
    bar: float = DEFAULT_BAR,
    beyond: bool = False,
    model_name: str = "",
    command: str | None = None,
    processes: Processes | None = None,
    progress: bool = True,
) -> Retrieval:
    """Ask `num_trials` questions at each length and depth, and return shares of right answers and the verdict.

    Each finished trial is at once a line of `trials.jsonl` in `output`. Called again with the same model, test and seed
    only the trials that are missing are asked, more lengths, depths or trials included; anything else that would change
    a trial is refused. Several processes take every n-th trial each; all of them get the result.

    Raises:
        ConfigError: an argument is out of its range, a prompt exceeds the model's positions, or the folder holds trials
            of another evaluation.
        DataError: the tokenizer loses digits, or the log cannot be read.
        CheckpointError: the model produces NaN; the trials before are in the log.
    """
    sweep = Sweep(lengths=lengths, depths=depths, num_trials=num_trials, seed=seed, bar=bar, beyond=beyond)
    subject = Subject(name=model_name, model=model, tokenizer=tokenizer)
    return retrieve(subject, test, sweep, Path(output), processes or Processes(), command=command, progress=progress)


def retrieve(
    subject: Subject,
    test: RetrievalTest,
    sweep: Sweep,
    folder: Path,
    processes: Processes,
    *,
    command: str | None = None,
    progress: bool = True,
) -> Retrieval:
    """Do what `run_retrieval` says; without lengths at an eighth, a quarter, a half and the whole of the context.

    Raises:
        ConfigError, DataError, CheckpointError: as `run_retrieval`.
    """
    check_bar(sweep.bar)
    check_digits(subject.tokenizer)
    lengths = usual_lengths(subject.context) if sweep.lengths is None else sweep.lengths
    depths = sweep.depths if test.has_depths else [None]
    grid = trial_grid(test.name, lengths=lengths, depths=depths, num_trials=sweep.num_trials, seed=sweep.seed)
    # The longest first: what has no room is known before hours of work.
    check_positions(subject.model, _num_tokens(test.ask(subject.tokenizer, grid[-1])), beyond=sweep.beyond)
    settings = {"test": test.name} | test.settings | {"seed": sweep.seed, "model": subject.name}
    settings |= {"weights": subject.weights, "tokenizer": tokenizer_identity(subject.tokenizer)}
    folder.mkdir(parents=True, exist_ok=True)

    def finished_by_all() -> dict[TrialId, FinishedTrial]:
        processes.wait()
        if processes.is_first:
            gather(folder, settings, grid)
        processes.wait()
        return gather(folder, settings, grid)

    finished = finished_by_all()
    processes.wait()
    missing = [trial for trial in grid if trial not in finished]
    with open_log(folder, settings, process=processes.index, num_processes=processes.count) as log:
        _ask_all(
            subject,
            test,
            missing[processes.index :: processes.count],
            log,
            completed=(len(grid) - len(missing)) // processes.count,
            beyond=sweep.beyond,
            progress=progress and processes.is_first,
        )
    finished = finished_by_all()
    trials = [finished[trial] for trial in grid]
    return summarise(trials, test, bar=sweep.bar, settings=settings, provenance=provenance(command))


def _num_tokens(question: Question) -> int:
    return len(question.input_ids) + question.max_new_tokens


def _ask_all(
    subject: Subject,
    test: RetrievalTest,
    trials: Sequence[TrialId],
    log: Journal,
    *,
    completed: int,
    beyond: bool,
    progress: bool,
) -> None:
    reader, num_right = Reader(subject.model, subject.tokenizer), 0.0
    total = completed + len(trials)
    with reader.reading(), progress_bar(test.name, total=total, completed=completed, progress=progress) as advance:
        for num_asked, trial in enumerate(trials, start=1):
            started = time.perf_counter()
            question = test.ask(subject.tokenizer, trial)
            check_positions(subject.model, _num_tokens(question), beyond=beyond)
            answer, scores = reader.ask(question)
            finished = FinishedTrial(
                **trial._asdict(),
                num_tokens=len(question.input_ids),
                distance=question.distance,
                expected=list(question.expected),
                answer=answer,
                scores=scores,
                seconds=round(time.perf_counter() - started, 3),
            )
            log.append(asdict(finished))
            num_right += scores["generated"]
            advance(1, f"{trial.length:,} tokens, {num_right:.0f} of {num_asked} right")
