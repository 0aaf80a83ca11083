"""Changes that reduce a run's memory until it fits, the cheapest first."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from functools import partial, reduce
from typing import Any, NamedTuple

from longlora.planner.job import PlannedRun
from longlora.planner.memory import plan_memory

WORTH_NAMING = 0.01  # changes that lower the peak by a smaller fraction are not proposed

KEEP_FREE = 0.10
"""The fraction of a GPU's memory to keep free: the error of plans compared with measured runs."""

KEEP_MORE_FREE = 0.30
"""The same in 4 bits or without checkpointing, where published runs took nearly that much more (docs/plan.md)."""

# Names and values of a run's fields in a recipe, where they differ.
_RECIPE_KEYS = {
    "accumulation_steps": "gradient_accumulation_steps",
    "batch_size": "per_device_train_batch_size",
    "four_bit": "quantization",
    "offload_checkpoints": "activation_offloading",
    "optimizer": "optim",
    "strategy": "hardware.strategy",
    "train_embeddings": "lora.trainable",
}
_RECIPE_VALUES = {"four_bit": "nf4", "train_embeddings": ["norm"]}


class RunChange(NamedTuple):
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


def changed(run: PlannedRun, changes: Sequence[RunChange]) -> PlannedRun:
    """Return the run with changes applied."""
    return reduce(lambda before, change: replace(before, **change.run), changes, run)


def needed_changes(
    run: PlannedRun, memory_bytes: int, *, with_margin: bool = False, settled: Set[str] = frozenset()
) -> list[RunChange]:
    """Add changes, the cheapest first, until the run fits, then drop those that turned out to be unnecessary.

    With `with_margin`, the run must also keep `part_to_keep_free` of the memory free. Recipe keys in `settled` are not
    changed. If nothing suffices, all changes that help are returned.
    """

    def fits(run: PlannedRun) -> bool:
        return plan_memory(run).total <= (1 - part_to_keep_free(run) * with_margin) * memory_bytes

    taken: list[RunChange] = []
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


def _changes(run: PlannedRun) -> Iterator[RunChange]:
    """Yield the changes that this run can still make, the cheapest first."""
    full, several = run.tuning == "full", run.num_gpus > 1
    change = partial(_change, run)
    if not run.chunked_loss:
        yield change("chunked loss", "chunked cross-entropy instead of whole logits", chunked_loss=True)
    if run.batch_size > 1:
        rows = run.batch_size * run.accumulation_steps
        yield change("single rows", "one row at a time", batch_size=1, accumulation_steps=rows)
    if several and run.strategy in ("single", "ddp"):
        yield change("zero2", "split gradients and optimizer state", strategy="zero2")
    if several and run.strategy not in ("fsdp2", "zero3") and not run.four_bit:
        yield change("fsdp2", "split the weights too", strategy="fsdp2")
    if not run.gradient_checkpointing:
        yield change("checkpointing", "gradient checkpointing", gradient_checkpointing=True)
    if run.optimizer in ("adamw", "adamw_foreach") and full:
        yield change("8-bit Adam", "8-bit optimizer state", optimizer="adamw_8bit")
    if not run.offload_checkpoints:
        yield change("offloading", "layer inputs in host memory", gradient_checkpointing=True, offload_checkpoints=True)
    if not run.tiled_mlp and not run.architecture.num_experts:
        yield change("tiles", "feed-forward in tiles", tiled_mlp=run.architecture.hidden_size)  # tokens, as in ALST
    heads, kv_heads = run.architecture.num_heads, run.architecture.num_kv_heads
    divisible = heads % run.num_gpus == 0 and (kv_heads % run.num_gpus == 0 or run.num_gpus % kv_heads == 0)
    if several and divisible and run.sequence_parallel_size == 1:
        steps = run.accumulation_steps * run.num_gpus
        shared = {"sequence_parallel_size": run.num_gpus, "accumulation_steps": steps}
        yield change("shared rows", "each row on all GPUs", **shared)
    if not full and not run.four_bit and run.strategy not in ("zero3", "fsdp2"):  # untested with these (docs/memory.md)
        yield change("4 bits", "frozen weights in 4 bits", four_bit=True)
    if full:
        yield change("LoRA+", "an adapter instead of all weights", tuning="lora+")
    elif run.trains_embeddings:
        # Most trained parameters of LoRA+ are embeddings, in 32 bits with two moments. Several GPUs shard the state.
        if run.optimizer != "paged_adamw_8bit" and run.num_gpus == 1:
            yield change("paged Adam", "optimizer state in host memory", optimizer="paged_adamw_8bit")
        yield change("no embeddings", "norms alone trained beside LoRA, not embeddings", train_embeddings=False)


def _change(run: PlannedRun, name: str, what: str, **fields: Any) -> RunChange:
    """Return a change to fields of the run, and to the recipe keys of those that have another value there."""
    new = {field: value for field, value in fields.items() if getattr(run, field) != value}
    recipe = {_RECIPE_KEYS.get(field, field): _RECIPE_VALUES.get(field, value) for field, value in new.items()}
    return RunChange(name, what, fields, recipe)
