"""The whole plan: what a run needs, whether it fits, how long a context would, how long it takes, what would help."""

from dataclasses import dataclass, replace
from typing import Any

from longlora.planner.compute import Duration, plan_duration
from longlora.planner.hardware import Gpu
from longlora.planner.job import PlannedRun
from longlora.planner.memory import Memory, plan_memory

LONGEST_CONTEXT = 2**24
"""Where the search for the longest context ends, in tokens."""

KEEP_FREE = 0.10
"""The part of a GPU's memory to keep free: as far as the plan may be from what runs were measured to take."""

KEEP_MORE_FREE = 0.30
"""The same in 4 bits and without checkpointing, where others' runs took nearly that much more (docs/plan.md)."""

WORTH_NAMING = 0.01
"""A change that lowers the peak by less than this part is not advised."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One change, on top of those before it in the list."""

    text: str
    total_bytes: int
    """Per GPU, with this change and those before it."""
    slowdown: float
    """Time with this change over time without it; 1 where the time is not known."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs."""

    run: PlannedRun
    memory_bytes: int
    """Of one GPU."""
    memory: Memory
    host_memory_bytes: int | None
    """Of the machine that holds the GPUs; None where it is not known, and then not asked for."""
    longest_context: int
    """Longest row that fits with everything else as it is, in tokens; 0 if none does."""
    duration: Duration | None
    """None where the GPU is not known."""
    advice: tuple[Advice, ...]
    """What to change so that it fits, cheapest first; empty if it fits."""
    advice_suffices: bool
    """It fits after all of the advice."""

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
    advice, suffices = ((), True) if memory.total <= memory_bytes else _advise(run, memory_bytes, gpu)
    return Plan(
        run=run,
        memory_bytes=memory_bytes,
        memory=memory,
        host_memory_bytes=host_memory_bytes,
        longest_context=longest_context(run, memory_bytes),
        duration=plan_duration(run, gpu) if gpu else None,
        advice=advice,
        advice_suffices=suffices,
    )


def longest_context(run: PlannedRun, memory_bytes: int) -> int:
    """Find the longest row that fits, rounded down to 1,024 tokens (below 4,096 to 64), or 0."""

    def fits(tokens: int) -> bool:
        return plan_memory(replace(run, context_length=tokens, group_size=None)).total <= memory_bytes

    low, high = 0, LONGEST_CONTEXT
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    step = 1024 if low >= 4096 else 64
    return low // step * step


def _advise(run: PlannedRun, memory_bytes: int, gpu: Gpu | None) -> tuple[tuple[Advice, ...], bool]:
    """Take changes in the order of their cost until it fits, then leave out those that turned out unneeded."""
    taken: list[tuple[str, dict[str, Any]]] = []
    present = run
    for text, change in _changes(run):
        changed = replace(present, **change)
        if plan_memory(changed).total < (1 - WORTH_NAMING) * plan_memory(present).total:
            taken.append((text, change))
            present = changed
        if plan_memory(present).total <= memory_bytes:
            break
    suffices = plan_memory(present).total <= memory_bytes
    if suffices:
        for change in reversed(taken[:-1]):  # the dearest first
            without = [other for other in taken if other is not change]
            if plan_memory(_apply(run, without)).total <= memory_bytes:
                taken = without
    return tuple(_tell(run, taken, gpu)), suffices


def _changes(run: PlannedRun) -> list[tuple[str, dict[str, Any]]]:
    """Changes that this run can still make, the one that costs least first."""
    rows = run.batch_size * run.accumulation_steps
    tile = run.architecture.hidden_size  # tokens, as in ALST
    changes: list[tuple[bool, str, dict[str, Any]]] = [
        (
            not run.chunked_loss,
            "chunked cross-entropy instead of whole logits: chunked_loss=true",
            {"chunked_loss": True},
        ),
        (
            run.batch_size > 1,
            f"rows one by one: per_device_train_batch_size=1 gradient_accumulation_steps={rows}",
            {"batch_size": 1, "accumulation_steps": rows},
        ),
        (
            run.num_gpus > 1 and run.strategy in ("single", "ddp"),
            "split gradients and optimizer state: --strategy zero2",
            {"strategy": "zero2"},
        ),
        (
            run.num_gpus > 1 and run.strategy not in ("fsdp2", "zero3") and not run.four_bit,
            "split the weights too: --strategy fsdp2",
            {"strategy": "fsdp2"},
        ),
        (
            not run.gradient_checkpointing,
            "gradient checkpointing: gradient_checkpointing=true",
            {"gradient_checkpointing": True},
        ),
        (
            run.optimizer in ("adamw", "adamw_foreach") and run.tuning == "full",
            "optimizer state of one byte: optim=adamw_8bit",
            {"optimizer": "adamw_8bit"},
        ),
        (
            not run.offload_checkpoints,
            "layer inputs in host memory: "
            + ("" if run.gradient_checkpointing else "gradient_checkpointing=true ")
            + "activation_offloading=true",
            {"offload_checkpoints": True, "gradient_checkpointing": True},
        ),
        (
            not run.tiled_mlp and not run.architecture.num_experts,
            f"feed-forward in tiles: tiled_mlp={tile}",
            {"tiled_mlp": tile},
        ),
        (
            run.tuning != "full" and not run.four_bit and run.strategy != "zero3",
            "frozen weights in 4 bits: quantization=nf4",
            {"four_bit": True},
        ),
        (run.tuning == "full", "an adapter instead of every weight: tuning=lora+", {"tuning": "lora+"}),
    ]
    return [(text, change) for possible, text, change in changes if possible]


def _apply(run: PlannedRun, changes: list[tuple[str, dict[str, Any]]]) -> PlannedRun:
    for _, change in changes:
        run = replace(run, **change)
    return run


def _tell(run: PlannedRun, changes: list[tuple[str, dict[str, Any]]], gpu: Gpu | None) -> list[Advice]:
    advice = []
    for text, change in changes:
        changed = replace(run, **change)
        slowdown = plan_duration(changed, gpu).seconds / plan_duration(run, gpu).seconds if gpu else 1.0
        advice.append(Advice(text=text, total_bytes=plan_memory(changed).total, slowdown=slowdown))
        run = changed
    return advice
