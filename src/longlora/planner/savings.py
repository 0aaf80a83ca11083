"""Changes that reduce a run's memory until it fits, the cheapest first."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

from longlora.planner.job import PlannedRun
from longlora.planner.memory import plan_memory

WORTH_NAMING = 0.01  # changes that lower the peak by a smaller fraction are not proposed

KEEP_FREE = 0.10
"""The fraction of a GPU's memory to keep free: the error of plans compared with measured runs."""

KEEP_MORE_FREE = 0.30
"""The same in 4 bits or without checkpointing, where published runs took nearly that much more (docs/plan.md)."""


class Change(NamedTuple):
    """A change to a run."""

    name: str  # one or two words
    what: str  # a short phrase
    run: dict[str, Any]  # as fields of `PlannedRun`
    recipe: dict[str, Any]  # as recipe keys, including `hardware.strategy`

    def __str__(self) -> str:
        return f"{self.what}: {' '.join(map(_as_argument, self.recipe.items()))}"


def _as_argument(setting: tuple[str, Any]) -> str:
    key, value = setting
    if key == "hardware.strategy":
        return f"--strategy {value}"
    shown = str(value).lower() if isinstance(value, bool) else f"[{', '.join(value)}]" if value == ["norm"] else value
    return f"{key}={shown}"


def part_to_keep_free(run: PlannedRun) -> float:
    """Return the fraction of the GPUs' memory to keep free, because plans may be off by that much."""
    return KEEP_MORE_FREE if run.four_bit or not run.gradient_checkpointing else KEEP_FREE


def changed(run: PlannedRun, changes: Sequence[Change]) -> PlannedRun:
    """Return the run with changes applied."""
    return reduce(lambda before, change: replace(before, **change.run), changes, run)


def needed_changes(
    run: PlannedRun, memory_bytes: int, *, with_margin: bool = False, settled: Set[str] = frozenset()
) -> list[Change]:
    """Add changes, the cheapest first, until the run fits, then drop those that turned out to be unnecessary.

    With `with_margin`, the run must also keep `part_to_keep_free` of the memory free. Recipe keys in `settled` are not
    changed. If nothing suffices, all changes that help are returned.
    """

    def fits(run: PlannedRun) -> bool:
        return plan_memory(run).total <= (1 - part_to_keep_free(run) * with_margin) * memory_bytes

    taken: list[Change] = []
    tried: set[str] = set()
    while not fits(current := changed(run, taken)):
        change = next((change for change in _changes(current) if change.name not in tried), None)
        if change is None:
            return taken
        tried.add(change.name)
        after = plan_memory(changed(current, [change])).total
        if after < (1 - WORTH_NAMING) * plan_memory(current).total and not settled & change.recipe.keys():
            taken.append(change)
    for change in reversed(taken[:-1]):  # the most expensive first
        without = [other for other in taken if other is not change]
        if fits(changed(run, without)):
            taken = without
    return taken


def _changes(run: PlannedRun) -> Iterator[Change]:
    """Yield the changes that this run can still make, the cheapest first."""
    full, several = run.tuning == "full", run.num_gpus > 1
    if not run.chunked_loss:
        yield _change("chunked loss", "chunked cross-entropy instead of whole logits", chunked_loss=True)
    if run.batch_size > 1:
        rows = run.batch_size * run.accumulation_steps
        yield Change(
            "single rows",
            "one row at a time",
            {"batch_size": 1, "accumulation_steps": rows},
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows},
        )
    if several and run.strategy in ("single", "ddp"):
        yield _strategy("split gradients and optimizer state", "zero2")
    if several and run.strategy not in ("fsdp2", "zero3") and not run.four_bit:
        yield _strategy("split the weights too", "fsdp2")
    if not run.gradient_checkpointing:
        yield _change("checkpointing", "gradient checkpointing", gradient_checkpointing=True)
    if run.optimizer in ("adamw", "adamw_foreach") and full:
        yield Change("8-bit Adam", "8-bit optimizer state", {"optimizer": "adamw_8bit"}, {"optim": "adamw_8bit"})
    if not run.offload_checkpoints:
        also = {} if run.gradient_checkpointing else {"gradient_checkpointing": True}
        yield Change(
            "offloading",
            "layer inputs in host memory",
            {"offload_checkpoints": True, "gradient_checkpointing": True},
            {**also, "activation_offloading": True},
        )
    if not run.tiled_mlp and not run.architecture.num_experts:
        yield _change("tiles", "feed-forward in tiles", tiled_mlp=run.architecture.hidden_size)  # tokens, as in ALST
    heads, kv_heads = run.architecture.num_heads, run.architecture.num_kv_heads
    divisible = heads % run.num_gpus == 0 and (kv_heads % run.num_gpus == 0 or run.num_gpus % kv_heads == 0)
    if several and divisible and run.sequence_parallel_size == 1:
        shared = {"sequence_parallel_size": run.num_gpus}
        steps = run.accumulation_steps * run.num_gpus
        yield Change(
            "shared rows",
            "each row on all GPUs",
            shared | {"accumulation_steps": steps},
            shared | {"gradient_accumulation_steps": steps},
        )
    if not full and not run.four_bit and run.strategy not in ("zero3", "fsdp2"):  # untested with these (docs/memory.md)
        yield Change("4 bits", "frozen weights in 4 bits", {"four_bit": True}, {"quantization": "nf4"})
    yield from _changes_of_what_is_trained(run)


def _changes_of_what_is_trained(run: PlannedRun) -> Iterator[Change]:
    if run.tuning == "full":
        yield _change("LoRA+", "an adapter instead of all weights", tuning="lora+")
    elif run.trains_embeddings:
        # Most trained parameters of LoRA+ are embeddings, in 32 bits with two moments. Several GPUs shard the state.
        if run.optimizer != "paged_adamw_8bit" and run.num_gpus == 1:
            optimizer = "paged_adamw_8bit"
            yield Change("paged Adam", "optimizer state in host memory", {"optimizer": optimizer}, {"optim": optimizer})
        yield Change(
            "no embeddings",
            "norms alone trained beside LoRA, not embeddings",
            {"train_embeddings": False},
            {"lora.trainable": ["norm"]},
        )


def _change(name: str, what: str, **fields: Any) -> Change:
    """Return a change with the same names in the recipe and in the run."""
    return Change(name, what, fields, fields)


def _strategy(what: str, strategy: str) -> Change:
    return Change(strategy, what, {"strategy": strategy}, {"hardware.strategy": strategy})
