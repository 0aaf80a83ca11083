"""The sections of a recipe, each about one thing."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationInfo, field_validator, model_validator

from longlora.rope import OPTIONS, RopeType
from longlora.support.choices import Strategy

_LARGEST = 1e15  # a float holds every whole number below
_UNWRITABLE = frozenset(map(chr, [0, *range(0xD800, 0xE000)]))


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values are fixed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _check_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what no computer and no file name takes: it would fail later, and less clearly."""
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (int, float)) and abs(item) > _LARGEST:
                raise ValueError(f"{info.field_name}: the number must not exceed {_LARGEST:g}")
            if isinstance(item, str) and not _UNWRITABLE.isdisjoint(item):
                raise ValueError(f"{info.field_name}: the text must not hold NUL or half of a surrogate pair")
        return value


class AttentionConfig(Section):
    """Which attention the model trains with; evaluation and generation always use its ordinary attention."""

    pattern: Literal["s2", "full"] = "s2"
    """`s2`: shifted sparse attention (the paper, section 3.2); `full`: ordinary causal attention."""
    group_ratio: float = Field(default=0.25, gt=0, le=1)
    """Group size as a fraction of `context_length` (the paper: 1/4)."""
    group_size: int | None = Field(default=None, ge=1)
    """Group size in tokens; overrides `group_ratio`."""

    sink_tokens: int = Field(default=0, ge=0)
    """How many tokens at the beginning of its document each group also sees (0: the paper). Pretrained models keep an
    attention sink there, and lose much without it; 1 mends most of that (docs/sink.md)."""
    dense_finish: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the steps, at the end of the run, trained with full attention (0: the paper)."""


class RopeConfig(Section):
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


class LoraConfig(Section):
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


class HardwareConfig(Section):
    """What the recipe is meant for. `longlora plan` plans for it; the model that comes out does not depend on it."""

    gpus: int = Field(default=1, ge=1)
    """GPUs."""
    memory_gib: float = Field(default=80.0, gt=0)
    """Memory of each, in GiB."""
    strategy: Strategy | None = None
    """What divides the work among several; `longlora train` takes it where just so many GPUs are visible."""

    def strategy_on(self, num_gpus: int) -> Strategy:
        """What divides the work on so many GPUs, where the command line does not say."""
        return "single" if num_gpus == 1 else self.strategy or "ddp"

    @model_validator(mode="after")
    def _check_strategy(self) -> "HardwareConfig":
        if self.strategy is not None and (self.strategy == "single") != (self.gpus == 1):
            raise ValueError(
                f"hardware.strategy={self.strategy} does not go with hardware.gpus={self.gpus}: single is for one GPU, "
                "ddp, fsdp2, zero2 and zero3 for several"
            )
        return self


class DataConfig(Section):
    """What to train on."""

    kind: Literal["text", "sft"] = "text"
    """`text`: documents, every token of them (context extension); `sft`: conversations, of which the answers are
    learned (supervised fine-tuning; docs/finetuning.md)."""
    source: str | tuple[str, ...]
    """Text files, a folder, a glob, JSONL or Parquet files, a saved `datasets` directory, or a hub name; or several.
    Conversations stand in the last four kinds and in JSON."""

    validation_source: str | tuple[str, ...] | None = None
    """Held out, of the same kinds as `source`: its loss is measured on the way, under ordinary attention."""
    validation_split: str = "validation"
    """Split to read of `validation_source`, if that has splits."""
    max_validation_rows: int = Field(default=64, ge=1)
    """Read at most this many rows of `context_length` for validation."""

    packing: bool = True
    """sft: put several conversations into one row, each by itself; false gives each its own row, as the original
    implementation does."""
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

    @model_validator(mode="after")
    def _check_kind(self) -> "DataConfig":
        if self.kind == "sft" and self.cross_document_attention:
            raise ValueError("data.cross_document_attention=true: conversations (data.kind=sft) never see one another")
        if self.kind == "text" and not self.packing:
            raise ValueError("data.packing=false belongs to data.kind=sft: documents always fill their rows")
        return self
