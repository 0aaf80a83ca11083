"""A training run in plain values: everything that memory and time depend on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from longlora.errors import ConfigError
from longlora.planner.architecture import Architecture
from longlora.rope.extend import extended_parameters
from longlora.rope.methods import LENGTH_DEPENDENT
from longlora.support.choices import DEFAULT_GROUP_RATIO, AttentionPattern, LoraTargets, Strategy, Tuning

Optimizer = Literal["adamw", "adamw_foreach", "adamw_8bit", "paged_adamw_8bit"]
"""`adamw`: torch's fused AdamW. `adamw_foreach`: torch's earlier implementation. `adamw_8bit`: bitsandbytes' AdamW with
8-bit state. `paged_adamw_8bit`: the same, with the state in host memory."""


def check_position_split(sequence_parallel_size: int, rope_parameters: Mapping[str, Any]) -> None:
    """Check that a model's positions do not depend on the whole row, which several processes share.

    Raises:
        ConfigError: they do.
    """
    if sequence_parallel_size == 1:
        return
    if (kind := extended_parameters(rope_parameters).get("rope_type")) in LENGTH_DEPENDENT:
        raise ConfigError(
            f"sequence_parallel_size={sequence_parallel_size}: rope_type={kind} depends on the longest document; use "
            "yarn, or train it with each row in one process"
        )


def check_head_split(sequence_parallel_size: int, num_heads: int, num_kv_heads: int) -> None:
    """Check that the attention heads of a model can be divided among the processes that share a row.

    Raises:
        ConfigError: they cannot.
    """
    size = sequence_parallel_size
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        raise ConfigError(
            f"sequence_parallel_size={size} must divide the model's {num_heads} query heads, and divide its "
            f"{num_kv_heads} key-value heads or be a multiple of them"
        )


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A training run. Defaults are those of `longlora train`; a recipe (`longlora.config`) checks each value by itself.

    Raises:
        ConfigError: the model, the strategy and the memory optimizations exclude one another.
    """

    architecture: Architecture
    context_length: int  # tokens of a row

    tuning: Tuning = "lora+"  # LoRA with embeddings and norms, LoRA alone, or every weight
    lora_rank: int = 8
    lora_targets: LoraTargets = "attention"
    train_embeddings: bool = True  # with lora+, like train_norms
    train_norms: bool = True
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"  # of compute, and of frozen weights
    four_bit: bool = False  # the frozen linear layers in NF4 with double quantization
    optimizer: Optimizer = "adamw"

    strategy: Strategy = "single"
    num_gpus: int = 1
    sequence_parallel_size: int = 1  # GPUs that share each row, by Ulysses
    batch_size: int = 1  # rows per GPU and micro-step
    accumulation_steps: int = 8  # micro-steps per optimizer step
    steps: int = 1000  # optimizer steps

    attention: AttentionPattern = "s2"  # while training
    group_size: int | None = None  # tokens; None: a quarter of the context
    shift: bool = True  # whether half of the heads have groups shifted by half a group
    sink_tokens: int = 0  # first tokens of a document that each of its S²-Attn groups also sees
    dense_finish: float = 0.0  # fraction of the steps, at the end, with full attention
    full_attention_interval: int | None = None  # one layer in so many has full attention, of those without a window

    gradient_checkpointing: bool = True
    offload_checkpoints: bool = False  # the inputs of layers in the host's memory until the backward pass
    chunked_loss: bool = True  # cross-entropy tile by tile; otherwise all logits of a row at once in float32
    tiled_mlp: int | None = None  # tokens in the feed-forward at a time (arXiv 2506.13996, section 3.1.1)

    # Settings of other projects' runs, whose measurements are compared with plans.
    reduce_bucket_elements: int = 500_000_000  # DeepSpeed's reduce_bucket_size; a backward pass allocates two
    trained_in_place: bool = False  # embeddings and norms trained directly, not as PEFT's copies of frozen originals
    reentrant_checkpointing: bool = False  # torch's older form, which recomputes a layer to its end
    rotary_cache_per_layer: bool = False  # as in transformers up to 4.37

    def __post_init__(self) -> None:
        if self.strategy == "single" and self.num_gpus > 1:
            raise ConfigError(f"strategy=single is for one GPU, found {self.num_gpus}; use ddp, fsdp2, zero2 or zero3")
        if self.num_gpus % self.sequence_parallel_size:
            raise ConfigError(
                f"sequence_parallel_size={self.sequence_parallel_size} must divide the number of GPUs, found "
                f"{self.num_gpus}"
            )
        if (self.full_attention_interval or 0) > self.num_unwindowed_layers:
            raise ConfigError(
                f"attention.full_attention_interval={self.full_attention_interval} must not exceed the "
                f"{self.num_unwindowed_layers} layers of {self.architecture.name} that train in groups"
            )
        check_head_split(self.sequence_parallel_size, self.architecture.num_heads, self.architecture.num_kv_heads)
        if self.four_bit and self.strategy == "zero3":
            raise ConfigError("strategy=zero3 does not split weights in 4 bits; use ddp or zero2")
        if self.offload_checkpoints and not self.gradient_checkpointing:
            raise ConfigError("offloading can be planned only with gradient_checkpointing; switch it on")
        if self.tiled_mlp and self.architecture.num_experts:
            raise ConfigError(f"tiled_mlp={self.tiled_mlp}: experts cannot be tiled; leave tiled_mlp out")

    @property
    def tokens(self) -> int:
        """The tokens of one micro-step on one GPU."""
        return -(-self.batch_size * self.context_length // self.sequence_parallel_size)

    @property
    def group_tokens(self) -> int:
        """The group size of S²-Attn in tokens."""
        return self.group_size or max(1, round(self.context_length * DEFAULT_GROUP_RATIO))

    @property
    def num_unwindowed_layers(self) -> int:
        """The number of layers without a window of their own."""
        return self.architecture.num_layers - self.architecture.num_sliding_layers

    @property
    def sees_sinks(self) -> bool:
        """Whether groups also see sink tokens."""
        return self.attention == "s2" and self.sink_tokens > 0

    @property
    def kernel_kv_size(self) -> int:
        """The width of the keys in attention, per token that a GPU holds; GPUs that share a row may need the same."""
        return self.architecture.kv_size * max(1, self.sequence_parallel_size // self.architecture.num_kv_heads)

    @property
    def compute_bytes(self) -> int:
        """The bytes of one number in compute."""
        return 4 if self.dtype == "float32" else 2

    @property
    def mixed(self) -> bool:
        """Whether trained weights are float32 and torch's autocast computes in 16 bits.

        DeepSpeed instead casts the whole model to 16 bits and keeps float32 copies in the optimizer; FSDP2's mixed
        precision gathers the weights in 16 bits.
        """
        return self.compute_bytes == 2 and self.strategy in ("single", "ddp")

    @property
    def deepspeed(self) -> bool:
        """Whether the strategy is one of DeepSpeed's."""
        return self.strategy in ("zero2", "zero3")

    @property
    def trains_embeddings(self) -> bool:
        """Whether the input embedding is trained."""
        return self.tuning == "full" or (self.tuning == "lora+" and self.train_embeddings)

    @property
    def trains_norms(self) -> bool:
        """Whether the norms are trained."""
        return self.tuning == "full" or (self.tuning == "lora+" and self.train_norms)

    @property
    def trains_mlp(self) -> bool:
        """Whether the linear layers of the feed-forward are trained, themselves or by LoRA."""
        return self.tuning == "full" or (self.lora_targets == "all-linear" and not self.architecture.num_experts)

    @property
    def trains_head(self) -> bool:
        """Whether the output layer is trained."""
        return self.tuning == "full" or (self.trains_embeddings and self.architecture.tied)

    def trained_by_kind(self) -> dict[str, int]:
        """Count trained parameters as `weights` (full fine-tuning), `lora`, `embeddings`, `norms`."""
        shape = self.architecture
        if self.tuning == "full":
            return {"weights": shape.num_parameters}
        linears = shape.attention_linears() + (shape.mlp_linears() if self.lora_targets == "all-linear" else [])
        counts = {"lora": shape.num_layers * sum(self.lora_rank * (left + right) for left, right in linears)}
        if self.trains_embeddings:
            counts["embeddings"] = shape.parameters.embeddings
        if self.trains_norms:
            counts["norms"] = shape.parameters.norms
        return counts

    @property
    def trained_parameters(self) -> int:
        """The number of trained parameters."""
        return sum(self.trained_by_kind().values())
