"""The plan of a run: its memory, whether it fits, the longest context that does, the duration, and advice."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from longlora.planner.compute import Duration, Gpu, plan_duration
from longlora.planner.job import PlannedRun
from longlora.planner.memory import PeakMemory, plan_memory
from longlora.planner.savings import changed, needed_changes, part_to_keep_free

LONGEST_CONTEXT = 2**24  # tokens; upper bound of the search


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One change, applied on top of those before it in the list."""

    change: str
    total_bytes: int  # on each GPU, with this change and those before it
    slowdown: float  # time with this change over time without it; 1 if the time is unknown


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The resources that a run needs, compared with those available."""

    run: PlannedRun
    memory_bytes: int  # of one GPU
    memory: PeakMemory
    host_memory_bytes: int | None  # of the machine with the GPUs; None if unknown, then it is not checked
    longest_context: int  # longest row that fits with everything else unchanged, in tokens; 0 if none does
    duration: Duration | None  # None if the GPU is unknown
    advice: tuple[Advice, ...]  # changes that make it fit, the cheapest first; empty if it fits

    @property
    def fits_gpus(self) -> bool:
        """Whether the run fits on its GPUs."""
        return self.memory.total <= self.memory_bytes

    @property
    def fits_host(self) -> bool:
        """Whether the run fits into the host's memory; true if that is unknown."""
        return self.host_memory_bytes is None or self.memory.host_total <= self.host_memory_bytes

    @property
    def fits(self) -> bool:
        """Whether the run fits on its GPUs and into the host's memory."""
        return self.fits_gpus and self.fits_host

    @property
    def advice_suffices(self) -> bool:
        """Whether the run fits on its GPUs after all of the advice."""
        return (self.advice[-1].total_bytes if self.advice else self.memory.total) <= self.memory_bytes

    @property
    def keep_free(self) -> float:
        """The fraction of the GPUs' memory to keep free (`part_to_keep_free`)."""
        return part_to_keep_free(self.run)

    @property
    def keeps_margin(self) -> bool:
        """Whether the run keeps that fraction free."""
        return self.memory.total <= (1 - self.keep_free) * self.memory_bytes

    @property
    def measured(self) -> bool:
        """Whether runs of this kind have been measured on a GPU (tests/planner/measured)."""
        run = self.run
        return (
            (run.num_gpus, run.dtype, run.tuning, run.optimizer) == (1, "bfloat16", "lora+", "adamw")
            and run.gradient_checkpointing
            and run.chunked_loss
            and not run.four_bit
        )


def make_plan(
    run: PlannedRun, *, memory_bytes: int, host_memory_bytes: int | None = None, gpu: Gpu | None = None
) -> Plan:
    """Plan a run on GPUs of `memory_bytes` each in a host of `host_memory_bytes`; `gpu` determines their speed."""
    memory = plan_memory(run)
    return Plan(
        run=run,
        memory_bytes=memory_bytes,
        memory=memory,
        host_memory_bytes=host_memory_bytes,
        longest_context=longest_context(run, memory_bytes),
        duration=plan_duration(run, gpu) if gpu else None,
        advice=() if memory.total <= memory_bytes else tuple(_advise(run, memory_bytes, gpu)),
    )


def longest_context(run: PlannedRun, memory_bytes: int) -> int:
    """Find the longest row that fits, rounded down to a multiple of 1,024 tokens (of 64 below 4,096), or 0."""

    def is_too_long(tokens: int) -> bool:
        return plan_memory(replace(run, context_length=tokens, group_size=None)).total > memory_bytes

    longest = bisect_left(range(1, LONGEST_CONTEXT), True, key=is_too_long)
    step = 1024 if longest >= 4096 else 64
    return longest // step * step


def _advise(run: PlannedRun, memory_bytes: int, gpu: Gpu | None) -> Iterator[Advice]:
    taken = needed_changes(run, memory_bytes)
    for count, change in enumerate(taken):
        before, after = changed(run, taken[:count]), changed(run, taken[: count + 1])
        slowdown = plan_duration(after, gpu).seconds / plan_duration(before, gpu).seconds if gpu else 1.0
        yield Advice(change=str(change), total_bytes=plan_memory(after).total, slowdown=slowdown)
