"""How long the steps of a run take, and how much memory they hold."""

import resource
import sys
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
