"""Memory of one GPU, item by item, and of the host."""

from dataclasses import dataclass

from longlora.planner import activations
from longlora.planner.compute import GIB
from longlora.planner.job import PlannedRun

CONTEXT_BYTES = GIB // 2  # CUDA's context, its kernels and cuBLAS' workspace; assumed
COLLECTIVES_BYTES = GIB  # NCCL's buffers with more than one GPU; assumed
PROCESS_BYTES = 3 * GIB  # host memory of Python, torch and the CUDA libraries in one process; assumed

FRAGMENTATION = 0.09
"""What torch's allocator holds beyond what is allocated, as a part of that. Fitted to LongLoRA's row of the paper's
table 12."""

ROOM_TO_SPARE = 0.40
"""The most that torch's allocator was seen to keep beyond what was allocated, on cards with room to spare
(`tests/planner/measured`): freed blocks that nothing else fits. It gives them back before memory runs out."""

FOUR_BIT_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # NF4: a scale of 8 bits for 64 weights, one of 32 for 256 scales
ZERO3_LIVE_PARAMETERS = 1_000_000_000  # gathered weights at once: DeepSpeed's default of stage3_max_live_parameters
OFFLOAD_STASH = 5  # tensors on their way to the host that still stand on the GPU: max_fwd_stash_size of TRL

PROCESSES, LOADING = "processes", "loading"
LOSS, LAYER, STEP = "loss", "one layer again", "optimizer's step"
_BITS = {2: "16 bits", 4: "32 bits"}


@dataclass(frozen=True)
class Item:
    """One line of the sum."""

    name: str
    bytes: int
    note: str


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a run holds at its worst moment."""

    items: tuple[Item, ...]  # on each GPU
    host_items: tuple[Item, ...]  # on a machine that holds all GPUs; what loads is gone when the rest comes
    moments: dict[str, int]  # bytes on each GPU at each moment that may be the worst, before fragmentation

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
        processes, loading = by_name.pop(PROCESSES), by_name.pop(LOADING)
        return processes + max(loading, sum(by_name.values()))


def plan_memory(run: PlannedRun) -> Memory:
    """Add up a run's memory at each moment that may be its worst."""
    moments: dict[str, list[Item]] = {}
    for moment in (LOSS, LAYER, STEP):
        moments[moment] = [*_weights(run), *_training_state(run, moment), *_communication(run)]
        if moment != STEP:
            moments[moment] += [*_kept(run, moment), *_peak(run, moment)]
    totals = {moment: sum(item.bytes for item in items) for moment, items in moments.items()}
    worst = max(totals, key=lambda moment: totals[moment])
    several = run.num_gpus > 1
    items = [
        *moments[worst],
        Item("fragmentation", round(FRAGMENTATION * totals[worst]), f"{FRAGMENTATION:.0%} of the above"),
        Item("framework", CONTEXT_BYTES + COLLECTIVES_BYTES * several, "CUDA context" + ", NCCL" * several),
    ]
    return Memory(items=tuple(item for item in items if item.bytes), host_items=_host(run), moments=totals)


def offloaded_bytes(*, num_layers: int, layer_input_bytes: int) -> int:
    """What one process takes from the host for offloaded layer inputs: torch rounds pinned memory up to powers of 2."""
    return num_layers * (1 << (layer_input_bytes - 1).bit_length())


def _split_weights(run: PlannedRun, total: int) -> int:
    return -(-total // run.num_gpus) if run.strategy in ("zero3", "fsdp2") else total


def _split_state(run: PlannedRun, total: int) -> int:
    """Each GPU's part of the gradients and of the optimizer's state."""
    return -(-total // run.num_gpus) if run.strategy in ("zero2", "zero3", "fsdp2") else total


def _weights(run: PlannedRun) -> list[Item]:
    shape, size, kinds = run.architecture, run.compute_bytes, run.trained_by_kind()
    # Experts are no linear layers, and what reads images stays as it is.
    linear = shape.attention_parameters + (0 if shape.num_experts else shape.mlp_parameters)
    if run.tuning == "full":
        size = 4 if run.mixed or run.strategy == "fsdp2" else size
        return [Item("weights", _split_weights(run, size * shape.num_parameters), _BITS[size])]
    frozen = shape.num_parameters
    if run.trained_in_place:
        frozen -= kinds.get("embeddings", 0) + kinds.get("norms", 0)
    if run.four_bit:
        # PyTorch cannot split bytes of 4-bit weights over GPUs, so FSDP leaves them whole on each.
        held = round(FOUR_BIT_BYTES * linear) + _split_weights(run, size * (frozen - linear))
        note = f"linear layers in {8 * FOUR_BIT_BYTES:.2f} bits"
    else:
        held, note = _split_weights(run, size * frozen), _BITS[size]
    trained = (size if run.deepspeed else 4) * run.trained_parameters
    return [
        Item("frozen weights", held, note),
        Item("trained weights", _split_weights(run, trained), ", ".join(kinds)),
    ]


def _training_state(run: PlannedRun, moment: str) -> list[Item]:
    """Gradients and optimizer state; DeepSpeed's hold float32 copies of the weights besides."""
    trained = there = run.trained_parameters
    size = run.compute_bytes if run.deepspeed else 4
    if moment != STEP and run.accumulation_steps == 1 and not run.deepspeed and run.tuning != "full":
        # The embedding's gradient, nearly all of them, comes last; nothing is left of the step before.
        there -= 0 if run.trains_head else run.trained_by_kind().get("embeddings", 0)
    note = _BITS[size] + ", embeddings' not yet" * (there < trained)
    copies = 4 * trained if run.deepspeed else 0
    optimizer = 0 if run.optimizer == "paged_adamw_8bit" else _optimizer_bytes(run)
    # Blocks as large as the whole state, which the allocator does not hand to activations.
    step = (4 * run.deepspeed + 8 * (run.optimizer == "adamw_foreach")) * trained
    return [
        Item("gradients", _split_state(run, size * there), note),
        Item("float32 copies", _split_state(run, copies), "of the trained weights"),
        Item("optimizer", _split_state(run, optimizer), run.optimizer),
        Item("optimizer step", _split_state(run, step), "gradients in 32 bits, temporaries"),
    ]


def _optimizer_bytes(run: PlannedRun) -> int:
    """Two moments for every trained number; bitsandbytes leaves those of embeddings in float32."""
    trained = run.trained_parameters
    if not run.optimizer.endswith("8bit"):
        return 8 * trained
    embeddings = run.architecture.embedding_parameters if run.trains_embeddings else 0
    return 8 * embeddings + round((2 + 8 / 256) * (trained - embeddings))


def _communication(run: PlannedRun) -> list[Item]:
    shape, size, trained = run.architecture, run.compute_bytes, run.trained_parameters
    if run.strategy == "ddp" and run.num_gpus > 1:
        return [Item("communication", 4 * trained, "DDP's buckets of gradients")]
    if run.deepspeed:
        live = min(ZERO3_LIVE_PARAMETERS, shape.num_parameters) if run.strategy == "zero3" else 0
        held = size * (2 * run.reduce_bucket_elements + live)
        return [Item("communication", held, "two buckets" + ", live weights" * bool(live))]
    if run.strategy == "fsdp2":
        layer = (shape.attention_parameters + shape.mlp_parameters) // shape.num_layers
        root = shape.embedding_parameters + shape.head_parameters
        gathered = size * ((0 if run.four_bit else 2 * layer) + root)
        return [
            Item("communication", gathered + 4 * trained // shape.num_layers, "gathered: 2 layers, embeddings, head")
        ]
    return []


def _kept(run: PlannedRun, moment: str) -> list[Item]:
    kept, num_layers = run.tokens * activations.kept_layers(run), run.architecture.num_layers
    name, note = "layer inputs", f"{num_layers} layers, checkpointed"
    if not run.gradient_checkpointing:
        name, note = "activations", "of all layers: no gradient checkpointing"
    elif run.offload_checkpoints:
        here = min(num_layers, OFFLOAD_STASH if moment == LOSS else 1)
        kept, note = kept // num_layers * here, f"{here} at a time, the rest on the host"
    shared = run.tokens * activations.shared_by_layers(run)
    return [Item(name, kept, note), Item("tokens, positions", shared, "shared by all layers")]


def _peak(run: PlannedRun, moment: str) -> list[Item]:
    copies = _autocast_copies(run)
    if moment == LOSS:
        held = run.tokens * activations.loss_per_token(run) + activations.loss_fixed(run)
        note = "chunked cross-entropy" if run.chunked_loss else "whole, three times in float32"
        return [Item("logits and loss", held, note), Item("autocast copies", copies, "of all trained weights")]
    parts = activations.layer_moments(run)
    part = max(parts, key=lambda name: sum(parts[name]))
    kept, in_flight = (run.tokens * amount for amount in parts[part])
    return [
        Item("one layer again", kept if run.gradient_checkpointing else 0, "activations, recomputed"),
        Item("gradients in flight", in_flight, f"of {part}"),
        Item("autocast copies", copies // run.architecture.num_layers, "of a layer's weights"),
    ]


def _autocast_copies(run: PlannedRun) -> int:
    """At the end of the forward pass autocast holds a 16-bit copy of every trained weight that it multiplied with."""
    if not run.mixed:
        return 0
    if run.tuning == "full":
        shape = run.architecture
        return run.compute_bytes * (shape.attention_parameters + shape.mlp_parameters + shape.head_parameters)
    return run.compute_bytes * run.trained_by_kind()["lora"]


def _host(run: PlannedRun) -> tuple[Item, ...]:
    shape, offloaded, paged = run.architecture, 0, 0
    if run.offload_checkpoints:
        layer_input = run.tokens * activations.layer_input(run)
        offloaded = offloaded_bytes(num_layers=shape.num_layers, layer_input_bytes=layer_input)
    if run.optimizer == "paged_adamw_8bit":
        paged = _split_state(run, _optimizer_bytes(run))
    # By every process for itself, in float32 where all weights are trained.
    loading = (4 if run.tuning == "full" else run.compute_bytes) * shape.num_parameters
    items = (
        Item(PROCESSES, run.num_gpus * PROCESS_BYTES, "Python and its libraries"),
        Item(LOADING, run.num_gpus * loading, "the weights once in every process, until they are on the GPU"),
        Item("layer inputs", run.num_gpus * offloaded, "offloaded, pinned"),
        Item("optimizer", run.num_gpus * paged, "paged"),
    )
    return tuple(item for item in items if item.bytes)
