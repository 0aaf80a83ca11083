"""The recipe: all settings of a run, each with a description and a unit."""

import math
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from longlora.config.optimizers import DEFAULT, check_optimizer, check_schedule
from longlora.config.sections import AttentionConfig, DataConfig, HardwareConfig, LoraConfig, RopeConfig, Section
from longlora.support.choices import DtypeName, Quantization, Trainable, Tuning


class Recipe(Section):
    """All settings of a run. The defaults are those of the paper (section 4.1 and appendix B)."""

    model_name_or_path: str
    """The pretrained model: a directory or a hub name; `tiny` is the bundled model."""
    output_dir: str
    """Folder for the run: checkpoints, metrics, the final adapter."""
    context_length: int = Field(gt=0)
    """New context length in tokens. Rows of texts have exactly this length, rows of conversations at most this
    length."""

    data: DataConfig
    """What to train on."""
    attention: AttentionConfig = AttentionConfig()
    """Attention while training."""
    rope: RopeConfig = RopeConfig()
    """Position scaling."""

    tuning: Tuning = "lora+"
    """`lora+`: LoRA with trainable embeddings and norms (the paper, section 3.3); `lora`: LoRA alone; `full`: every
    weight."""
    lora: LoraConfig = LoraConfig()
    """The low-rank adapter."""
    new_tokens: tuple[str, ...] = ()
    """Tokens to add to the tokenizer; they use free rows of the embedding first. The embedding is resized only if
    needed for them."""

    max_steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    num_train_epochs: float | None = Field(default=None, gt=0)
    """Passes over the rows, instead of `max_steps`."""
    per_device_train_batch_size: int = Field(default=1, ge=1)
    """Rows per device and micro-step."""
    gradient_accumulation_steps: int = Field(default=8, ge=1)
    """Micro-steps per optimizer step."""
    sequence_parallel_size: int = Field(default=1, ge=1)
    """Processes that share each row: each holds a part of its tokens, and in attention a part of the heads
    (docs/strategies.md)."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate (the paper: 2e-5 for 7B and 13B, 1e-5 for 70B)."""
    embedding_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the embeddings, which are most of what LoRA+ trains; by default `learning_rate`."""
    lr_scheduler_type: Annotated[str, AfterValidator(check_schedule)] = "constant_with_warmup"
    """Learning rate schedule, by its name in transformers."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps of linear warm-up."""

    optim: Annotated[str, AfterValidator(check_optimizer)] = DEFAULT
    """Optimizer, by its name in transformers. `adamw_8bit` has a quarter of AdamW's state; `paged_adamw_8bit` also
    moves it to the host when the GPU is full. Both need bitsandbytes and keep the state of embeddings in 32 bits."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first moment decay."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's second moment decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Maximum gradient norm; larger gradients are scaled down."""

    dtype: DtypeName = "auto"
    """Type of weights and computation in training; `auto`: bfloat16 if the device supports it, else float32."""
    quantization: Quantization | None = None
    """`nf4`: the base's linear layers in 4 bits during training (QLoRA). Trained and saved weights are not
    quantized."""

    gradient_checkpointing: bool = True
    """Recompute each layer in the backward pass instead of keeping its activations."""
    activation_offloading: bool = False
    """Keep what the backward pass needs in host memory; with `gradient_checkpointing`, these are the layers' inputs."""
    tiled_mlp: int | None = Field(default=None, ge=1)
    """Tokens per tile of a feed-forward layer; each tile is recomputed in the backward pass. By default, one tile for
    the whole row."""
    chunked_loss: bool = True
    """Compute the loss in chunks, without materializing the logits of the whole row (tokens × vocabulary)."""

    far_target_weight: float = Field(default=0.0, ge=0)
    """Extra loss weight for targets that follow many tokens of their own document (EXACT, arXiv 2605.10544); rarer
    lengths get more of it. 0: all targets have the same weight. Validation is never weighted."""
    far_target_beyond: int | None = Field(default=None, ge=1)
    """Number of preceding tokens from which a target counts as far, rounded up to a power of two; by default a quarter
    of `context_length`."""

    logging_steps: int = Field(default=1, ge=1)
    """Steps between lines of `metrics.jsonl`."""
    eval_steps: int = Field(default=100, ge=1)
    """Steps between measurements on `data.validation_source`, which is also measured before the first step."""
    num_sampled_answers: int = Field(default=3, ge=0)
    """Questions from `data.validation_source` that the model answers at the end of fine-tuning, for you to read."""

    save_steps: int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    save_total_limit: int = Field(default=2, ge=2)
    """Checkpoints to keep; at least two, so one is complete while the next is being written."""

    merge: bool = True
    """Merge the adapter into its base at the end of `longlora train`. `merged/` in the run's folder is then an ordinary
    model, also for tools that do not accept adapters with embeddings and norms."""
    hardware: HardwareConfig = HardwareConfig()
    """The GPUs that the recipe is for."""

    seed: int = Field(default=42, ge=0, lt=2**32)
    """Random seed for the adapter's initial weights and the order of rows."""

    report_to: str | tuple[str, ...] = "none"
    """Trackers to log to in addition to `metrics.jsonl`, by their names in transformers (`tensorboard`, `wandb`, …)."""
    trust_remote_code: bool = False
    """Run Python code shipped with the model; enable it only after reading that code."""

    @model_validator(mode="after")
    def _check_together(self) -> "Recipe":
        if self.attention.pattern == "full":
            for name, field in AttentionConfig.model_fields.items():
                if name != "pattern" and (value := getattr(self.attention, name)) != field.default:
                    raise ValueError(
                        f"attention.{name}={value} needs attention.pattern=s2: a run with pattern=full is dense in all "
                        "steps and layers, without groups; leave it out"
                    )
        if self.group_size > self.context_length:
            raise ValueError(
                f"attention.group_size={self.group_size} must not exceed context_length={self.context_length}; "
                "use attention.pattern=full for one group"
            )
        if self.quantization and self.tuning == "full":
            raise ValueError(f"quantization={self.quantization} freezes the base; use tuning=lora+ or tuning=lora")
        if self.num_train_epochs is not None and "max_steps" in self.model_fields_set:
            raise ValueError(f"max_steps={self.max_steps} and num_train_epochs={self.num_train_epochs:g}: give one")
        if self.far_target_beyond is not None and not self.far_target_weight:
            raise ValueError(f"far_target_beyond={self.far_target_beyond} needs far_target_weight above 0")
        self._check_trainable()
        return self

    def _check_trainable(self) -> None:
        trainable = list(self.lora.trainable or ())
        if self.tuning != "lora+" and trainable:
            raise ValueError(f"lora.trainable={trainable} needs tuning=lora+, not tuning={self.tuning}")
        if self.tuning == "lora+" and not self.trainable:
            raise ValueError(
                "lora.trainable=[] with tuning=lora+ leaves plain LoRA; use tuning=lora, or name embed or norm"
            )
        trains_embeddings = self.tuning == "full" or "embed" in self.trainable
        remedy = "use tuning=lora+ with embed in lora.trainable, or tuning=full"
        if self.embedding_learning_rate is not None and not trains_embeddings:
            raise ValueError(
                f"embedding_learning_rate={self.embedding_learning_rate:g}: this run trains no embeddings; {remedy}"
            )
        if self.new_tokens and not trains_embeddings:
            raise ValueError(f"new_tokens={list(self.new_tokens)}: this run trains no embeddings; {remedy}")
        if len(set(self.new_tokens)) < len(self.new_tokens) or not all(map(str.strip, self.new_tokens)):
            raise ValueError(f"new_tokens={list(self.new_tokens)} must be different and not blank")

    @property
    def trains_groups_alone(self) -> bool:
        """Whether knowledge crosses groups nowhere: not by a shift, in a layer or in a step with full attention."""
        attention = self.attention
        crosses = attention.shift or attention.full_attention_interval or attention.dense_finish
        return attention.pattern == "s2" and not crosses and self.group_size < self.context_length

    def with_steps_for(self, num_rows: int, rows_per_step: int) -> "Recipe":
        """Return the recipe with `num_train_epochs`, if set, converted to `max_steps`.

        The last step of an epoch may have fewer rows; no step has rows from two epochs.
        """
        if self.num_train_epochs is None:
            return self
        steps = math.ceil(self.num_train_epochs * math.ceil(num_rows / rows_per_step))
        return self.model_copy(update={"max_steps": steps, "num_train_epochs": None})

    def keeps_positions(self, readable_context: int) -> bool:
        """Return whether a model with this context keeps its positions: for conversations that fit into it."""
        return self.data.kind == "sft" and self.context_length <= (self.rope.base_context or readable_context)

    @property
    def trainable(self) -> tuple[Trainable, ...]:
        """The fully trained modules besides the low-rank updates."""
        if self.lora.trainable is not None:
            return self.lora.trainable
        return ("embed", "norm") if self.tuning == "lora+" else ()

    @property
    def samples_answers(self) -> bool:
        """Whether the trained model answers held-out questions at the end."""
        return self.data.kind == "sft" and self.data.validation_source is not None and self.num_sampled_answers > 0

    @property
    def far_target_context(self) -> int:
        """Number of preceding tokens from which a target counts as far."""
        return self.far_target_beyond or max(1, self.context_length // 4)

    @property
    def group_size(self) -> int:
        """Group size of S²-Attn in tokens, fixed for the whole run."""
        return self.attention.group_size or max(1, round(self.context_length * self.attention.group_ratio))

    @property
    def first_dense_step(self) -> int:
        """Number of steps completed before the dense finish begins; `max_steps` if there is none."""
        return self.max_steps - round(self.max_steps * self.attention.dense_finish)
