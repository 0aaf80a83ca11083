"""Trainer callbacks: the dense finish, gradient checks, the metrics log, the progress bar, SIGTERM."""

import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState
from trl import SFTConfig

from longlora.distributed import any_process
from longlora.errors import DivergenceError
from longlora.models.grouping import Grouping, set_grouping
from longlora.support.files import write_atomically
from longlora.support.journal import json_line
from longlora.support.machine import handling
from longlora.support.progress import progress_bar
from longlora.training.run_directory import read_metrics


class DenseFinish(TrainerCallback):
    """Trains in groups until `first_dense_step` steps are done, and with full attention after that."""

    def __init__(self, *, grouping: Grouping, first_dense_step: int) -> None:
        self._grouping = grouping
        self._first_dense_step = first_dense_step

    def on_step_begin(
        self, args: SFTConfig, state: TrainerState, control: TrainerControl, model: PreTrainedModel, **kwargs: Any
    ) -> None:
        """Choose the attention of the next step by the number of steps done, so a resumed run agrees."""
        is_grouped = state.global_step < self._first_dense_step
        set_grouping(model, self._grouping if is_grouped else Grouping(group_size=None))


def diverged(what: str, state: TrainerState, args: SFTConfig) -> DivergenceError:
    """Return the error that says what became NaN or infinite in the current step."""
    return DivergenceError(
        f"{what} at step {state.global_step + 1}; lower learning_rate (it is {args.learning_rate:g}) and start again: "
        "the last good checkpoint is kept"
    )


class FiniteGradients(TrainerCallback):
    """Stops before the optimizer uses a NaN or infinite gradient, which can occur while the loss is still finite."""

    def on_pre_optimizer_step(
        self, args: SFTConfig, state: TrainerState, control: TrainerControl, model: PreTrainedModel, **kwargs: Any
    ) -> None:
        """Check every gradient.

        Raises:
            DivergenceError: one of them is NaN or infinite.
        """
        if args.fp16:  # the gradient scaler expects infinities, and skips the step
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        shards = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in gradients]
        # The largest magnitude is infinite or NaN if any value is; unlike a mask, it takes no memory.
        largest = [torch.linalg.vector_norm(shard, math.inf) for shard in shards if shard.numel()]
        if largest and not torch.stack(largest).isfinite().all():
            raise diverged("gradients became NaN or infinite", state, args)


def peak_memory_bytes() -> int:
    """Return the peak memory so far: reserved on the GPU, or resident in the process if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


class MetricsLog(TrainerCallback):
    """Writes a line of JSON for every logged step, and drops lines past the checkpoint that a run resumes from."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Drop the lines of steps that the resumed run will repeat."""
        if state.is_world_process_zero and self._path.exists():
            kept = [line for line in read_metrics(self._path) if line["step"] <= state.global_step]
            write_atomically(self._path, "".join(map(json_line, kept)))

    def on_log(
        self, args: SFTConfig, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """Append a line; skip the summary at the end of the run, which has no step loss."""
        if state.is_world_process_zero and ("loss" in logs or "eval_loss" in logs):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json_line({"step": state.global_step, **logs}))


class ProgressBar(TrainerCallback):
    """Counts and times the steps of this start, without validation, and shows the run's progress."""

    def __init__(self, *, tokens_per_step: float) -> None:
        self._tokens_per_step = tokens_per_step
        self.steps, self.seconds = 0, 0.0
        self._drawing = ExitStack()
        self._validation = self._status = ""

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second over all processes; 0 before the first step has ended."""
        return self.steps * self._tokens_per_step / self.seconds if self.seconds else 0.0

    def on_train_begin(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reset peak memory, which loading the model raised, and start the bar at the step the run resumes from."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        total, done = state.max_steps, state.global_step
        bar = progress_bar("training", total=total, completed=done, show_progress=state.is_world_process_zero)
        self._advance = self._drawing.enter_context(bar)

    def on_step_begin(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock."""
        self._step_started = time.monotonic()

    def on_step_end(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock, and move the bar."""
        self.seconds += time.monotonic() - self._step_started
        self.steps += 1
        self._advance(1, self._status)

    def on_log(
        self, args: SFTConfig, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """Show the latest losses, the speed and the peak memory."""
        if "eval_loss" in logs:
            self._status = f"validation {float(logs['eval_loss']):.3f}"
            self._validation = f"  {self._status}"
        elif "loss" in logs and self.seconds:
            loss = f"loss {float(logs['loss']):.3f}{self._validation}"
            memory = f"{peak_memory_bytes() / 2**30:.1f} GiB"
            self._status = f"{loss}  {self.tokens_per_second:,.0f} tokens/s  {memory}"
        self._advance(0, self._status)

    def close(self) -> None:
        """Stop drawing; safe to call at any time, and needed when an exception ends training."""
        self._drawing.close()


class Terminated(SystemExit):
    """SIGTERM ended the process; `message` says what was saved."""

    def __init__(self, message: str) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.message = message


class Sigterm(TrainerCallback):
    """Ends training after the current micro-step once any process gets SIGTERM, and saves the last complete step.

    Gradients of the unfinished step are dropped: a resumed run repeats that step from its first row. transformers'
    `enable_jit_checkpoint` does not work here: a rank that gets the signal saves alone while the others wait for it in
    the next step, it starts three seconds late, and the process exits with the status of a finished run.
    """

    def __init__(self) -> None:
        self.has_come = self.has_stopped = False
        self._waits_for_checkpoint = False
        self._kept = "ended before training began"
        self._saved_step = 0

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Record the signal; exit at once if there is nothing to save."""
        self.has_come = True
        if not self._waits_for_checkpoint:
            raise Terminated(self._kept)

    def result_is_saved(self) -> None:
        """From now on, let the signal end the process at once."""
        self._waits_for_checkpoint = False
        self._kept = "what was trained is saved"

    def on_train_begin(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """From now on, act on the signal at the end of a micro-step."""
        self._saved_step = state.global_step
        self._waits_for_checkpoint = True

    def on_save(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the saved step: saving it again is needless, and would leave its checkpoint broken for a moment."""
        self._saved_step = state.global_step

    def on_substep_end(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop between two micro-steps, except under DeepSpeed, which counts them in its checkpoints."""
        if args.deepspeed_plugin is None:
            self._stop_if_told(state, control)

    def on_step_end(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop between two steps; after the last one there is nothing to stop."""
        if state.global_step < state.max_steps:
            self._stop_if_told(state, control)

    def _stop_if_told(self, state: TrainerState, control: TrainerControl) -> None:
        if any_process(self.has_come):
            self.has_stopped = control.should_training_stop = True
            control.should_save = state.global_step > self._saved_step


@contextmanager
def noticing_sigterm() -> Iterator[Sigterm]:
    """Turn SIGTERM into a flag within a block; outside the main thread Python allows no signal handlers."""
    sigterm, is_main_thread = Sigterm(), threading.current_thread() is threading.main_thread()
    with handling(signal.SIGTERM, sigterm.handle) if is_main_thread else nullcontext():
        yield sigterm
