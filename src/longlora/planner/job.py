"""A training run in plain values: all that memory and time depend on."""

from dataclasses import dataclass
from typing import Literal

from longlora.errors import ConfigError
from longlora.planner.architecture import Architecture
from longlora.support.choices import Strategy

Optimizer = Literal["adamw", "adamw_foreach", "adamw_8bit", "paged_adamw_8bit"]


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A training run. Defaults are what `longlora train` does.

    Raises:
        ConfigError: values that exclude one another.
    """

    architecture: Architecture

    context_length: int
    """Tokens of a row."""

    tuning: Literal["lora+", "lora", "full"] = "lora+"
    """What is trained: LoRA with embeddings and norms, LoRA alone, or every weight."""

    lora_rank: int = 8
    """Rank of the update matrices."""

    lora_targets: Literal["attention", "all-linear"] = "attention"
    """Linear layers with an update: those of attention, or those of the feed-forward too."""

    train_embeddings: bool = True
    """With `lora+`: train the input embedding."""

    train_norms: bool = True
    """With `lora+`: train the norms."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of compute, and of frozen weights."""

    strategy: Strategy = "single"
    """`ddp`: every GPU holds everything. `zero2`: gradients and optimizer state are split over the GPUs. `zero3`,
    `fsdp2`: the weights too."""

    num_gpus: int = 1
    """GPUs, each with rows of its own."""

    gradient_checkpointing: bool = True
    """Keep the inputs of layers alone, and compute the rest again in the backward pass."""

    offload_checkpoints: bool = False
    """Hold the inputs of layers in the host's memory until the backward pass."""

    four_bit: bool = False
    """Hold the frozen linear layers in 4 bits (NF4 with double quantisation)."""

    optimizer: Optimizer = "adamw"
    """`adamw`: torch's fused AdamW. `adamw_foreach`: torch's AdamW before it. `adamw_8bit`: bitsandbytes' with states
    of one byte. `paged_adamw_8bit`: the same, in the host's memory."""

    chunked_loss: bool = True
    """Compute cross-entropy tile by tile; without, the logits of a whole row exist at once in float32."""

    tiled_mlp: int | None = None
    """Tokens that go through the feed-forward at a time (ALST, arXiv 2506.13996, section 3.1.1, has `hidden_size`)."""

    attention: Literal["s2", "full"] = "s2"
    """Attention while training."""

    group_size: int | None = None
    """Group of S²-Attn in tokens; None is a quarter of the context."""

    sink_tokens: int = 0
    """First tokens of its document that each group of S²-Attn also sees."""

    dense_finish: float = 0.0
    """Fraction of the steps, at the end, with full attention."""

    batch_size: int = 1
    """Rows per GPU and micro-step."""

    accumulation_steps: int = 8
    """Micro-steps per optimizer step."""

    steps: int = 1000
    """Optimizer steps."""

    reduce_bucket_elements: int = 500_000_000
    """DeepSpeed's `reduce_bucket_size`; two buckets of it are allocated in every backward pass."""

    trained_in_place: bool = False
    """Embeddings and norms are trained as they stand, not as PEFT's copies beside the frozen originals."""

    reentrant_checkpointing: bool = False
    """Checkpointing computes a layer again to its end, as torch's older form does; the newer stops when it has all."""

    rotary_cache_per_layer: bool = False
    """Every layer holds the table of rotary positions for itself, as transformers did up to 4.37."""

    def __post_init__(self) -> None:
        self._check_amounts()
        if self.strategy == "single" and self.num_gpus > 1:
            raise ConfigError(f"strategy=single is for one GPU, found {self.num_gpus}; use ddp, fsdp2, zero2 or zero3")
        if self.four_bit and self.tuning == "full":
            raise ConfigError("weights in 4 bits cannot be trained; use tuning=lora+ or tuning=lora")
        if self.four_bit and self.strategy == "zero3":
            raise ConfigError("strategy=zero3 does not split weights in 4 bits; use ddp or zero2")
        if self.offload_checkpoints and not self.gradient_checkpointing:
            raise ConfigError("offloading is planned with gradient checkpointing only: it needs gradient_checkpointing")
        if self.tiled_mlp and self.architecture.num_experts:
            raise ConfigError(f"tiled_mlp={self.tiled_mlp}: experts do not go in tiles; leave tiled_mlp out")
        if self.group_size is not None and not 1 <= self.group_size <= self.context_length:
            raise ConfigError(
                f"group_size={self.group_size} must lie between 1 and context_length={self.context_length}"
            )

    def _check_amounts(self) -> None:
        for name in ("context_length", "num_gpus", "batch_size", "accumulation_steps", "steps", "lora_rank"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.dense_finish <= 1:
            raise ConfigError(f"dense_finish={self.dense_finish} must lie between 0 and 1")

    @property
    def tokens(self) -> int:
        """Tokens of one micro-step on one GPU."""
        return self.batch_size * self.context_length

    @property
    def group_tokens(self) -> int:
        """Tokens of a group of S²-Attn."""
        return self.group_size or max(1, round(self.context_length / 4))

    @property
    def sees_sinks(self) -> bool:
        """Groups also see tokens at the beginning of their document."""
        return self.attention == "s2" and self.sink_tokens > 0

    @property
    def compute_bytes(self) -> int:
        """Bytes of one number in compute."""
        return 4 if self.dtype == "float32" else 2

    @property
    def mixed(self) -> bool:
        """Trained weights are float32 and torch's autocast computes in 16 bits.

        DeepSpeed casts the whole model to 16 bits and holds float32 copies in the optimizer; FSDP2's mixed precision
        gathers the weights in 16 bits.
        """
        return self.compute_bytes == 2 and self.strategy in ("single", "ddp")

    @property
    def trains_embeddings(self) -> bool:
        """The input embedding is trained."""
        return self.tuning == "full" or (self.tuning == "lora+" and self.train_embeddings)

    @property
    def trains_norms(self) -> bool:
        """The norms are trained."""
        return self.tuning == "full" or (self.tuning == "lora+" and self.train_norms)

    @property
    def trains_mlp(self) -> bool:
        """The linear layers of the feed-forward are trained, or have an update that is."""
        return self.tuning == "full" or (self.lora_targets == "all-linear" and not self.architecture.num_experts)

    @property
    def trains_head(self) -> bool:
        """The output layer is trained."""
        return self.tuning == "full" or (self.trains_embeddings and self.architecture.tied)

    def trained_by_kind(self) -> dict[str, int]:
        """Count trained parameters as `weights` (full fine-tuning), `lora`, `embeddings`, `norms`."""
        shape = self.architecture
        if self.tuning == "full":
            return {"weights": shape.num_parameters}
        linears = shape.attention_linears() + (shape.mlp_linears() if self.lora_targets == "all-linear" else [])
        counts = {"lora": shape.num_layers * sum(self.lora_rank * (left + right) for left, right in linears)}
        if self.trains_embeddings:
            counts["embeddings"] = shape.embedding_parameters
        if self.trains_norms:
            counts["norms"] = shape.norm_parameters
        return counts

    @property
    def trained_parameters(self) -> int:
        """Trained parameters of the whole model."""
        return sum(self.trained_by_kind().values())
