"""Memory of one GPU, item by item, and of the host."""

from collections.abc import Callable
from dataclasses import dataclass

from longlora.planner import activations
from longlora.planner.hardware import GIB
from longlora.planner.run import PlannedRun

CONTEXT_BYTES = GIB // 2
"""CUDA's context, its kernels and cuBLAS' workspace. Assumed."""

COLLECTIVES_BYTES = GIB
"""NCCL's buffers with more than one GPU. Assumed."""

FRAGMENTATION = 0.09
"""What torch's allocator holds beyond what is allocated, as a part of that. Fitted to LongLoRA's row of the paper's
table 12."""

FOUR_BIT_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in NF4: a scale of 8 bits for 64 weights, and one of 32 bits for 256 scales."""

ZERO3_LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default of `stage3_max_live_parameters`: gathered weights that may exist at once."""

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
    """In the memory of a machine that holds all GPUs of the run."""

    moments: dict[str, int]
    """Bytes of activations beyond what layers keep, at each moment that may be the worst; the largest is in `items`."""

    @property
    def total(self) -> int:
        """Bytes on each GPU."""
        return sum(item.bytes for item in self.items)

    @property
    def host_total(self) -> int:
        """Bytes in the host's memory."""
        return sum(item.bytes for item in self.host_items)


def plan_memory(run: PlannedRun) -> Memory:
    """Add up a run's memory at its worst moment."""
    moments = {
        "loss": run.tokens * activations.loss_per_token(run) + activations.loss_fixed(run) + _cast_weights(run),
        "one layer again": run.tokens * activations.layer_activations(run).peak + _layer_copies(run),
    }
    worst = max(moments, key=lambda moment: moments[moment])
    items = [
        *_weights(run),
        *_training_state(run),
        *_communication(run),
        *_kept(run),
        *_peak(run, worst, moments[worst]),
    ]
    margin = round(FRAGMENTATION * sum(item.bytes for item in items))
    items.append(Item(name="fragmentation", bytes=margin, note=f"{FRAGMENTATION:.0%} of the above"))
    framework = CONTEXT_BYTES + (COLLECTIVES_BYTES if run.num_gpus > 1 else 0)
    items.append(Item(name="framework", bytes=framework, note="CUDA context" + (", NCCL" if run.num_gpus > 1 else "")))
    return Memory(items=tuple(item for item in items if item.bytes), host_items=tuple(_host(run)), moments=moments)


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


def _training_state(run: PlannedRun) -> list[Item]:
    """Gradients and optimizer state; DeepSpeed's hold float32 copies of the weights besides."""
    split, trained = _split(run, "optimizer"), run.trained_parameters
    deepspeed = run.strategy in ("zero2", "zero3")
    size = run.compute_bytes if deepspeed else 4
    items = [Item(name="gradients", bytes=split(size * trained), note=_number(size))]
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


def _kept(run: PlannedRun) -> list[Item]:
    kept = run.tokens * activations.kept_layers(run)
    shared = Item(
        name="tokens, positions", bytes=run.tokens * activations.shared_by_layers(run), note="shared by all layers"
    )
    if not run.gradient_checkpointing:
        return [Item(name="activations", bytes=kept, note="of all layers: no gradient checkpointing"), shared]
    if run.offload_checkpoints:
        # The layer in work, and the next one on its way.
        kept = 2 * run.tokens * activations.layer_input(run)
        return [Item(name="layer inputs", bytes=kept, note="2 at a time, the rest on the host"), shared]
    return [Item(name="layer inputs", bytes=kept, note=f"{run.architecture.num_layers} layers, checkpointed"), shared]


def _peak(run: PlannedRun, worst: str, held: int) -> list[Item]:
    if worst == "loss":
        note = "chunked cross-entropy" if run.chunked_loss else "whole, three times in float32"
        copies = _cast_weights(run)
        return [
            Item(name="logits and loss", bytes=held - copies, note=note),
            Item(name="autocast copies", bytes=copies, note="of all trained weights"),
        ]
    layer = activations.layer_activations(run)
    attention, total = run.tokens * layer.attention, run.tokens * layer.peak
    in_mlp = layer.mlp + layer.mlp_gradients >= layer.attention_gradients
    again = run.gradient_checkpointing
    kept = attention + run.tokens * (layer.mlp if in_mlp else 0)
    return [
        Item(name="one layer again", bytes=kept if again else 0, note="activations, recomputed"),
        Item(
            name="gradients in flight" if in_mlp else "attention workspace",
            bytes=total - kept,
            note="of the feed-forward" if in_mlp else "of attention",
        ),
        Item(name="autocast copies", bytes=held - total, note="of a layer's weights"),
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
    processes = run.num_gpus
    size = 4 if run.tuning == "full" and run.mixed else run.compute_bytes
    held = run.num_gpus * run.tokens * activations.layer_input(run) * run.architecture.num_layers
    items = [
        Item(name="processes", bytes=processes * PROCESS_BYTES, note="Python and its libraries"),
        Item(
            name="loading",
            bytes=processes * size * run.architecture.num_parameters,
            note="the weights once in every process, until they are on the GPU",
        ),
        Item(name="layer inputs", bytes=held if run.offload_checkpoints else 0, note="offloaded, pinned"),
        Item(
            name="optimizer",
            bytes=processes * _split(run, "optimizer")(_optimizer_bytes(run))
            if run.optimizer.startswith("paged")
            else 0,
            note="paged",
        ),
    ]
    return [item for item in items if item.bytes]


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
