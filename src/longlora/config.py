"""A recipe: one YAML file that says what a run does, checked before anything heavy is imported.

Keys carry the names of transformers and TRL where those have one. Every field has a sentence and a unit; an unknown key
is an error that names the nearest known one. `load_recipe` is the only way in, for files and for `key=value` overrides
alike.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from longlora.errors import ConfigError
from longlora.explain import explain
from longlora.optimizers import DEFAULT, check_optimizer
from longlora.recipes import find_recipe
from longlora.rope import OPTIONS, RopeType


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class AttentionConfig(_Section):
    """Which attention the model trains with; evaluation and generation always use its ordinary attention."""

    pattern: Literal["s2", "full"] = "s2"
    """`s2`: shifted sparse attention (the paper, section 3.2); `full`: ordinary causal attention."""

    group_ratio: float = Field(default=0.25, gt=0, le=1)
    """Group size as a fraction of `context_length` (the paper: 1/4)."""

    group_size: int | None = Field(default=None, ge=1)
    """Group size in tokens; overrides `group_ratio`."""

    dense_finish: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the steps, at the end of the run, trained with full attention (0: the paper)."""


class RopeConfig(_Section):
    """How positions are rescaled to the new context; formulas and sources stand in `rope/methods.py`.

    Below `base_context` each key belongs to the types that its sentence names, and is refused with others.
    """

    rope_type: RopeType = "linear"
    """`linear`: position interpolation, as in the paper; `dynamic`: NTK by length; `yarn`; `llama3`; `longrope`;
    `theta`: a larger base."""

    base_context: int | None = Field(default=None, ge=1)
    """Tokens the model reads before the extension; by default what its configuration says. Set it for a checkpoint
    whose configuration kept the number of an earlier base."""

    factor: float | None = Field(default=None, ge=1)
    """llama3: divisor of the slow frequencies; by default counted from the model's original context."""

    rope_theta: float | None = Field(default=None, gt=1)
    """theta: the new base; by default the NTK-aware one."""

    beta_fast: float | None = Field(default=None, gt=0)
    """yarn: turns within the original context above which a frequency is left alone; by default 32."""

    beta_slow: float | None = Field(default=None, gt=0)
    """yarn: turns within the original context below which a frequency is divided by the whole factor; by default 1."""

    attention_factor: float | None = Field(default=None, gt=0)
    """yarn, longrope: what cos and sin are multiplied by; by default computed from the factor."""

    mscale: float | None = Field(default=None, gt=0)
    """yarn: weight of ln(factor) in the numerator of the attention factor; goes with `mscale_all_dim`."""

    mscale_all_dim: float | None = Field(default=None, gt=0)
    """yarn: weight of ln(factor) in the denominator of the attention factor; goes with `mscale`."""

    truncate: bool | None = None
    """yarn: round the ends of the ramp to whole frequencies; by default true."""

    low_freq_factor: float | None = Field(default=None, gt=0)
    """llama3: wavelengths above original context / this are divided by the whole factor; by default 1."""

    high_freq_factor: float | None = Field(default=None, gt=0)
    """llama3: wavelengths below original context / this are left alone; by default 4."""

    short_factor: tuple[PositiveFloat, ...] | None = None
    """longrope: divisor of each frequency for texts within the original context; by default ones."""

    long_factor: tuple[PositiveFloat, ...] | None = None
    """longrope: divisor of each frequency for longer texts; required."""

    @property
    def options(self) -> dict[str, Any]:
        """The parameters that are set, without `rope_type` and `base_context`."""
        return self.model_dump(exclude={"rope_type", "base_context"}, exclude_none=True)

    @model_validator(mode="after")
    def _check_options(self) -> "RopeConfig":
        for name in self.options:
            if name not in OPTIONS[self.rope_type]:
                owners = " or ".join(owner for owner, names in OPTIONS.items() if name in names)
                raise ValueError(f"rope.{name} belongs to rope_type {owners}, not to rope.rope_type={self.rope_type}")
        if self.rope_type == "longrope" and self.long_factor is None:
            raise ValueError("rope.rope_type=longrope needs rope.long_factor, a number for each frequency")
        return self


class LoraConfig(_Section):
    """The low-rank adapter; ignored by `tuning: full`."""

    r: int = Field(default=8, ge=1)
    """Rank of the update matrices (the paper: 8)."""

    lora_alpha: float = Field(default=16, gt=0)
    """Scale of the update: it is multiplied by `lora_alpha / r`."""

    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability on the input of the update."""

    target_modules: Literal["attention", "all-linear"] | tuple[str, ...] = "attention"
    """`attention`: every linear layer inside attention (the paper); `all-linear`: also those of the feed-forward; or a
    list of layers' names, such as `[q_proj, v_proj]`."""

    trainable: tuple[Literal["embed", "norm"], ...] | None = None
    """What is trained whole beside the low-rank updates: `embed` (the input embedding), `norm` (every norm); by default
    both with `tuning: lora+`, neither with `tuning: lora`."""


class DataConfig(_Section):
    """What to train on."""

    source: str | tuple[str, ...]
    """Text files, a folder, a glob, JSONL or Parquet files, a saved `datasets` directory, or a hub name; or several."""

    text_column: str = "text"
    """Column that holds the text, for tabular sources."""

    split: str = "train"
    """Split to read, for sources that have splits."""

    cross_document_attention: bool = False
    """Let tokens see the documents packed before theirs in the row, as the original implementation does."""

    max_documents: int | None = Field(default=None, ge=1)
    """Read at most this many documents; needed for a streamed hub data set without end."""

    cache_dir: str | None = None
    """Folder for tokenised documents; by default `longlora` in the user's cache folder."""


class Recipe(_Section):
    """Everything a run depends on. Defaults are the paper's (section 4.1 and appendix B)."""

    model_name_or_path: str
    """The pretrained model: a directory or a hub name; `tiny` is the model that ships with longlora."""

    output_dir: str
    """Folder of the run: checkpoints, metrics, the final adapter."""

    context_length: int = Field(gt=0)
    """New context, in tokens; training rows have exactly this length."""

    data: DataConfig
    """What to train on."""

    attention: AttentionConfig = AttentionConfig()
    """Attention while training."""

    rope: RopeConfig = RopeConfig()
    """Position scaling."""

    tuning: Literal["lora+", "lora", "full"] = "lora+"
    """`lora+`: LoRA with trainable embeddings and norms (the paper, section 3.3); `lora`: LoRA alone; `full`: every
    weight."""

    lora: LoraConfig = LoraConfig()
    """The low-rank adapter."""

    new_tokens: tuple[str, ...] = ()
    """Tokens to add to the tokenizer; they take free rows of the embedding first. Without any, nothing is resized."""

    max_steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""

    per_device_train_batch_size: int = Field(default=1, ge=1)
    """Rows per device and micro-step."""

    gradient_accumulation_steps: int = Field(default=8, ge=1)
    """Micro-steps per optimizer step."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate (the paper: 2e-5 for 7B and 13B, 1e-5 for 70B)."""

    embedding_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the embeddings; by default `learning_rate`. They are most of what LoRA+ trains."""

    lr_scheduler_type: str = "constant_with_warmup"
    """Schedule, by its name in transformers."""

    warmup_steps: int = Field(default=20, ge=0)
    """Steps of linear warm-up."""

    optim: Annotated[str, AfterValidator(check_optimizer)] = DEFAULT
    """Optimizer, by its name in transformers; `adamw_8bit` holds a quarter of AdamW's state, `paged_adamw_8bit` moves
    it to the host when the GPU is full (both need bitsandbytes, and keep embeddings in 32 bits)."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""

    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first moment decay."""

    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's second moment decay."""

    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient norm above which gradients are scaled down."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Weights and compute while training; `auto`: bfloat16 where the device computes in it, else float32."""

    quantization: Literal["nf4"] | None = None
    """`nf4`: the base's linear layers in 4 bits while training (QLoRA); what is trained and what is saved are not."""

    gradient_checkpointing: bool = True
    """Recompute each layer in the backward pass instead of keeping its activations."""

    activation_offloading: bool = False
    """Keep what the backward pass needs, with `gradient_checkpointing` the layers' inputs, in the host's memory."""

    tiled_mlp: int | None = Field(default=None, ge=1)
    """Tokens that go through a feed-forward layer at a time, each piece computed again in the backward pass; by default
    all at once."""

    chunked_loss: bool = True
    """Compute the loss in pieces, without the logits of the whole row (tokens × vocabulary)."""

    logging_steps: int = Field(default=1, ge=1)
    """Steps between two lines of `metrics.jsonl`."""

    save_steps: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""

    save_total_limit: int = Field(default=2, ge=2)
    """Checkpoints to keep; two, so that one is whole while the next is being written."""

    seed: int = 42
    """Seed of the adapter's initial weights and of the order of the rows."""

    report_to: str | tuple[str, ...] = "none"
    """Trackers to log to besides `metrics.jsonl`, by their names in transformers (`tensorboard`, `wandb`, …)."""

    trust_remote_code: bool = False
    """Run modelling code that comes with the model; off unless you have read it."""

    @model_validator(mode="after")
    def _check_together(self) -> "Recipe":
        if self.attention.pattern == "full" and self.attention.dense_finish > 0:
            raise ValueError(
                f"attention.dense_finish={self.attention.dense_finish} needs attention.pattern=s2: "
                "a run with pattern=full is dense from the first step"
            )
        if self.group_size > self.context_length:
            raise ValueError(
                f"attention.group_size={self.group_size} must not exceed context_length={self.context_length}; "
                "use attention.pattern=full for one group"
            )
        if self.quantization and self.tuning == "full":
            raise ValueError(f"quantization={self.quantization} freezes the base; use tuning=lora+ or tuning=lora")
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
    def trainable(self) -> tuple[Literal["embed", "norm"], ...]:
        """What is trained whole beside the low-rank updates."""
        if self.lora.trainable is not None:
            return self.lora.trainable
        return ("embed", "norm") if self.tuning == "lora+" else ()

    @property
    def group_size(self) -> int:
        """Group size of S²-Attn in tokens, fixed for the whole run."""
        return self.attention.group_size or max(1, round(self.context_length * self.attention.group_ratio))

    @property
    def first_dense_step(self) -> int:
        """Number of steps done when the dense finish begins; `max_steps` if there is none."""
        return self.max_steps - round(self.max_steps * self.attention.dense_finish)


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, a file or the name of one that ships with longlora, and apply `key=value` overrides.

    An override reads as `attention.dense_finish=0.2`; values are YAML.

    Raises:
        ConfigError: no such recipe, not a YAML mapping, an unknown key, a wrong type, an impossible combination.
    """
    path = find_recipe(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, found {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    return parse_recipe(values, where=str(path))


def parse_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check a mapping and turn it into a recipe.

    Raises:
        ConfigError: an unknown key, a wrong type, an impossible combination; every problem is named.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {explain(problem, Recipe)}" for problem in error.errors())
        raise ConfigError(f"{where} cannot be used:\n{problems}") from None


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe with every value spelled out, as YAML that `load_recipe` reads back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override must read key=value, found {override!r}")
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {section} is a value, not a section")
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not valid YAML") from error
