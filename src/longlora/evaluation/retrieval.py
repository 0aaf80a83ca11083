"""Run a retrieval test: make the trials, ask, log, go on after an interruption, and sum up."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from longlora.evaluation.logits import Model
from longlora.evaluation.processes import Processes, alone
from longlora.evaluation.reader import Reader, check_positions
from longlora.evaluation.shares import DEFAULT_BAR, RetrievalResult, check_bar, summarise
from longlora.evaluation.subject import model_identity, provenance, tokenizer_identity
from longlora.evaluation.trials import (
    FinishedTrial,
    Question,
    RetrievalTest,
    TrialId,
    TrialLog,
    check_digits,
    gather,
    trial_grid,
)
from longlora.support.progress import progress_bar

DEFAULT_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEFAULT_TRIALS = 10


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
) -> RetrievalResult:
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
    check_bar(bar)
    check_digits(tokenizer)
    grid = trial_grid(
        test.name,
        lengths=lengths,
        depths=depths if test.has_depths else [None],
        num_trials=num_trials,
        seed=seed,
    )
    # The longest first: what has no room is known before hours of work.
    check_positions(model, _num_tokens(test.ask(tokenizer, grid[-1])), beyond=beyond)
    settings = {"test": test.name} | test.settings | {"seed": seed} | _identities(model, tokenizer, model_name)
    folder, processes = Path(output), processes or alone()
    folder.mkdir(parents=True, exist_ok=True)
    if processes.is_first:
        gather(folder, settings, grid)
    processes.wait()
    finished = gather(folder, settings, grid)
    processes.wait()
    share = [trial for trial in grid if trial not in finished][processes.index :: processes.count]
    done_before = len(grid) - len([trial for trial in grid if trial not in finished])
    with TrialLog(folder, settings, process=processes.index, num_processes=processes.count) as log:
        _ask_all(
            model,
            tokenizer,
            test,
            share,
            log,
            completed=done_before // processes.count,
            beyond=beyond,
            progress=progress and processes.is_first,
        )
    processes.wait()
    if processes.is_first:
        gather(folder, settings, grid)
    processes.wait()
    finished = gather(folder, settings, grid)
    return summarise(
        [finished[trial] for trial in grid], test, bar=bar, settings=settings, provenance=provenance(command)
    )


def _identities(model: Model, tokenizer: PreTrainedTokenizerBase, name: str) -> dict[str, Any]:
    return {"model": name, "weights": model_identity(model), "tokenizer": tokenizer_identity(tokenizer)}


def _num_tokens(question: Question) -> int:
    return len(question.input_ids) + question.max_new_tokens


def _ask_all(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    test: RetrievalTest,
    trials: Sequence[TrialId],
    log: TrialLog,
    *,
    completed: int,
    beyond: bool,
    progress: bool,
) -> None:
    reader, num_right = Reader(model, tokenizer), 0.0
    total = completed + len(trials)
    with reader.reading(), progress_bar(test.name, total=total, completed=completed, progress=progress) as advance:
        for num_asked, trial in enumerate(trials, start=1):
            started = time.perf_counter()
            question = test.ask(tokenizer, trial)
            check_positions(model, _num_tokens(question), beyond=beyond)
            answer, scores = reader.ask(question)
            log.append(
                FinishedTrial(
                    **trial._asdict(),
                    num_tokens=len(question.input_ids),
                    distance=question.distance,
                    expected=list(question.expected),
                    answer=answer,
                    scores=scores,
                    seconds=round(time.perf_counter() - started, 3),
                )
            )
            num_right += scores["generated"]
            advance(1, f"{trial.length:,} tokens, {num_right:.0f} of {num_asked} right")
