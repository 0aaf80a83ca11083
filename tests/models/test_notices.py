"""What a plain script is told: which layers train in groups, batches that nothing cuts, training mode by mistake."""

import logging

import pytest
import torch
from tests.models.small_models import SIZES, assert_close, mistral, random_tokens, tiny_model, with_attention
from transformers import Qwen2Config

from longlora.errors import ConfigError
from longlora.models.registration import set_group_size


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="longlora")


def mixed(num_layers: int = 4) -> Qwen2Config:
    layers = ["sliding_attention", "full_attention"] * (num_layers // 2)
    sizes = SIZES | {"num_hidden_layers": num_layers}
    return Qwen2Config(**sizes, use_sliding_window=True, sliding_window=4, layer_types=layers)


REACHED = "2 of 4 attention layers train with S²-Attn (1, 3); the others keep their own window (sliding_window=4)"


def test_a_model_with_windows_in_every_layer_is_refused_in_its_first_training_step(seed):
    model = tiny_model(seed, mistral(sliding_window=4))
    tokens = random_tokens(seed)
    model.eval()(tokens)
    with pytest.raises(ConfigError, match=r"no layer of mistral would train with S²-Attn.*sliding_window=4"):
        model.train()(tokens)


@pytest.mark.parametrize("is_set", [True, False])
def test_the_layers_are_told_once(seed, caplog, is_set):
    model = tiny_model(seed, mixed()).train()
    if is_set:
        set_group_size(model, 3)
        assert caplog.text.count(REACHED) == 1
    model(random_tokens(seed))
    model(random_tokens(seed))
    set_group_size(model, 5)
    assert caplog.text.count(REACHED) == 1
    assert [record.levelname for record in caplog.records if "attention layers train" in record.message] == ["WARNING"]


def test_layers_with_full_attention_are_told(seed, caplog):
    model = tiny_model(seed, mixed()).train()
    set_group_size(model, 3, full_attention_interval=2)
    told = "1 of 4 attention layers train with S²-Attn (1); 1 train with full attention (3); the others keep their own"
    assert told in caplog.text
    plain = tiny_model(seed).train()
    set_group_size(plain, 3, full_attention_interval=2)
    assert "1 of 2 attention layers train with S²-Attn (0); 1 train with full attention (1)" in caplog.text


def test_layers_are_told_in_the_second_step_where_the_last_is_of_another_kind(seed, caplog):
    """As with linear attention; here the last layer is not called at all."""
    model = tiny_model(seed, mixed()).train()
    del model.model.layers[3]
    model(random_tokens(seed))
    assert "attention layers train" not in caplog.text
    model(random_tokens(seed))
    assert "1 of 3 attention layers train with S²-Attn (1)" in caplog.text


def test_a_model_that_trains_in_groups_everywhere_gets_no_warning(model, seed, caplog):
    set_group_size(model, 3)
    model.train()(random_tokens(seed))
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "all 2 attention layers train with S²-Attn")
    ]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_recomputed_activations_are_no_second_step(seed, caplog):
    model = tiny_model(seed, mixed()).train()
    model.gradient_checkpointing_enable()
    model(random_tokens(seed), use_cache=False).logits.sum().backward()
    assert caplog.text.count(REACHED) == 1


NOTHING_CUT = "S²-Attn cuts no document of this batch: the longest has {} tokens, and groups have {}"


@pytest.mark.parametrize(
    ("batch", "longest"),
    [
        ({}, 12),
        ({"position_ids": torch.cat([torch.arange(5), torch.arange(7)])[None].expand(2, -1)}, 7),
        # The padding is longer than half a group, and no document.
        ({"attention_mask": torch.cat([torch.ones(2, 3), torch.zeros(2, 9)], dim=1).long()}, 3),
    ],
    ids=["plain", "packed", "padded"],
)
def test_a_batch_that_nothing_cuts_is_told_once(model, batch, longest, seed, caplog):
    group_size = 2 * longest
    set_group_size(model, group_size)
    tokens = random_tokens(seed)
    for _ in range(2):
        model.train()(tokens, use_cache=False, **batch)
    assert caplog.text.count(NOTHING_CUT.format(longest, group_size)) == 1
    full = with_attention(model, "sdpa")(tokens, use_cache=False, **batch).logits
    real = batch.get("attention_mask", torch.ones_like(tokens)).bool()
    assert_close(model(tokens, use_cache=False, **batch).logits[real], full[real])


def test_unshifted_groups_cut_no_document_that_is_shorter(model, seed, caplog):
    for group_size in (12, 13):
        assert "cuts no document" not in caplog.text
        set_group_size(model, group_size, shift=False)
        model.train()(random_tokens(seed))
    assert NOTHING_CUT.format(12, 13) in caplog.text


@pytest.mark.parametrize("group_size", [1, 12, 23])
def test_a_batch_that_is_cut_for_half_of_the_heads_gets_no_warning(model, group_size, seed, caplog):
    set_group_size(model, group_size)
    model.train()(random_tokens(seed))
    assert "cuts no document" not in caplog.text


def test_generating_in_training_mode_with_a_cache_names_the_remedy(model, seed):
    with pytest.raises(ConfigError, match=r"to generate or evaluate, call model\.eval\(\) first"):
        model.train().generate(random_tokens(seed), max_new_tokens=3, min_new_tokens=3)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_generating_in_training_mode_without_a_cache_names_the_remedy(model, seed, caplog):
    model.train().gradient_checkpointing_enable()
    model(random_tokens(seed), use_cache=False).logits.sum().backward()
    assert "call model.eval() first" not in caplog.text
    model.generate(random_tokens(seed), max_new_tokens=3, min_new_tokens=3)
    assert caplog.text.count("call model.eval() first") == 1


def test_equal_configurations_are_two_models(seed, caplog):
    for _ in range(2):
        tiny_model(seed, mixed()).train()(random_tokens(seed))
    assert caplog.text.count(REACHED) == 2
