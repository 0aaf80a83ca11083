"""The shape and parameter counts of a decoder-only model, found by the name used in a recipe.

The configuration comes from a directory, from those bundled with longlora (`known_models.py`), or from the hub.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from longlora.errors import CheckpointError, ConfigError, first_line
from longlora.planner.known_models import find_known_model
from longlora.support.files import read_json
from longlora.tiny import TINY_MODEL, tiny_model_directory


@dataclass(frozen=True, kw_only=True)
class Family:
    """What transformers' code for a `model_type` fixes, and its configuration class's defaults for absent keys."""

    tied: bool = False  # embeddings and output layer share their weights
    defaults: Mapping[str, Any] = field(default_factory=dict)  # for keys that published files omit
    kv_heads_default: bool = False  # num_key_value_heads defaults to the number of query heads
    norms_per_layer: int = 2  # of the hidden size; not counting those of queries and keys
    qk_norm: str = "none"  # a scale for each dimension of a "head", or of "all" heads
    qkv_bias: bool | None = False  # None: the configuration's attention_bias, which also applies to the output
    fused: bool = False  # one projection for query, key and value, and one for both inputs of the feed-forward
    wide_norms: bool = False  # scales in float32, whose gradient needs a float32 tensor
    sliding: str | int | None = None  # layers with a window: "all", the "late" ones, or (int n) all but every nth
    window_theta: float | None = None  # the RoPE base of layers with a window, if it differs
    experts_key: str | None = None  # the key with the number of experts; None: a dense feed-forward
    expert_bias: bool = False  # of each expert and of the router
    sinks: bool = False  # a learned logit for each head


_GEMMA = Family(tied=True, defaults={"head_dim": 256}, qkv_bias=None, wide_norms=True)
FAMILIES = {
    "llama": Family(kv_heads_default=True, qkv_bias=None),
    "granite": Family(kv_heads_default=True, qkv_bias=None),
    "olmo2": Family(kv_heads_default=True, qkv_bias=None, qk_norm="all"),
    "olmo3": Family(kv_heads_default=True, qkv_bias=None, qk_norm="all", sliding=4, window_theta=500_000.0),
    "mistral": Family(sliding="all"),
    "mixtral": Family(sliding="all", experts_key="num_local_experts"),
    "phi3": Family(kv_heads_default=True, fused=True, sliding="all"),
    "qwen2": Family(qkv_bias=True, sliding="late"),
    "qwen3": Family(defaults={"head_dim": 128}, qkv_bias=None, qk_norm="head", sliding="late"),
    "qwen3_moe": Family(qkv_bias=None, qk_norm="head", experts_key="num_experts"),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, norms_per_layer=4, sliding=2),
    "gemma3_text": replace(
        _GEMMA,
        defaults={
            **_GEMMA.defaults,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
            "rope_theta": 1e6,
        },
        norms_per_layer=4,
        qk_norm="head",
        sliding=6,
        window_theta=10_000.0,
    ),
    "gpt_oss": Family(
        defaults={"head_dim": 64, "attention_bias": True},
        qkv_bias=None,
        sliding=2,
        experts_key="num_local_experts",
        expert_bias=True,
        sinks=True,
    ),
}
"""The families whose shapes are known; the tests compare each with transformers' own model."""

WRAPPED = {"gemma3": "gemma3_text"}
"""Multimodal types, with the type of their language model, which is configured in `text_config`."""


class Parameters(NamedTuple):
    """Numbers of a model's parameters."""

    embeddings: int  # the input embedding, which is also the output layer if tied
    lm_head: int  # 0 if tied
    norms: int  # scales
    attention: int  # projections, biases and sinks
    mlp: int  # including all experts and the router
    vision: int


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a decoder-only model."""

    name: str
    model_type: str
    family: Family  # what the `model_type` fixes
    hidden_size: int
    intermediate_size: int  # of one expert, if there are experts
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]  # in the format of transformers 5
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    num_experts: int
    experts_per_token: int
    sliding_window: int | None
    num_sliding_layers: int
    vision_parameters: int  # of the vision encoder and projection, which stay frozen
    stored_dtype: str | None = None  # of the weights' files, where the configuration says it

    @property
    def query_size(self) -> int:
        """The width of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """The width of the keys of all heads, equal to that of the values."""
        return self.num_kv_heads * self.head_dim

    @property
    def active_intermediate_size(self) -> int:
        """The width of the feed-forward for one token, over all its experts."""
        return self.intermediate_size * max(1, self.experts_per_token)

    @property
    def active_mlp_parameters(self) -> int:
        """The feed-forward weights in all layers that one token is multiplied with."""
        active = 3 * self.hidden_size * self.active_intermediate_size + self.num_experts * self.hidden_size
        return self.num_layers * active

    @property
    def parameters(self) -> Parameters:
        """The parameters by what they belong to."""
        hidden, query, kv, inner = self.hidden_size, self.query_size, self.kv_size, self.intermediate_size
        embedding = self.vocab_size * hidden
        qk_norms = {"none": 0, "head": 2 * self.head_dim, "all": query + kv}[self.family.qk_norm]
        attention = sum(fan_in * fan_out for fan_in, fan_out in self.attention_linears())
        attention += self.qkv_bias * (query + 2 * kv) + self.output_bias * hidden + self.family.sinks * self.num_heads
        mlp = max(1, self.num_experts) * (3 * hidden * inner + self.mlp_bias * (2 * inner + hidden))
        router = self.num_experts * (hidden + self.mlp_bias)
        return Parameters(
            embeddings=embedding,
            lm_head=0 if self.tied else embedding,
            norms=self.num_layers * (self.family.norms_per_layer * hidden + qk_norms) + hidden,
            attention=self.num_layers * attention,
            mlp=self.num_layers * (mlp + router),
            vision=self.vision_parameters,
        )

    @property
    def num_parameters(self) -> int:
        """The number of all parameters, counting tied ones once."""
        return sum(self.parameters)

    @property
    def linear_names(self) -> tuple[str, ...]:
        """The last parts of the names of the linear layers, without the output layer, `lm_head`."""
        fused = self.family.fused
        attention = ("qkv_proj", "o_proj") if fused else ("q_proj", "k_proj", "v_proj", "o_proj")
        mlp = ("gate_up_proj", "down_proj") if fused else ("gate_proj", "up_proj", "down_proj")
        vision = ("out_proj", "fc1", "fc2") if self.vision_parameters else ()
        return (*attention, *(() if self.num_experts else mlp), *vision)

    def attention_linears(self) -> list[tuple[int, int]]:
        """Return the input and output widths of each projection in one layer's attention."""
        hidden, query, kv = self.hidden_size, self.query_size, self.kv_size
        inputs = [(hidden, query + 2 * kv)] if self.family.fused else [(hidden, query), (hidden, kv), (hidden, kv)]
        return [*inputs, (query, hidden)]

    def mlp_linears(self) -> list[tuple[int, int]]:
        """Return the widths of each linear layer in a feed-forward; none for experts, which are not `nn.Linear`."""
        if self.num_experts:
            return []
        hidden, inner = self.hidden_size, self.intermediate_size
        return [*([(hidden, 2 * inner)] if self.family.fused else [(hidden, inner)] * 2), (inner, hidden)]


def find_architecture(name_or_path: str) -> Architecture:
    """Find the shape of a model by the name used in a recipe; only its configuration is read.

    Known hub names need neither network nor permission (gated models); others are fetched with `huggingface_hub`.

    Raises:
        CheckpointError: there is no configuration in the directory, or the hub does not provide one.
        ConfigError: the model's shapes are unknown.
    """
    directory = tiny_model_directory() if name_or_path == TINY_MODEL else Path(name_or_path).expanduser()
    if directory.is_dir():
        return parse_architecture(read_json(directory / "config.json"), name_or_path)
    if known := find_known_model(name_or_path):
        return parse_architecture(known.config, known.hub_names[0] if known.name == name_or_path else name_or_path)
    if directory.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise CheckpointError(f"there is no model directory {name_or_path}")
    return parse_architecture(_fetch(name_or_path), name_or_path)


def _fetch(name: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return read_json(Path(hf_hub_download(name, "config.json")))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(
            f"cannot get the configuration of {name!r}: there is no such directory, and the hub failed with "
            f"{first_line(error)}"
        ) from error


def parse_architecture(config: Mapping[str, Any], name: str) -> Architecture:
    """Read the shape from a transformers configuration, the content of `config.json`.

    Raises:
        ConfigError: the `model_type` is unknown, a key is missing or not a whole number above 0, or the model mixes
            dense layers and layers of experts.
    """
    model_type, vision_parameters = config.get("model_type"), 0
    if model_type in WRAPPED:
        vision_parameters = _count_gemma3_vision(config)
        config, model_type = {"tie_word_embeddings": True, **config["text_config"]}, WRAPPED[model_type]
    if model_type not in FAMILIES:
        raise ConfigError(
            f"{name} has model_type {model_type!r}, whose memory longlora cannot plan; known are "
            f"{', '.join([*FAMILIES, *WRAPPED])}"
        )
    family = FAMILIES[model_type]
    config = {**family.defaults, **{key: value for key, value in config.items() if value is not None}}

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
        family=family,
        hidden_size=hidden,
        intermediate_size=read("moe_intermediate_size" if model_type == "qwen3_moe" else "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=read("num_key_value_heads", heads if family.kv_heads_default else None),
        head_dim=read("head_dim", hidden // heads),
        vocab_size=read("vocab_size"),
        tied=family.tied if tied is None else bool(tied),
        max_position_embeddings=read("max_position_embeddings"),
        rope_parameters=_rope_parameters(config, family),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=attention_bias and family.qkv_bias is None,
        mlp_bias=family.expert_bias or (bool(config.get("mlp_bias", False)) and model_type in ("llama", "granite")),
        num_experts=experts,
        experts_per_token=read("num_experts_per_tok") if experts else 0,
        sliding_window=read("sliding_window") if num_sliding else None,
        num_sliding_layers=num_sliding,
        vision_parameters=vision_parameters,
        stored_dtype=config.get("dtype") or config.get("torch_dtype"),
    )


def _count_gemma3_vision(config: Mapping[str, Any]) -> int:
    """Count the parameters of the SigLIP encoder (`vision_config`) and of the projection after it."""
    siglip = {"num_channels": 3, **config["vision_config"]}
    hidden, inner, patch = siglip["hidden_size"], siglip["intermediate_size"], siglip["patch_size"]
    num_patches = (siglip["image_size"] // patch) ** 2
    embeddings = siglip["num_channels"] * patch**2 * hidden + hidden + num_patches * hidden
    layer = 4 * (hidden**2 + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    projection = hidden + hidden * config["text_config"]["hidden_size"]
    return embeddings + siglip["num_hidden_layers"] * layer + 2 * hidden + projection


def _rope_parameters(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Read RoPE parameters in the format of transformers 5, or of 4 with its `rope_theta` and `rope_scaling`."""
    values = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(value, Mapping) for value in values.values()):  # by kind of layer, as in transformers 5
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
    if family.window_theta is None:
        return values
    window_theta = config.get("rope_local_base_freq") or family.window_theta
    return {"full_attention": values, "sliding_attention": {"rope_type": "default", "rope_theta": window_theta}}


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
