"""The probe tells which layers would train with S²-Attn, before any weights are loaded."""

import copy
import threading

import pytest
import torch
from tests.models.small_models import SIZES, mistral, random_tokens, tiny_model
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BartConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTJConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3Config,
)
from transformers.modeling_outputs import CausalLMOutput

from longlora.errors import ConfigError
from longlora.models import registration as register
from longlora.models.probe import check_s2_reaches
from longlora.models.registration import set_group_size


class OwnAttentionConfig(PreTrainedConfig):
    """Configures a model that computes attention by itself."""

    model_type = "own-attention"


class OwnAttention(PreTrainedModel):
    """Computes attention by itself."""

    config_class = OwnAttentionConfig
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: OwnAttentionConfig) -> None:
        super().__init__(config)
        self.embedding = torch.nn.Embedding(8, 4)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool | None = None):
        hidden = self.embedding(input_ids)
        hidden = torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden, is_causal=True)
        return CausalLMOutput(logits=hidden)


class BrokenConfig(PreTrainedConfig):
    """Configures a model that cannot run."""

    model_type = "broken"


class Broken(OwnAttention):
    """Fails at its first step."""

    config_class = BrokenConfig

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool | None = None):
        return 1 / 0


AutoModelForCausalLM.register(OwnAttentionConfig, OwnAttention)
AutoModelForCausalLM.register(BrokenConfig, Broken)

PER_HEAD = {"head_dim": 8}
REACHED = [
    LlamaConfig(**SIZES),
    mistral(sliding_window=None),
    Qwen3Config(**SIZES, **PER_HEAD),
    MixtralConfig(**SIZES, num_local_experts=4, sliding_window=None),
    Gemma2Config(**SIZES, **PER_HEAD),  # softcap
    Gemma3TextConfig(**SIZES, **PER_HEAD, layer_types=["sliding_attention", "full_attention"]),  # window of 4096
]


@pytest.mark.parametrize("config", REACHED, ids=[config.model_type for config in REACHED])
def test_architectures_that_train_with_s2_pass(config):
    before = copy.deepcopy(config.to_dict())
    attention = config._attn_implementation
    check_s2_reaches(config)
    assert config.to_dict() == before
    assert config._attn_implementation == attention


FALCON = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
REFUSED = [
    (OwnAttentionConfig(), "no layer of own-attention would train with S²-Attn"),
    (mistral(sliding_window=4), "no layer of mistral would train with S²-Attn"),
    # Its configuration states no context.
    (AutoConfig.for_model("recurrent_gemma", num_hidden_layers=3), "each has a window of its own"),
    (mistral(sliding_window=4096), "no layer of mistral would train with S²-Attn"),
    (FalconConfig(**FALCON), "no layer of falcon would train with S²-Attn: its attention does not go through"),
    (
        GPTJConfig(vocab_size=50, n_positions=64, n_embd=32, n_layer=1, n_head=4, rotary_dim=4),
        "no layer of gptj would train with S²-Attn: its attention does not go through",
    ),
    (BrokenConfig(), r"broken does not run with attn_implementation=\"s2\" \(ZeroDivisionError: division by zero\)"),
    (LlamaConfig(**SIZES, attention_dropout=0.1), "no attention dropout"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_architectures_that_would_not_train_with_s2_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        check_s2_reaches(config)


TEXT_OF_QWEN2_VL = SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
VISION_OF_QWEN2_VL = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 2}
IMAGE_TOKEN = 40


def qwen2_vl(attention: str | dict[str, str]) -> PreTrainedModel:
    vision = VISION_OF_QWEN2_VL | {"temporal_patch_size": 1, "spatial_merge_size": 2, "in_channels": 3}
    config = Qwen2VLConfig(
        text_config=TEXT_OF_QWEN2_VL,
        vision_config=vision,
        image_token_id=IMAGE_TOKEN,
        video_token_id=41,
        vision_start_token_id=42,
        bos_token_id=1,
        eos_token_id=2,
    )
    return AutoModelForImageTextToText.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("config", [Qwen2VLConfig(), Qwen2_5_VLConfig()], ids=["qwen2_vl", "qwen2_5_vl"])
def test_models_that_read_images_train_their_text_in_groups(config):
    layers = check_s2_reaches(config)
    assert len(layers.grouped) == config.text_config.num_hidden_layers
    assert not any("visual" in name for name in layers.grouped)


def test_images_are_read_where_the_text_alone_has_s2():
    tokens = torch.tensor([[3, 4, 42, *[IMAGE_TOKEN] * 4, 5, 6, 7]])
    image = {
        "pixel_values": torch.randn(16, 12),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (tokens == IMAGE_TOKEN).int(),
    }
    model = qwen2_vl("s2").train()
    model(tokens[:, :2])
    with pytest.raises(
        ConfigError, match=r"VisionAttention attends in both directions, .* attn_implementation=\{.text_config"
    ):
        model(tokens, **image)
    model = qwen2_vl({"text_config": "s2"}).train()
    whole = model(tokens, **image).logits
    set_group_size(model, 3)
    assert not torch.equal(model(tokens, **image).logits, whole)


def test_an_encoder_is_refused():
    with pytest.raises(ConfigError, match=r"bart has an encoder, .* choose a causal language model"):
        check_s2_reaches(BartConfig())


def test_a_probe_and_training_in_other_threads_do_not_meet(seed):
    """The probe sees its own calls alone, and leaves "s2" as it is."""
    model = tiny_model(seed).train()
    stop, failures = threading.Event(), []

    def train() -> None:
        while not stop.is_set():
            try:
                model(random_tokens(seed)).logits.sum().backward()
            except Exception as error:  # seen by the test
                failures.append(error)
                return

    trainings = [threading.Thread(target=train) for _ in range(2)]
    for thread in trainings:
        thread.start()
    try:
        for config in REACHED[:3] * 3:
            assert len(check_s2_reaches(config).grouped) == 2
    finally:
        stop.set()
        for thread in trainings:
            thread.join()
    assert not failures
    assert AttentionInterface()["s2"] is register.s2_attention_forward
