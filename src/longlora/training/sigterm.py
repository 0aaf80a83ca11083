"""SIGTERM, as clusters send it before they kill: save a checkpoint, say so, and end with status 143.

transformers' `enable_jit_checkpoint` does not serve: a rank that got the signal saves alone while the others wait for
it in the next step, it begins three seconds late, and the process ends with the status of a finished run.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import SFTConfig

from longlora.distributed import any_process


class Terminated(SystemExit):
    """The process was told to end by SIGTERM; `message` says what is kept."""

    def __init__(self, message: str) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.message = message


class Termination:
    """Whether SIGTERM has come, and whether somebody will look."""

    def __init__(self) -> None:
        self.has_come = False
        self.is_looked_at = False
        self._message = "ended before training began"

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Note the signal; end at once while nothing is to be saved."""
        self.has_come = True
        if not self.is_looked_at:
            raise Terminated(self._message)

    def result_is_saved(self) -> None:
        """Let the signal end the process at once from now on."""
        self.is_looked_at = False
        self._message = "what was trained is saved"


@contextmanager
def noticing_sigterm() -> Iterator[Termination]:
    """Turn SIGTERM into a note for the length of a block; outside the main thread Python offers no handlers."""
    termination = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield termination
        return
    previous = signal.signal(signal.SIGTERM, termination.handle)
    try:
        yield termination
    finally:
        signal.signal(signal.SIGTERM, previous)


class SaveAndStop(TrainerCallback):
    """Ends training after the running micro-step once any process got SIGTERM, and saves the last whole step.

    Gradients of the step that was under way are dropped: a resumed run does that step again from its first row.
    """

    def __init__(self, termination: Termination, *, within_steps: bool) -> None:
        """Set up the callback.

        Args:
            termination: the note of this process.
            within_steps: whether a step may be left half done. DeepSpeed counts micro-steps in its checkpoints.
        """
        self._termination = termination
        self._within_steps = within_steps
        self._saved_step = 0
        self.has_stopped = False

    def on_train_begin(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the note from now on."""
        self._saved_step = state.global_step
        self._termination.is_looked_at = True

    def on_save(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember what need not be saved again, nor could be without spoiling it for a moment."""
        self._saved_step = state.global_step

    def on_substep_end(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop between two micro-steps."""
        if self._within_steps:
            self._stop_if_told(state, control)

    def on_step_end(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop between two steps; after the last one there is nothing to stop."""
        if state.global_step < state.max_steps:
            self._stop_if_told(state, control)

    def _stop_if_told(self, state: TrainerState, control: TrainerControl) -> None:
        if any_process(self._termination.has_come):
            self.has_stopped = True
            control.should_training_stop = True
            control.should_save = state.global_step > self._saved_step
