"""What happens beside the training loop: dense finish, log, clock, progress bar, marks on checkpoints."""

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longlora.distributed import wait_for_all
from longlora.errors import DivergenceError
from longlora.models.checkpoint import Extension
from longlora.models.grouping import Grouping, set_grouping
from longlora.support.files import write_atomically
from longlora.training.directory import RunDirectory, finish_checkpoint, read_metrics


class DenseFinish(TrainerCallback):
    """Trains with groups until `first_dense_step` steps are done, and with full attention from there on."""

    def __init__(self, *, grouping: Grouping, first_dense_step: int) -> None:
        self._grouping = grouping
        self._first_dense_step = first_dense_step

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> None:
        """Choose the attention of the coming step by the number of steps done, so that a resumed run agrees."""
        is_grouped = state.global_step < self._first_dense_step
        set_grouping(model, self._grouping if is_grouped else Grouping(group_size=None))


class FiniteGradients(TrainerCallback):
    """Stops before the optimizer takes up a gradient that is not a number, though the loss still was one."""

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> None:
        """Look at every gradient.

        Raises:
            DivergenceError: one of them is NaN or infinite.
        """
        if args.fp16:  # there the gradient scaler meets infinities on purpose, and leaves out the step
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        shards = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in gradients]
        # The largest magnitude is infinite or NaN where any number is; unlike a mask it takes no memory.
        largest = [torch.linalg.vector_norm(shard, math.inf) for shard in shards if shard.numel()]
        if largest and not torch.stack(largest).isfinite().all():
            raise DivergenceError(
                f"gradients stopped being numbers at step {state.global_step + 1}; lower learning_rate (it is "
                f"{args.learning_rate:g}) and start again: the last good checkpoint is kept"
            )


class MetricsLog(TrainerCallback):
    """Writes every logged step as a line of JSON, and drops lines past the checkpoint that a run resumes from."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep only what the resumed run has not yet to do again."""
        if not state.is_world_process_zero or not self._path.exists():
            return
        kept = [line for line in read_metrics(self._path) if line["step"] <= state.global_step]
        write_atomically(self._path, "".join(f"{json.dumps(line)}\n" for line in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        """Add a line; the summary at the end of the run, which has no loss of a step, is left out."""
        if state.is_world_process_zero and ("loss" in logs or "eval_loss" in logs):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint once every process has written its part, so that one cut short is never resumed from."""

    def __init__(self, run: RunDirectory, extension: Extension) -> None:
        self._run = run
        self._extension = extension

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint of this step."""
        wait_for_all()
        if state.is_world_process_zero:
            finish_checkpoint(self._run.checkpoints / f"checkpoint-{state.global_step}", self._extension)


class LightLastCheckpoint(TrainerCallback):
    """Leaves the optimizer's state, most of a checkpoint, out of the one that ends a run.

    It secures what was trained until the result is written; no step follows that would need the state.
    """

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say so to the trainer, which saves after this."""
        args.save_only_model = state.global_step >= state.max_steps


class Stopwatch(TrainerCallback):
    """Measures this start of a run: its steps, the seconds they took without validation, and the peak of memory."""

    def __init__(self, *, tokens_per_step: float) -> None:
        self._tokens_per_step = tokens_per_step
        self.steps = 0
        self.seconds = 0.0
        self._step_started = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Over all processes; 0 before the first step has ended."""
        return self.steps * self._tokens_per_step / self.seconds if self.seconds else 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget what loading the model took."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._step_started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop it, and count the step."""
        self.seconds += time.monotonic() - self._step_started
        self.steps += 1


def peak_memory_bytes() -> int:
    """Most memory held so far: reserved on the GPU, or by the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


class ProgressBar(TrainerCallback):
    """Shows steps, losses, tokens per second, memory and the time that is left."""

    def __init__(self, *, description: str, watch: Stopwatch) -> None:
        self._watch = watch
        self._validation = ""
        self._progress = Progress(
            TextColumn(description),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar at the step that the run resumes from."""
        self._progress.disable = not state.is_world_process_zero
        self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step, status="")
        self._progress.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        """Show the latest losses, the speed and the peak of memory."""
        if "eval_loss" in logs:
            self._validation = f"  validation {float(logs['eval_loss']):.3f}"
            self._progress.update(self._task, status=self._validation.strip())
        elif "loss" in logs and self._watch.seconds:
            speed = self._watch.tokens_per_second
            memory = peak_memory_bytes() / 2**30
            loss = f"loss {float(logs['loss']):.3f}{self._validation}"
            self._progress.update(self._task, status=f"{loss}  {speed:,.0f} tokens/s  {memory:.1f} GiB")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=state.global_step)

    def close(self) -> None:
        """Stop drawing; safe to call at any time, needed when training ends by an exception."""
        self._progress.stop()
