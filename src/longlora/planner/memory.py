"""Memory of one GPU, item by item, and of the host."""

from collections.abc import Callable
from dataclasses import dataclass

from longlora.planner import activations
from longlora.planner.hardware import GIB
from longlora.planner.job import PlannedRun

CONTEXT_BYTES = GIB // 2
"""CUDA's context, its kernels and cuBLAS' workspace. Assumed."""

COLLECTIVES_BYTES = GIB
"""NCCL's buffers with more than one GPU. Assumed."""

FRAGMENTATION = 0.09
"""What torch's allocator holds beyond what is allocated, as a part of that. Fitted to LongLoRA's row of the paper's
table 12."""

ROOM_TO_SPARE = 0.40
"""The most that torch's allocator was seen to keep beyond what was allocated, on cards with room to spare
(`tests/planner/measured`): freed blocks that nothing else fits. It gives them back before memory runs out."""

FOUR_BIT_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in NF4: a scale of 8 bits for 64 weights, and one of 32 bits for 256 scales."""

ZERO3_LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default of `stage3_max_live_parameters`: gathered weights that may exist at once."""

OFFLOAD_STASH = 5
"""Tensors on their way to the host that still stand on the GPU in the forward pass: `max_fwd_stash_size` of TRL."""

PROCESSES, LOADING = "processes", "loading"
LOSS, LAYER, STEP = "loss", "one layer again", "optimizer's step"

PROCESS_BYTES = 3 * GIB
"""Host memory of Python, torch and the CUDA libraries in one process. Assumed."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One line of the sum."""

    name: str
    bytes: int
    note: str


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a run holds at its worst moment."""

    items: tuple[Item, ...]
    """On each GPU."""

    host_items: tuple[Item, ...]
    """In the memory of a machine that holds all GPUs of the run; what loads is gone when the rest comes."""

    moments: dict[str, int]
    """Bytes on each GPU at each moment that may be the worst, before fragmentation; the largest is what `items` add up
    to."""

    @property
    def allocated(self) -> int:
        """Bytes on each GPU in tensors: torch's `max_memory_allocated`."""
        return max(self.moments.values())

    @property
    def reserved_with_room(self) -> int:
        """Bytes on each GPU that torch's allocator takes at most where it may: its `max_memory_reserved`."""
        return self.allocated + round(ROOM_TO_SPARE * self.allocated)

    @property
    def total(self) -> int:
        """Bytes on each GPU."""
        return sum(item.bytes for item in self.items)

    @property
    def host_total(self) -> int:
        """Bytes in the host's memory, while it loads or while it trains."""
        by_name = {item.name: item.bytes for item in self.host_items}
        processes, loading = by_name[PROCESSES], by_name[LOADING]
        return processes + max(loading, sum(by_name.values()) - processes - loading)


def plan_memory(run: PlannedRun) -> Memory:
    """Add up a run's memory at each moment that may be its worst."""
    moments: dict[str, list[Item]] = {
        moment: [
            *_weights(run),
            *_training_state(run, moment),
            *_communication(run),
            *_kept(run, moment),
            *_peak(run, moment),
        ]
        for moment in (LOSS, LAYER, STEP)
    }
    totals = {moment: sum(item.bytes for item in items) for moment, items in moments.items()}
    worst = max(totals, key=lambda moment: totals[moment])
    margin = round(FRAGMENTATION * totals[worst])
    framework = CONTEXT_BYTES + (COLLECTIVES_BYTES if run.num_gpus > 1 else 0)
    items = [
        *moments[worst],
        Item(name="fragmentation", bytes=margin, note=f"{FRAGMENTATION:.0%} of the above"),
        Item(name="framework", bytes=framework, note="CUDA context" + (", NCCL" if run.num_gpus > 1 else "")),
    ]
    return Memory(items=tuple(item for item in items if item.bytes), host_items=tuple(_host(run)), moments=totals)


def offloaded_bytes(*, num_layers: int, layer_input_bytes: int) -> int:
    """What one process takes from the host for offloaded layer inputs: torch rounds pinned memory up to powers of 2."""
    return num_layers * (1 << (layer_input_bytes - 1).bit_length())


def _weights(run: PlannedRun) -> list[Item]:
    shape, split = run.architecture, _split(run, "weights")
    linear = shape.attention_parameters + shape.mlp_parameters
    if run.tuning == "full":
        size = 4 if run.mixed or run.strategy == "fsdp2" else run.compute_bytes
        return [Item(name="weights", bytes=split(size * shape.num_parameters), note=_number(size))]
    frozen = shape.num_parameters - (_trained_originals(run) if run.trained_in_place else 0)
    if run.four_bit:
        # PyTorch cannot split bytes of 4-bit weights over GPUs, so FSDP leaves them whole on each.
        held = round(FOUR_BIT_BYTES * linear) + split(run.compute_bytes * (frozen - linear))
        note = f"linear layers in {8 * FOUR_BIT_BYTES:.2f} bits"
    else:
        held, note = split(run.compute_bytes * frozen), _number(run.compute_bytes)
    size = run.compute_bytes if run.strategy in ("zero2", "zero3") else 4
    kinds = ", ".join(run.trained_by_kind())
    return [
        Item(name="frozen weights", bytes=held, note=note),
        Item(name="trained weights", bytes=split(size * run.trained_parameters), note=f"{kinds}"),
    ]


def _training_state(run: PlannedRun, moment: str) -> list[Item]:
    """Gradients and optimizer state; DeepSpeed's hold float32 copies of the weights besides."""
    split, trained = _split(run, "optimizer"), run.trained_parameters
    deepspeed = run.strategy in ("zero2", "zero3")
    size = run.compute_bytes if deepspeed else 4
    there, note = trained, _number(size)
    if moment != STEP and run.accumulation_steps == 1 and not deepspeed and run.tuning != "full":
        # The embedding's gradient, nearly all of them, comes last; nothing is left of the step before.
        there -= 0 if run.trains_head else run.trained_by_kind().get("embeddings", 0)
        note += ", embeddings' not yet" * (there < trained)
    items = [Item(name="gradients", bytes=split(size * there), note=note)]
    if deepspeed:
        items.append(Item(name="float32 copies", bytes=split(4 * trained), note="of the trained weights"))
    if run.optimizer != "paged_adamw_8bit":
        items.append(Item(name="optimizer", bytes=split(_optimizer_bytes(run)), note=run.optimizer))
    step = (4 if deepspeed else 0) + (8 if run.optimizer == "adamw_foreach" else 0)
    # Blocks as large as the whole state, which the allocator does not hand to activations.
    items.append(Item(name="optimizer step", bytes=split(step * trained), note="gradients in 32 bits, temporaries"))
    return items


def _optimizer_bytes(run: PlannedRun) -> int:
    """Two moments for every trained number; bitsandbytes leaves those of embeddings in float32."""
    trained = run.trained_parameters
    if not run.optimizer.endswith("8bit"):
        return 8 * trained
    embeddings = run.architecture.embedding_parameters if run.trains_embeddings else 0
    return 8 * embeddings + round((2 + 8 / 256) * (trained - embeddings))


def _communication(run: PlannedRun) -> list[Item]:
    shape, trained = run.architecture, run.trained_parameters
    if run.strategy == "ddp" and run.num_gpus > 1:
        return [Item(name="communication", bytes=4 * trained, note="DDP's buckets of gradients")]
    if run.strategy in ("zero2", "zero3"):
        buckets = 2 * run.compute_bytes * run.reduce_bucket_elements
        live = min(ZERO3_LIVE_PARAMETERS, shape.num_parameters) * run.compute_bytes if run.strategy == "zero3" else 0
        return [Item(name="communication", bytes=buckets + live, note="two buckets" + (", live weights" * bool(live)))]
    if run.strategy == "fsdp2":
        layer = (shape.attention_parameters + shape.mlp_parameters) // shape.num_layers
        root = shape.embedding_parameters + shape.head_parameters
        gathered = run.compute_bytes * ((0 if run.four_bit else 2 * layer) + root)
        reduced = 4 * trained // shape.num_layers
        return [Item(name="communication", bytes=gathered + reduced, note="gathered: 2 layers, embeddings, head")]
    return []


def _kept(run: PlannedRun, moment: str) -> list[Item]:
    if moment == STEP:
        return []
    kept = run.tokens * activations.kept_layers(run)
    shared = Item(
        name="tokens, positions", bytes=run.tokens * activations.shared_by_layers(run), note="shared by all layers"
    )
    if not run.gradient_checkpointing:
        return [Item(name="activations", bytes=kept, note="of all layers: no gradient checkpointing"), shared]
    num_layers = run.architecture.num_layers
    note = f"{num_layers} layers, checkpointed"
    if run.offload_checkpoints:
        here = min(num_layers, OFFLOAD_STASH if moment == LOSS else 1)
        kept, note = kept // num_layers * here, f"{here} at a time, the rest on the host"
    return [Item(name="layer inputs", bytes=kept, note=note), shared]


def _peak(run: PlannedRun, moment: str) -> list[Item]:
    if moment == STEP:
        return []
    if moment == LOSS:
        note = "chunked cross-entropy" if run.chunked_loss else "whole, three times in float32"
        held = run.tokens * activations.loss_per_token(run) + activations.loss_fixed(run)
        return [
            Item(name="logits and loss", bytes=held, note=note),
            Item(name="autocast copies", bytes=_cast_weights(run), note="of all trained weights"),
        ]
    parts = activations.layer_activations(run).moments
    part = max(parts, key=lambda name: sum(parts[name]))
    kept, in_flight = (run.tokens * amount for amount in parts[part])
    return [
        Item(name="one layer again", bytes=kept if run.gradient_checkpointing else 0, note="activations, recomputed"),
        Item(name="gradients in flight", bytes=in_flight, note=f"of {part}"),
        Item(name="autocast copies", bytes=_layer_copies(run), note="of a layer's weights"),
    ]


def _layer_copies(run: PlannedRun) -> int:
    return _cast_weights(run) // run.architecture.num_layers


def _cast_weights(run: PlannedRun) -> int:
    """At the end of the forward pass autocast holds a 16-bit copy of every trained weight that it multiplied with."""
    if not run.mixed:
        return 0
    kinds = run.trained_by_kind()
    if run.tuning == "full":
        shape = run.architecture
        return run.compute_bytes * (shape.attention_parameters + shape.mlp_parameters + shape.head_parameters)
    return run.compute_bytes * kinds["lora"]


def _host(run: PlannedRun) -> list[Item]:
    processes, offloaded, paged = run.num_gpus, 0, 0
    if run.offload_checkpoints:
        offloaded = offloaded_bytes(
            num_layers=run.architecture.num_layers, layer_input_bytes=run.tokens * activations.layer_input(run)
        )
    if run.optimizer.startswith("paged"):
        paged = _split(run, "optimizer")(_optimizer_bytes(run))
    items = [
        Item(name=PROCESSES, bytes=processes * PROCESS_BYTES, note="Python and its libraries"),
        _loading(run),
        Item(name="layer inputs", bytes=processes * offloaded, note="offloaded, pinned"),
        Item(name="optimizer", bytes=processes * paged, note="paged"),
    ]
    return [item for item in items if item.bytes]


def _loading(run: PlannedRun) -> Item:
    """The weights as they are loaded: by every process for itself, in float32 where all of them are trained."""
    copies, size = run.num_gpus, 4 if run.tuning == "full" else run.compute_bytes
    return Item(
        name=LOADING,
        bytes=copies * size * run.architecture.num_parameters,
        note="the weights once in every process, until they are on the GPU",
    )


def _split(run: PlannedRun, part: str) -> Callable[[int], int]:
    """How the strategy divides `weights` or `optimizer` (with the gradients) over the GPUs."""
    parts = {"zero2": {"optimizer"}, "zero3": {"optimizer", "weights"}, "fsdp2": {"optimizer", "weights"}}
    divisor = run.num_gpus if part in parts.get(run.strategy, set()) else 1
    return lambda total: -(-total // divisor)


def _trained_originals(run: PlannedRun) -> int:
    kinds = run.trained_by_kind()
    return kinds.get("embeddings", 0) + kinds.get("norms", 0)


def _number(size: int) -> str:
    return {2: "16 bits", 4: "32 bits"}[size]
