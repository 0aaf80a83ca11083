"""What S²-Attn cannot follow is refused, and never trained in another way without a word."""

from collections.abc import Iterator

import pytest
import torch
from tests.models.small_models import SIZES, deferred_mask, random_tokens, tiny_model
from transformers import BloomConfig, Gemma2Config, LlamaConfig, MptConfig, PreTrainedConfig, XGLMConfig

from longlora.errors import ConfigError
from longlora.models.grouping import Grouping
from longlora.models.registration import s2_attention_forward


def test_training_refuses_a_mask_of_queries_by_keys(model):
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    with pytest.raises(ConfigError, match="neither a mask of queries by keys nor a KV cache"):
        model.train()(random_tokens(0, 1, 4), attention_mask=mask)


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_training_refuses_a_cache_with_tokens_in_it(model, num_tokens):
    cache = model.eval()(random_tokens(0), use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="neither a mask of queries by keys nor a KV cache"):
        model.train()(random_tokens(1, num_tokens=num_tokens), past_key_values=cache)


def test_training_refuses_a_part_of_a_row(model):
    """As rings leave it: all heads, and no mask."""
    query, keys = torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 6, 8)
    layer = model.model.layers[0].self_attn.train()
    with pytest.raises(ConfigError, match=r"nor a part of a row \(ring context parallelism; Ulysses is supported"):
        s2_attention_forward(layer, query, keys, keys, None, position_ids=torch.arange(6, 12)[None])


def test_training_refuses_attention_dropout(seed):
    model = tiny_model(seed, LlamaConfig(**SIZES, attention_dropout=0.1))
    model.eval()(random_tokens(seed))
    with pytest.raises(ConfigError, match=r"set attention_dropout to 0 .*, not 0\.1"):
        model.train()(random_tokens(seed))


def test_training_refuses_keys_that_are_not_the_tokens_of_the_row(model):
    """As where an architecture puts compressed keys beside those of the row."""
    query, keys = torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 9, 8)
    layer = model.model.layers[0].self_attn.train()
    with pytest.raises(ConfigError, match="LlamaAttention attends from 6 tokens to 9 others"):
        s2_attention_forward(layer, query, keys, keys, deferred_mask(model))


def test_attention_with_sinks_or_a_softcap_refuses_dropout_outside_of_groups_too():
    config = Gemma2Config(**SIZES, head_dim=8, attention_dropout=0.1, sliding_window=4)
    with pytest.raises(ConfigError, match=r"set attention_dropout to 0 .*, not 0\.1"):
        tiny_model(0, config).train()(random_tokens(0))


@pytest.mark.parametrize("name", ["position_bias", "indices", "block_indices", "sinks"])
@pytest.mark.parametrize("training", [True, False])
def test_refuses_what_would_change_attention_and_is_not_implemented(model, name, training):
    """In evaluation too: "sdpa" would leave most of them out without a word."""
    with pytest.raises(ConfigError, match=f"LlamaAttention needs {name}"):
        model.train(training)(random_tokens(0), **{name: torch.ones(4)})


def own_masks() -> Iterator[tuple[str, dict]]:
    packed = torch.tensor([[0, 1, 2, 0, 1, 2]])
    blocks = torch.tensor([[-1, 0, 0, 0, -1, -1]])
    positions = {"position_ids": packed}
    yield "intersection", {"and_mask_function": lambda b, h, q, k: k > 1}
    yield "union", {"or_mask_function": lambda b, h, q, k: k < 2}
    yield "union, packed", {"or_mask_function": lambda b, h, q, k: k < 2, **positions}
    yield "image", {"block_sequence_ids": blocks}
    yield "image, packed", {"block_sequence_ids": blocks, **positions}


@pytest.mark.parametrize("arguments", [own for _, own in own_masks()], ids=[name for name, _ in own_masks()])
def test_refuses_a_mask_of_the_models_own(model, arguments):
    mask = deferred_mask(model, **arguments)
    positions = arguments.get("position_ids", torch.arange(6)[None])
    with pytest.raises(ConfigError, match="with its own mask"):
        mask.cuts(6, grouping=Grouping(group_size=2), position_ids=positions, cu_seqlens=None)


def test_training_refuses_attention_that_goes_both_ways(seed):
    config = LlamaConfig(**SIZES)
    config.is_causal = False
    model = tiny_model(seed, config)
    model.eval()(random_tokens(seed))
    with pytest.raises(ConfigError, match="with its own mask"):
        model.train()(random_tokens(seed))


OWN_ATTENTION = [
    BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=4, hidden_dropout=0.0),
    MptConfig(vocab_size=50, d_model=32, n_layers=1, n_heads=4, max_seq_len=64),
    XGLMConfig(vocab_size=50, d_model=32, num_layers=1, attention_heads=4, ffn_dim=48, attention_dropout=0.0),
]


@pytest.mark.parametrize("config", OWN_ATTENTION, ids=[config.model_type for config in OWN_ATTENTION])
def test_training_refuses_a_model_that_computes_attention_by_itself(config: PreTrainedConfig, seed):
    message = rf"{config.model_type} computes some or all of its attention itself .*another attn_implementation"
    with pytest.raises(ConfigError, match=message):
        tiny_model(seed, config).train()(random_tokens(seed))


@pytest.mark.parametrize(
    "use",
    [lambda mask: mask[:, :2], lambda mask: 1.0 - mask, lambda mask: torch.zeros(2) + mask, lambda mask: mask.dtype],
    ids=["index", "subtract", "add", "attribute"],
)
def test_a_mask_taken_for_a_tensor_refuses(model, use):
    mask = deferred_mask(model)
    with pytest.raises(ConfigError, match="llama computes some or all of its attention itself"):
        use(mask)
    assert not hasattr(mask, "dtype")


def test_training_refuses_padding_with_a_hole(model, seed):
    padding = torch.tensor([[1, 1, 0, 0, 1, 1]])
    with pytest.raises(ConfigError, match=r"cannot follow this attention_mask: .* found one with a hole; pad rows at"):
        model.train()(random_tokens(seed, 1, 6), attention_mask=padding)
    model.eval()(random_tokens(seed, 1, 6), attention_mask=padding)
