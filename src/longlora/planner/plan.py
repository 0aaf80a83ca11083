"""The whole plan: what a run needs, whether it fits, how long a context would, how long it takes, what would help."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from longlora.planner.compute import Duration, Gpu, plan_duration
from longlora.planner.job import PlannedRun
from longlora.planner.memory import Memory, plan_memory

LONGEST_CONTEXT = 2**24  # tokens; where the search for the longest context ends
WORTH_NAMING = 0.01  # a change that lowers the peak by less than this part is not advised

KEEP_FREE = 0.10
"""The part of a GPU's memory to keep free: as far as the plan may be from what runs were measured to take."""

KEEP_MORE_FREE = 0.30
"""The same in 4 bits and without checkpointing, where others' runs took nearly that much more (docs/plan.md)."""

Change = tuple[str, dict[str, Any]]  # in words, and in fields of the run


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One change, on top of those before it in the list."""

    change: str
    total_bytes: int  # on each GPU, with this change and those before it
    slowdown: float  # time with this change over time without it; 1 where the time is not known


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs."""

    run: PlannedRun
    memory_bytes: int  # of one GPU
    memory: Memory
    host_memory_bytes: int | None  # of the machine that holds the GPUs; None: not known, and then not asked for
    longest_context: int  # longest row that fits with everything else as it is, in tokens; 0 if none does
    duration: Duration | None  # None: the GPU is not known
    advice: tuple[Advice, ...]  # what to change so that it fits, cheapest first; empty if it fits

    @property
    def fits_gpus(self) -> bool:
        """The run fits on its GPUs."""
        return self.memory.total <= self.memory_bytes

    @property
    def fits_host(self) -> bool:
        """The run fits into the host's memory, as far as that is known."""
        return self.host_memory_bytes is None or self.memory.host_total <= self.host_memory_bytes

    @property
    def fits(self) -> bool:
        """The run fits on its GPUs and into the host's memory."""
        return self.fits_gpus and self.fits_host

    @property
    def advice_suffices(self) -> bool:
        """The run fits on its GPUs after all of the advice."""
        return (self.advice[-1].total_bytes if self.advice else self.memory.total) <= self.memory_bytes

    @property
    def keep_free(self) -> float:
        """The part of the GPUs' memory to keep free, since plans may be wrong by so much."""
        return KEEP_MORE_FREE if self.run.four_bit or not self.run.gradient_checkpointing else KEEP_FREE

    @property
    def keeps_margin(self) -> bool:
        """The run leaves that much free."""
        return self.memory.total <= (1 - self.keep_free) * self.memory_bytes

    @property
    def measured(self) -> bool:
        """Runs of this kind have been measured on a GPU (tests/planner/measured)."""
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
    """Plan a run on GPUs of `memory_bytes` each in a host of `host_memory_bytes`; `gpu` tells how fast they are."""
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
    """Find the longest row that fits, rounded down to 1,024 tokens (below 4,096 to 64), or 0."""
    low, high = 0, LONGEST_CONTEXT
    while high - low > 1:
        middle = (low + high) // 2
        fits = plan_memory(replace(run, context_length=middle, group_size=None)).total <= memory_bytes
        low, high = (middle, high) if fits else (low, middle)
    step = 1024 if low >= 4096 else 64
    return low // step * step


def _advise(run: PlannedRun, memory_bytes: int, gpu: Gpu | None) -> Iterator[Advice]:
    taken = _needed_changes(run, memory_bytes)
    for count, (text, _) in enumerate(taken):
        before, after = _changed(run, taken[:count]), _changed(run, taken[: count + 1])
        slowdown = plan_duration(after, gpu).seconds / plan_duration(before, gpu).seconds if gpu else 1.0
        yield Advice(change=text, total_bytes=plan_memory(after).total, slowdown=slowdown)


def _needed_changes(run: PlannedRun, memory_bytes: int) -> list[Change]:
    """Take changes in the order of their cost until it fits, then leave out those that turned out unneeded."""
    taken: list[Change] = []
    total = plan_memory(run).total
    for change in _changes(run):
        changed = plan_memory(_changed(run, [*taken, change])).total
        if changed < (1 - WORTH_NAMING) * total:
            taken, total = [*taken, change], changed
        if total <= memory_bytes:
            break
    else:
        return taken
    for change in reversed(taken[:-1]):  # the dearest first
        without = [other for other in taken if other is not change]
        if plan_memory(_changed(run, without)).total <= memory_bytes:
            taken = without
    return taken


def _changed(run: PlannedRun, changes: list[Change]) -> PlannedRun:
    return reduce(lambda changed, change: replace(changed, **change[1]), changes, run)


def _changes(run: PlannedRun) -> Iterator[Change]:
    """Changes that this run can still make, the one that costs least first."""
    full, several = run.tuning == "full", run.num_gpus > 1
    rows, tile = run.batch_size * run.accumulation_steps, run.architecture.hidden_size  # tokens, as in ALST
    if not run.chunked_loss:
        yield "chunked cross-entropy instead of whole logits: chunked_loss=true", {"chunked_loss": True}
    if run.batch_size > 1:
        text = f"rows one by one: per_device_train_batch_size=1 gradient_accumulation_steps={rows}"
        yield text, {"batch_size": 1, "accumulation_steps": rows}
    if several and run.strategy in ("single", "ddp"):
        yield "split gradients and optimizer state: --strategy zero2", {"strategy": "zero2"}
    if several and run.strategy not in ("fsdp2", "zero3") and not run.four_bit:
        yield "split the weights too: --strategy fsdp2", {"strategy": "fsdp2"}
    if not run.gradient_checkpointing:
        yield "gradient checkpointing: gradient_checkpointing=true", {"gradient_checkpointing": True}
    if run.optimizer in ("adamw", "adamw_foreach") and full:
        yield "optimizer state of one byte: optim=adamw_8bit", {"optimizer": "adamw_8bit"}
    if not run.offload_checkpoints:
        also = "" if run.gradient_checkpointing else "gradient_checkpointing=true "
        text = f"layer inputs in host memory: {also}activation_offloading=true"
        yield text, {"offload_checkpoints": True, "gradient_checkpointing": True}
    if not run.tiled_mlp and not run.architecture.num_experts:
        yield f"feed-forward in tiles: tiled_mlp={tile}", {"tiled_mlp": tile}
    heads, kv_heads = run.architecture.num_heads, run.architecture.num_kv_heads
    divisible = heads % run.num_gpus == 0 and (kv_heads % run.num_gpus == 0 or run.num_gpus % kv_heads == 0)
    if several and divisible and run.sequence_parallel_size == 1:
        steps = run.accumulation_steps * run.num_gpus
        text = f"each row on all GPUs: sequence_parallel_size={run.num_gpus} gradient_accumulation_steps={steps}"
        yield text, {"sequence_parallel_size": run.num_gpus, "accumulation_steps": steps}
    if not full and not run.four_bit and run.strategy != "zero3":
        yield "frozen weights in 4 bits: quantization=nf4", {"four_bit": True}
    if full:
        yield "an adapter instead of every weight: tuning=lora+", {"tuning": "lora+"}
