"""The shape of a decoder-only model and how many parameters follow from it, by the name that a recipe calls it.

Its configuration is that of a folder, one that ships with longlora (`architectures/`), or the hub's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from longlora.errors import CheckpointError, ConfigError, first_line
from longlora.support.files import read_json
from longlora.tiny import TINY_MODEL, tiny_model_directory

FACTS = Path(__file__).parent.parent / "architectures"


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a `model_type` fixes in transformers' code, and what its configuration class assumes of an absent key."""

    tied: bool = False  # embeddings and output layer share their weights
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    kv_heads_default: bool = False  # without num_key_value_heads as many as query heads
    norms_per_layer: int = 2  # of the hidden size; those of queries and keys are not among them
    qk_norm: str = "none"  # a scale for each dimension of a "head", or of "all" heads
    qkv_bias: bool | None = False  # None: the configuration's attention_bias, which the output projection has too
    fused: bool = False  # one projection for query, key and value, and one for both inputs of the feed-forward
    wide_norms: bool = False  # scales in float32, whose gradient needs a float32 tensor
    sliding: str | int | None = None  # "all" layers have a window, the "late" ones, or all but every nth
    experts_key: str | None = None  # counts experts; None: a dense feed-forward


FAMILIES = {
    "llama": Family(kv_heads_default=True, qkv_bias=None),
    "granite": Family(kv_heads_default=True, qkv_bias=None),
    "olmo2": Family(kv_heads_default=True, qkv_bias=None, qk_norm="all"),
    "mistral": Family(sliding="all"),
    "mixtral": Family(sliding="all", experts_key="num_local_experts"),
    "phi3": Family(kv_heads_default=True, fused=True, sliding="all"),
    "qwen2": Family(qkv_bias=True, sliding="late"),
    "qwen3": Family(head_dim=128, qkv_bias=None, qk_norm="head", sliding="late"),
    "qwen3_moe": Family(qkv_bias=None, qk_norm="head", experts_key="num_experts"),
    "gemma": Family(tied=True, head_dim=256, qkv_bias=None, wide_norms=True),
    "gemma2": Family(tied=True, head_dim=256, qkv_bias=None, wide_norms=True, norms_per_layer=4, sliding=2),
    "gemma3_text": Family(
        tied=True, head_dim=256, qkv_bias=None, wide_norms=True, norms_per_layer=4, qk_norm="head", sliding=6
    ),
}
"""The families whose shapes are known; each is compared with transformers' own model in the tests."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a decoder-only model; `Family` explains what depends on the `model_type`."""

    name: str
    model_type: str
    hidden_size: int
    intermediate_size: int  # of one expert, where there are experts
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]  # as transformers 5 writes them
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    norms_per_layer: int
    qk_norm: str
    fused: bool
    wide_norms: bool
    num_experts: int
    experts_per_token: int
    sliding_window: int | None
    num_sliding_layers: int

    @property
    def query_size(self) -> int:
        """Width of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys of all heads, and of the values."""
        return self.num_kv_heads * self.head_dim

    @property
    def active_intermediate_size(self) -> int:
        """Width of the feed-forward that one token passes, all its experts together."""
        return self.intermediate_size * max(1, self.experts_per_token)

    @property
    def embedding_parameters(self) -> int:
        """Input embedding; also the output layer where the two are tied."""
        return self.vocab_size * self.hidden_size

    @property
    def head_parameters(self) -> int:
        """Output layer, 0 where it is the embedding."""
        return 0 if self.tied else self.embedding_parameters

    @property
    def norm_parameters(self) -> int:
        """Scales of all norms."""
        qk_norms = {"none": 0, "head": 2 * self.head_dim, "all": self.query_size + self.kv_size}[self.qk_norm]
        return self.num_layers * (self.norms_per_layer * self.hidden_size + qk_norms) + self.hidden_size

    @property
    def attention_parameters(self) -> int:
        """Projections of attention in all layers, with their biases."""
        weights = sum(fan_in * fan_out for fan_in, fan_out in self.attention_linears())
        biases = self.qkv_bias * (self.query_size + 2 * self.kv_size) + self.output_bias * self.hidden_size
        return self.num_layers * (weights + biases)

    @property
    def mlp_parameters(self) -> int:
        """Feed-forward of all layers, every expert and the router included."""
        one = 3 * self.hidden_size * self.intermediate_size
        one += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        return self.num_layers * (one * max(1, self.num_experts) + self.num_experts * self.hidden_size)

    @property
    def active_mlp_parameters(self) -> int:
        """What of the feed-forwards one token multiplies with."""
        active = 3 * self.hidden_size * self.active_intermediate_size + self.num_experts * self.hidden_size
        return self.num_layers * active

    @property
    def num_parameters(self) -> int:
        """All parameters, tied ones once."""
        return sum(self.parameters_by_kind().values())

    def parameters_by_kind(self) -> dict[str, int]:
        """Count parameters as `embeddings`, `lm_head`, `norms`, `attention`, `mlp`."""
        return {
            "embeddings": self.embedding_parameters,
            "lm_head": self.head_parameters,
            "norms": self.norm_parameters,
            "attention": self.attention_parameters,
            "mlp": self.mlp_parameters,
        }

    def attention_linears(self) -> list[tuple[int, int]]:
        """Widths of input and output of each projection in one layer's attention."""
        hidden, query, kv = self.hidden_size, self.query_size, self.kv_size
        inputs = [(hidden, query + 2 * kv)] if self.fused else [(hidden, query), (hidden, kv), (hidden, kv)]
        return [*inputs, (query, hidden)]

    def mlp_linears(self) -> list[tuple[int, int]]:
        """Widths of each linear layer in one feed-forward; none with experts, whose weights are no linear layers."""
        if self.num_experts:
            return []
        hidden, inner = self.hidden_size, self.intermediate_size
        return [*([(hidden, 2 * inner)] if self.fused else [(hidden, inner)] * 2), (inner, hidden)]


def find_architecture(name_or_path: str) -> Architecture:
    """Read the shape of a model by what a recipe calls it; nothing but a configuration is ever read.

    Known hub names need neither network nor permission (gated models); others are fetched with `huggingface_hub`.

    Raises:
        CheckpointError: there is no configuration in the folder, or none to be had from the hub.
        ConfigError: its shapes are not known here.
    """
    directory = tiny_model_directory() if name_or_path == TINY_MODEL else Path(name_or_path).expanduser()
    if directory.is_dir():
        return parse_architecture(read_json(directory / "config.json"), name_or_path)
    if values := published_config(name_or_path):
        return parse_architecture(values, name_or_path)
    if directory.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise CheckpointError(f"there is no model directory {name_or_path}")
    return parse_architecture(_fetch(name_or_path), name_or_path)


def published_config(hub_name: str) -> dict[str, Any] | None:
    """The shapes in a hub model's config.json, for the names that longlora knows; None for others."""
    fact = known_names().get(hub_name.lower())
    return None if fact is None else read_json(FACTS / f"{fact}.json")


@cache
def known_names() -> dict[str, str]:
    """Hub names, in small letters, with the fact file that each stands for."""
    return {name.lower(): fact for name, fact in read_json(FACTS / "names.json").items()}


def _fetch(name: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return read_json(Path(hf_hub_download(name, "config.json")))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(
            f"cannot get the configuration of {name!r}, neither from a directory of that name nor from the hub: "
            f"{first_line(error)}"
        ) from error


def parse_architecture(config: Mapping[str, Any], name: str) -> Architecture:
    """Read the shape out of a transformers configuration, as `config.json` holds it.

    Raises:
        ConfigError: a `model_type` whose shapes are not known here, a key that is missing or no whole number, layers of
            two kinds.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ConfigError(
            f"{name} has model_type {model_type!r}, whose memory longlora cannot plan; it knows {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]

    def read(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"the configuration of {name} must give {key} as a whole number above 0, found {value!r}")
        return value

    hidden, layers, heads = read("hidden_size"), read("num_hidden_layers"), read("num_attention_heads")
    attention_bias = bool(config.get("attention_bias", False))
    experts = read(family.experts_key) if family.experts_key else 0
    if experts and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
        raise ConfigError(f"{name} mixes dense layers and layers of experts, which longlora cannot plan")
    num_sliding = _count_sliding_layers(config, family, layers)
    tied = config.get("tie_word_embeddings")
    return Architecture(
        name=name,
        model_type=model_type,
        hidden_size=hidden,
        intermediate_size=read("moe_intermediate_size" if model_type == "qwen3_moe" else "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=read("num_key_value_heads", heads if family.kv_heads_default else None),
        head_dim=read("head_dim", family.head_dim or hidden // heads),
        vocab_size=read("vocab_size"),
        tied=family.tied if tied is None else bool(tied),
        max_position_embeddings=read("max_position_embeddings"),
        rope_parameters=_rope_parameters(config),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=attention_bias and family.qkv_bias is None,
        mlp_bias=bool(config.get("mlp_bias", False)) and model_type in ("llama", "granite"),
        norms_per_layer=family.norms_per_layer,
        qk_norm=family.qk_norm,
        fused=family.fused,
        wide_norms=family.wide_norms,
        num_experts=experts,
        experts_per_token=read("num_experts_per_tok") if experts else 0,
        sliding_window=read("sliding_window") if num_sliding else None,
        num_sliding_layers=num_sliding,
    )


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The positions out of a file of transformers 5, or of 4 with its `rope_theta` and `rope_scaling`."""
    values = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(value, Mapping) for value in values.values()):  # by kind of layer, as transformers 5 has them
        return values
    values["rope_type"] = values.get("rope_type") or values.pop("type", "default")
    for key, default in (("rope_theta", 10_000.0), ("partial_rotary_factor", None)):
        value = config.get(key, default)
        if value is not None:
            values.setdefault(key, value)
    if values["rope_type"] in ("llama3", "yarn", "longrope"):
        original = config.get("original_max_position_embeddings")
        if original is not None:
            values["original_max_position_embeddings"] = original
        values.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    return values


def _count_sliding_layers(config: Mapping[str, Any], family: Family, num_layers: int) -> int:
    if family.sliding is None or config.get("sliding_window") is None:
        return 0
    if config.get("layer_types"):
        return list(config["layer_types"]).count("sliding_attention")
    if family.sliding == "all":
        return num_layers
    if family.sliding == "late":
        first = int(config.get("max_window_layers", 28))
        return max(0, num_layers - first) if config.get("use_sliding_window", False) else 0
    return num_layers - num_layers // int(config.get("sliding_window_pattern", family.sliding))
