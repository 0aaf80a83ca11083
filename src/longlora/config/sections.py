"""The sections of a recipe: attention, rope, lora, hardware and data."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator, model_validator

from longlora.rope.methods import OPTIONS, RopeType
from longlora.support.choices import DEFAULT_GROUP_RATIO, AttentionPattern, LoraTargets, Strategy, Trainable

_LARGEST = 1e15  # a float represents every smaller integer exactly
_UNWRITABLE = frozenset(map(chr, [0, *range(0xD800, 0xE000)]))


class UnusableValueError(ValueError):
    """An invalid single value; the message does not name the key, which is added when the error is reported."""


class Section(BaseModel):
    """Base class of a recipe and its sections: immutable, without unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _check_value(cls, value: Any) -> Any:
        """Reject extreme numbers and unencodable text, which would fail later and less clearly."""
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (int, float)) and abs(item) > _LARGEST:
                raise UnusableValueError(f"the number must not exceed {_LARGEST:g}")
            if isinstance(item, str) and not _UNWRITABLE.isdisjoint(item):
                raise UnusableValueError("the text must not contain NUL or half of a surrogate pair")
        return value


class AttentionConfig(Section):
    """Attention during training; evaluation and generation always use the model's ordinary attention."""

    pattern: AttentionPattern = "s2"
    """`s2`: shifted sparse attention (the paper, section 3.2); `full`: ordinary causal attention."""
    group_ratio: float = Field(default=DEFAULT_GROUP_RATIO, gt=0, le=1)
    """Group size as a fraction of `context_length` (the paper: 1/4)."""
    group_size: int | None = Field(default=None, ge=1)
    """Group size in tokens; overrides `group_ratio`."""

    shift: bool = True
    """Whether the groups of half of the heads are shifted by half a group (the paper). Without it all heads have the
    same groups, one call of a kernel serves them, and no attention sink is lost (docs/sink.md); knowledge then crosses
    groups only in layers or steps with full attention."""
    sink_tokens: int = Field(default=0, ge=0)
    """Number of tokens at the start of the document that each group also sees (0: the paper). Pretrained models keep an
    attention sink there and lose much without it; 1 recovers most of that (docs/sink.md)."""
    dense_finish: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the steps that are trained with full attention, at the end of the run (0: the paper)."""
    full_attention_interval: int | None = Field(default=None, ge=2)
    """One layer in so many is trained with full attention in all steps, the last of each; layers with their own window
    do not count. By default no layer is (the paper)."""


class RopeConfig(Section):
    """How positions are rescaled to the new context; formulas and sources are in `rope/methods.py`.

    The keys after `base_context` apply only to the types named in their descriptions, and are refused with others.
    """

    rope_type: RopeType = "linear"
    """`linear`: position interpolation, as in the paper; `dynamic`: NTK scaling by text length; `yarn`; `llama3`;
    `longrope`; `theta`: a larger rotary base."""
    base_context: int | None = Field(default=None, ge=1)
    """Context length before the extension; by default the one in the model's configuration. Set it for a checkpoint
    whose configuration still has an earlier base's context."""

    factor: float | None = Field(default=None, ge=1)
    """llama3: divisor of the slow frequencies; by default computed from the model's original context."""
    rope_theta: float | None = Field(default=None, gt=1)
    """theta: the new rotary base; by default the NTK-aware one."""

    beta_fast: float | None = Field(default=None, gt=0)
    """yarn: frequencies with more rotations than this within the original context stay unchanged; by default 32."""
    beta_slow: float | None = Field(default=None, gt=0)
    """yarn: frequencies with fewer rotations than this within the original context are divided by the full factor; by
    default 1."""
    attention_factor: float | None = Field(default=None, gt=0)
    """yarn, longrope: multiplier of cos and sin; by default computed from the factor."""
    mscale: float | None = Field(default=None, gt=0)
    """yarn: weight of ln(factor) in the numerator of the attention factor; requires `mscale_all_dim`."""
    mscale_all_dim: float | None = Field(default=None, gt=0)
    """yarn: weight of ln(factor) in the denominator of the attention factor; requires `mscale`."""
    truncate: bool | None = None
    """yarn: round the ends of the ramp to whole frequencies; by default true."""

    low_freq_factor: float | None = Field(default=None, gt=0)
    """llama3: wavelengths above the original context divided by this are divided by the full factor; by default 1."""
    high_freq_factor: float | None = Field(default=None, gt=0)
    """llama3: wavelengths below the original context divided by this stay unchanged; by default 4."""

    short_factor: tuple[PositiveFloat, ...] | None = None
    """longrope: divisor of each frequency for texts within the original context; by default ones."""
    long_factor: tuple[PositiveFloat, ...] | None = None
    """longrope: divisor of each frequency for longer texts; required."""

    @property
    def options(self) -> dict[str, Any]:
        """The parameters that are set, except `rope_type` and `base_context`."""
        return self.model_dump(exclude={"rope_type", "base_context"}, exclude_none=True)

    @model_validator(mode="after")
    def _check_options(self) -> "RopeConfig":
        for name in self.options:
            if name not in OPTIONS[self.rope_type]:
                owners = " or ".join(owner for owner, names in OPTIONS.items() if name in names)
                raise ValueError(f"rope.{name} belongs to rope_type {owners}, not to rope.rope_type={self.rope_type}")
        if self.rope_type == "longrope" and self.long_factor is None:
            raise ValueError("rope.rope_type=longrope needs rope.long_factor, one number per frequency")
        return self


class LoraConfig(Section):
    """The low-rank adapter; ignored by `tuning: full`."""

    r: int = Field(default=8, ge=1)
    """Rank of the update matrices (the paper: 8)."""
    lora_alpha: float = Field(default=16, gt=0)
    """Scale of the update, which is multiplied by `lora_alpha / r`."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability for the input of the update."""

    target_modules: LoraTargets | tuple[str, ...] = "attention"
    """`attention`: every linear layer inside attention (the paper); `all-linear`: also those of the feed-forward; or a
    list of layer names, such as `[q_proj, v_proj]`."""
    trainable: tuple[Trainable, ...] | None = None
    """Modules that are fully trained in addition to the low-rank updates: `embed` (the input embedding), `norm` (every
    norm); by default both with `tuning: lora+`, neither with `tuning: lora`."""


class HardwareConfig(Section):
    """The hardware that `longlora plan` plans for. The trained model does not depend on it."""

    gpus: int = Field(default=1, ge=1)
    """Number of GPUs."""
    memory_gib: float = Field(default=80.0, gt=0)
    """Memory per GPU, in GiB."""
    strategy: Strategy | None = None
    """How several GPUs share the work; `longlora train` uses it if exactly `gpus` GPUs are visible."""

    def strategy_on(self, num_gpus: int) -> Strategy:
        """Return the strategy for this number of GPUs, if the command line does not give one."""
        return "single" if num_gpus == 1 else self.strategy or "ddp"

    @model_validator(mode="after")
    def _check_strategy(self) -> "HardwareConfig":
        if self.strategy is not None and (self.strategy == "single") != (self.gpus == 1):
            raise ValueError(
                f"hardware.strategy={self.strategy} does not fit hardware.gpus={self.gpus}: single is for one GPU, "
                "ddp, fsdp2, zero2 and zero3 for several"
            )
        return self


class DataConfig(Section):
    """What to train on."""

    kind: Literal["text", "sft"] = "text"
    """`text`: documents, with a loss on every token (context extension); `sft`: conversations, with a loss on the
    answers (supervised fine-tuning; docs/finetuning.md)."""
    source: str | tuple[str, ...]
    """Text files, a folder, a glob, JSONL or Parquet files, a saved `datasets` directory, or a hub name; or a list of
    these. Conversations are read from the last four kinds and from JSON."""

    validation_source: str | tuple[str, ...] | None = None
    """Held-out data, of the same kinds as `source`; its loss is measured during training, with ordinary attention."""
    validation_split: str = "validation"
    """Split of `validation_source` to read, if it has splits."""
    max_validation_rows: int = Field(default=64, ge=1)
    """Maximum number of validation rows of `context_length`."""

    packing: bool = True
    """sft: pack several conversations into one row, without attention between them; false gives each its own row, as in
    the original implementation."""
    text_column: str = "text"
    """Column that holds the text, for tabular sources."""
    split: str = "train"
    """Split to read, for sources that have splits."""
    cross_document_attention: bool = False
    """Let tokens attend to earlier documents in the same row, as in the original implementation."""
    max_documents: int | None = Field(default=None, ge=1)
    """Maximum number of documents to read; required for an endless streamed hub data set."""
    long_document_repeats: int = Field(default=1, ge=1)
    """text: number of times that long documents are read; short ones are read once. This up-samples by length and keeps
    short text."""
    long_document_tokens: int | None = Field(default=None, ge=1)
    """Length in tokens from which a document counts as long; by default `context_length`."""
    cache_dir: str | None = None
    """Folder for tokenized documents; by default `longlora` in the user's cache folder."""

    @model_validator(mode="after")
    def _check_kind(self) -> "DataConfig":
        if self.kind == "sft" and self.cross_document_attention:
            raise ValueError(
                "data.cross_document_attention=true: conversations (data.kind=sft) never attend to each other"
            )
        if self.kind == "text" and not self.packing:
            raise ValueError("data.packing=false belongs to data.kind=sft: documents always fill their rows")
        if self.long_document_repeats > 1 and self.kind == "sft":
            raise ValueError(f"data.long_document_repeats={self.long_document_repeats} belongs to data.kind=text")
        if self.long_document_tokens is not None and self.long_document_repeats == 1:
            raise ValueError(
                f"data.long_document_tokens={self.long_document_tokens} needs data.long_document_repeats above 1"
            )
        return self
