"""Itemized memory of one GPU and of the host."""

from dataclasses import dataclass

from longlora.planner import activations
from longlora.planner.compute import GIB
from longlora.planner.job import PlannedRun

CONTEXT_BYTES = GIB // 2  # CUDA's context, its kernels and cuBLAS' workspace; assumed
COLLECTIVES_BYTES = GIB  # NCCL's buffers with more than one GPU; assumed
PROCESS_BYTES = 3 * GIB  # host memory of Python, torch and the CUDA libraries in one process; assumed

FRAGMENTATION = 0.09
"""Memory reserved by torch's allocator beyond what is allocated, as a fraction of that. Fitted to LongLoRA's row of the
paper's table 12."""

ROOM_TO_SPARE = 0.40
"""The highest fraction beyond the allocated memory that torch's allocator was seen to reserve on cards with room to
spare (`tests/planner/measured`): freed blocks that fit nothing else. It releases them before memory runs out."""

FOUR_BIT_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # NF4: an 8-bit scale per 64 weights, a 32-bit one per 256 scales
ZERO3_LIVE_PARAMETERS = 1_000_000_000  # weights gathered at once: DeepSpeed's default stage3_max_live_parameters
OFFLOAD_STASH = 5  # tensors still on the GPU while they are copied to the host: TRL's max_fwd_stash_size

LOSS, LAYER, STEP = "loss", "one layer again", "optimizer's step"
_BITS = {2: "16 bits", 4: "32 bits"}


@dataclass(frozen=True)
class Item:
    """One line of the itemized memory."""

    name: str
    bytes: int
    note: str


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """The memory of a run at its peak."""

    items: tuple[Item, ...]  # on each GPU
    host_items: tuple[Item, ...]  # processes, loading, and what is needed once loading is over, for all the GPUs
    moments: dict[str, int]  # bytes on each GPU at each moment that may be the peak, before fragmentation

    @property
    def allocated(self) -> int:
        """The bytes of tensors on each GPU: torch's `max_memory_allocated`."""
        return max(self.moments.values())

    @property
    def reserved_with_room(self) -> int:
        """The most bytes on each GPU that torch's allocator reserves if there is room: its `max_memory_reserved`."""
        return self.allocated + round(ROOM_TO_SPARE * self.allocated)

    @property
    def total(self) -> int:
        """The bytes needed on each GPU."""
        return sum(item.bytes for item in self.items)

    @property
    def host_total(self) -> int:
        """The bytes needed in the host's memory, while loading or while training, whichever is more."""
        processes, loading, *later = (item.bytes for item in self.host_items)
        return processes + max(loading, sum(later))


def plan_memory(run: PlannedRun) -> PeakMemory:
    """Add up a run's memory at each moment that may be its peak."""
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
    return PeakMemory(items=tuple(item for item in items if item.bytes), host_items=_host(run), moments=totals)


def offloaded_bytes(*, num_layers: int, layer_input_bytes: int) -> int:
    """Return one process's host memory for offloaded layer inputs; torch rounds pinned blocks up to powers of 2."""
    return num_layers * (1 << (layer_input_bytes - 1).bit_length())


def _split_weights(run: PlannedRun, total: int) -> int:
    return -(-total // run.num_gpus) if run.strategy in ("zero3", "fsdp2") else total


def _split_state(run: PlannedRun, total: int) -> int:
    """Return each GPU's share of gradients or optimizer state."""
    return -(-total // run.num_gpus) if run.strategy in ("zero2", "zero3", "fsdp2") else total


def _weights(run: PlannedRun) -> list[Item]:
    shape, size, kinds = run.architecture, run.compute_bytes, run.trained_by_kind()
    # Only these are quantized: experts are not `nn.Linear`, and the vision part is left unchanged.
    linear = shape.parameters.attention + (0 if shape.num_experts else shape.parameters.mlp)
    if run.tuning == "full":
        size = 4 if run.mixed or run.strategy == "fsdp2" else size
        return [Item("weights", _split_weights(run, size * shape.num_parameters), _BITS[size])]
    frozen = shape.num_parameters
    if run.trained_in_place:
        frozen -= kinds.get("embeddings", 0) + kinds.get("norms", 0)
    if run.four_bit:
        # PyTorch cannot shard 4-bit weights, so FSDP keeps all of them on each GPU.
        held = round(FOUR_BIT_BYTES * linear) + _split_weights(run, size * (frozen - linear))
        note = f"linear layers in {8 * FOUR_BIT_BYTES:.2f} bits"
    else:
        held, note = _split_weights(run, size * frozen), _BITS[size]
    trained = (size if run.deepspeed else 4) * run.trained_parameters
    return [Item("frozen weights", held, note), Item("trained weights", _split_weights(run, trained), ", ".join(kinds))]


def _training_state(run: PlannedRun, moment: str) -> list[Item]:
    """Return gradients and optimizer state, for DeepSpeed with float32 copies of the weights."""
    trained = there = run.trained_parameters
    size = run.compute_bytes if run.deepspeed else 4
    if moment != STEP and run.accumulation_steps == 1 and not run.deepspeed and run.tuning != "full":
        # The embedding's gradient, by far the largest, is computed last; the previous step's is already freed.
        there -= 0 if run.trains_head else run.trained_by_kind().get("embeddings", 0)
    note = _BITS[size] + ", before the embeddings'" * (there < trained)
    copies = 4 * trained if run.deepspeed else 0
    optimizer = 0 if run.optimizer == "paged_adamw_8bit" else _optimizer_bytes(run)
    # Blocks as large as the whole state, which the allocator does not reuse for activations.
    step = (4 * run.deepspeed + 8 * (run.optimizer == "adamw_foreach")) * trained
    return [
        Item("gradients", _split_state(run, size * there), note),
        Item("float32 copies", _split_state(run, copies), "of the trained weights"),
        Item("optimizer", _split_state(run, optimizer), run.optimizer),
        Item("optimizer step", _split_state(run, step), "gradients in 32 bits, temporaries"),
    ]


def _optimizer_bytes(run: PlannedRun) -> int:
    """Return the bytes of two moments per trained parameter; bitsandbytes keeps those of embeddings in float32."""
    trained = run.trained_parameters
    if not run.optimizer.endswith("8bit"):
        return 8 * trained
    embeddings = run.architecture.parameters.embeddings if run.trains_embeddings else 0
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
        layer = (shape.parameters.attention + shape.parameters.mlp) // shape.num_layers
        root = shape.parameters.embeddings + shape.parameters.lm_head
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
        note = "chunked cross-entropy" if run.chunked_loss else "all logits, three times in float32"
        return [
            Item("logits and loss", activations.loss_bytes(run), note),
            Item("autocast copies", copies, "of all trained weights"),
        ]
    parts = activations.layer_moments(run)
    part = max(parts, key=lambda name: sum(parts[name]))
    kept, in_flight = (run.tokens * amount for amount in parts[part])
    return [
        Item("one layer again", kept if run.gradient_checkpointing else 0, "activations, recomputed"),
        Item("gradients in flight", in_flight, f"of {part}"),
        Item("autocast copies", copies // run.architecture.num_layers, "of a layer's weights"),
    ]


def _autocast_copies(run: PlannedRun) -> int:
    """Return the size of autocast's 16-bit copies of the trained weights, all held at the end of the forward pass."""
    if not run.mixed:
        return 0
    if run.tuning == "full":
        shape = run.architecture
        return run.compute_bytes * (shape.parameters.attention + shape.parameters.mlp + shape.parameters.lm_head)
    return run.compute_bytes * run.trained_by_kind()["lora"]


def _host(run: PlannedRun) -> tuple[Item, ...]:
    shape, offloaded, paged = run.architecture, 0, 0
    if run.offload_checkpoints:
        layer_input = run.tokens * activations.layer_input(run)
        offloaded = offloaded_bytes(num_layers=shape.num_layers, layer_input_bytes=layer_input)
    if run.optimizer == "paged_adamw_8bit":
        paged = _split_state(run, _optimizer_bytes(run))
    copies, note = run.num_gpus, "a copy of the weights in every process, until they are on the GPU"
    if run.strategy == "fsdp2" and not (run.four_bit or shape.tied):  # as models/load.py has it
        copies, note = 1, "a copy of the weights in the main process, which hands them out"
    loading = (4 if run.tuning == "full" else run.compute_bytes) * shape.num_parameters
    if run.tuning != "full" and shape.stored_dtype == run.dtype:
        # Not converted, safetensors are mapped: pages of the file, which the processes share and the system may drop.
        loading = 4 * (run.trained_parameters - run.trained_by_kind()["lora"])
        note = "what is trained beside LoRA, in float32; the rest is mapped from its files"
    items = (
        Item("processes", run.num_gpus * PROCESS_BYTES, "Python and its libraries"),
        Item("loading", copies * loading, note),
        Item("layer inputs", run.num_gpus * offloaded, "offloaded, pinned"),
        Item("optimizer", run.num_gpus * paged, "paged"),
    )
    return items[:2] + tuple(item for item in items[2:] if item.bytes)
