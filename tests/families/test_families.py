"""Every family: S²-Attn while training, its ordinary attention otherwise, and LoRA+ that saves and merges."""

import shutil
from pathlib import Path

import pytest
import torch
from tests.families.families import FAMILIES, NUM_LAYERS, VOCABULARY, Family
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, masking_utils

from longlora.merge import merge_adapter
from longlora.models import registration as register
from longlora.models.compat import ordinary_attention
from longlora.models.grouping import Grouping, set_grouping
from longlora.models.lora import add_adapter, attention_linear_names, embedding_and_norm_names
from longlora.models.probe import check_s2_reaches

NUM_TOKENS = 13
GROUP_SIZE = 4
TOLERANCE = 256 * torch.finfo(torch.float32).eps  # of a tensor's largest number

pytestmark = [
    pytest.mark.filterwarnings("ignore:The explicitly set RoPE scaling factor"),
    pytest.mark.parametrize("family", FAMILIES, ids=[family.model_type for family in FAMILIES]),
]
LINEAR_ATTENTION = ("qwen3_next",)  # whose other layers carry a state over the whole row


def make(family: Family, seed: int, *, attention: str | None = "s2", one_layer: bool = False) -> PreTrainedModel:
    """Build a random model whose norms, biases and sinks are random as well."""
    config = family.config_of_one_layer() if one_layer else family.config()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention or ordinary_attention(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    set_grouping(model, Grouping(group_size=GROUP_SIZE))
    return model


def random_tokens(seed: int, batch_size: int = 1, num_tokens: int = NUM_TOKENS) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch_size, num_tokens), generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor, message: str = "", *, tolerance: float = TOLERANCE) -> None:
    allowed = tolerance * max(1.0, expected.abs().max().item())
    error = (actual - expected).abs().max().item()
    assert error <= allowed, f"differs by {error:.2e}, {allowed:.2e} allowed: {message}"


def influence(model: PreTrainedModel, seed: int) -> Tensor:
    """How much the logits at one token (first axis) move with the embedding of another (second axis)."""
    embeddings = model.get_input_embeddings()(random_tokens(seed)).detach().requires_grad_()  # (1, T, hidden)
    weights = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))
    numbers = model(inputs_embeds=embeddings, use_cache=False).logits[0] @ weights  # (T,)
    rows = [torch.autograd.grad(number, embeddings, retain_graph=True)[0][0].abs().sum(dim=-1) for number in numbers]
    return torch.stack(rows)  # (T, T)


def reach_of_one_s2_layer() -> Tensor:
    """Which token sees which through one layer, where half of the heads have their groups shifted: (T, T) booleans."""
    time = torch.arange(NUM_TOKENS)
    unshifted, shifted = time // GROUP_SIZE, (time - GROUP_SIZE // 2).div(GROUP_SIZE, rounding_mode="floor")
    same = (unshifted[:, None] == unshifted) | (shifted[:, None] == shifted)  # (T, T)
    return same.tril()


def test_training_reaches_as_far_as_its_groups_and_evaluation_to_the_beginning(family, seed):
    model = make(family, seed, one_layer=True)
    assert torch.equal(influence(model.train(), seed) > 0, reach_of_one_s2_layer()), f"seed {seed}"
    everything_before = torch.ones(NUM_TOKENS, NUM_TOKENS, dtype=torch.bool).tril()
    assert torch.equal(influence(model.eval(), seed) > 0, everything_before), f"seed {seed}"


def test_the_probe_and_a_training_step_agree_on_the_layers_with_groups(family, seed, monkeypatch):
    calls = []

    def counting(*arguments, **named):
        if named["window"] is None:
            calls.append(arguments)
        return attend_in_segments(*arguments, **named)

    attend_in_segments = register.attend_in_segments
    monkeypatch.setattr(register, "attend_in_segments", counting)
    model = make(family, seed)
    layers = check_s2_reaches(family.config())
    num_linear = 1 if family.model_type in LINEAR_ATTENTION else 0
    assert len(layers.windowed) == family.windowed_layers
    assert len(layers.grouped) == NUM_LAYERS - family.windowed_layers - num_linear
    calls.clear()  # the probe's own
    model.train()(random_tokens(seed), use_cache=False)
    assert len(calls) == len(layers.grouped)
    model.eval()(random_tokens(seed), use_cache=False)
    assert len(calls) == len(layers.grouped)


@torch.no_grad()
def test_evaluation_is_the_ordinary_attention_of_the_model(family, seed):
    model = make(family, seed)
    ordinary = make(family, seed, attention=None)  # "sdpa", or "eager" where that lacks what the model needs
    tokens = random_tokens(seed, batch_size=2)
    padding = torch.ones_like(tokens)
    padding[0, :5] = 0
    for batch in ({}, {"attention_mask": padding}):
        expected = ordinary.eval()(tokens, **batch).logits
        actual = model.eval()(tokens, **batch).logits
        if ordinary.config._attn_implementation == "sdpa":
            assert torch.equal(actual, expected)
        else:
            real = batch.get("attention_mask", torch.ones_like(tokens)).bool()
            assert_close(actual[real], expected[real], f"seed {seed}")


def test_generation_with_a_cache_says_what_it_would_say_without(family, seed):
    model = make(family, seed).eval()
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "output_logits": True}
    prompt = random_tokens(seed)
    cached, uncached = (
        model.generate(prompt, **settings, use_cache=use_cache, return_dict_in_generate=True)
        for use_cache in (True, False)
    )
    assert torch.equal(cached.sequences, uncached.sequences)
    # Linear attention computes rows in chunks, and single tokens by recurrence: over 150 draws, log10 of the error is
    # -6.0 ± 0.33, and eight standard deviations are allowed.
    tolerance = 16 * TOLERANCE if family.model_type in LINEAR_ATTENTION else TOLERANCE
    found, expected = torch.stack(cached.logits), torch.stack(uncached.logits)
    assert_close(found, expected, f"seed {seed}", tolerance=tolerance)


def test_a_packed_row_trains_as_its_documents_alone(family, seed):
    if family.model_type in LINEAR_ATTENTION:
        pytest.skip("layers of linear attention carry a state over the whole row")
    if family.model_type == "llama4_text" and not hasattr(masking_utils, "remap_positions_for_packed_sequence"):
        pytest.skip("transformers 5.17 counts chunks from the beginning of the row, not of each document")
    model = make(family, seed).train()
    lengths = (6, 1, 6)
    tokens = random_tokens(seed)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]  # (1, T)
    packed = model(tokens, position_ids=positions, use_cache=False).logits
    alone = [model(document, use_cache=False).logits for document in tokens.split(lengths, dim=1)]
    assert_close(packed, torch.cat(alone, dim=1), f"seed {seed}")


def test_padding_on_either_side_changes_nothing_for_real_tokens(family, seed):
    if family.model_type in LINEAR_ATTENTION:
        pytest.skip("layers of linear attention carry a state over the whole row")
    model = make(family, seed).train()
    tokens = random_tokens(seed, batch_size=2)
    mask = torch.ones_like(tokens)
    mask[0, :4], mask[1, 9:] = 0, 0
    padded = model(tokens, attention_mask=mask, use_cache=False).logits
    for row, stretch in ((0, slice(4, None)), (1, slice(0, 9))):
        positions = torch.arange(NUM_TOKENS)[None, stretch]  # dynamic scaling apart, RoPE sees differences alone
        alone = model(tokens[[row], stretch], position_ids=positions, use_cache=False).logits
        assert_close(padded[[row], stretch], alone, f"row {row}, seed {seed}")


def adapted(family: Family, seed: int):
    return add_adapter(
        make(family, seed),
        trainable=("embed", "norm"),
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules="attention",
    )


def test_lora_finds_attention_embeddings_and_norms(family, seed):
    model = make(family, seed)
    assert tuple(attention_linear_names(model)) == family.targets
    assert tuple(embedding_and_norm_names(model)) == family.saved


def test_gradients_reach_all_that_is_trained_and_nothing_else(family, seed):
    model = adapted(family, seed).train()
    tokens = random_tokens(seed, batch_size=2)
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:  # multiplied by lora_B, which begins as zero
            assert not parameter.grad.any()
        elif parameter.requires_grad:
            assert parameter.grad.any() and parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name
    trained = {name.split(".")[-2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"default"} <= trained


def test_merged_equals_adapter(family, seed, base_model, tmp_path):
    """`merge_adapter` compares the logits itself; here the reloaded model is compared once more, at full length."""
    base, adapter, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    make(family, seed).save_pretrained(base)
    for file in Path(base_model).glob("tokenizer*"):
        shutil.copy(file, base)
    model = adapted(family, seed).eval()
    model.base_model.model.config.name_or_path = str(base)
    model.peft_config["default"].base_model_name_or_path = str(base)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(adapter)
    merge_adapter(adapter, merged)
    tokens = random_tokens(seed)
    with torch.no_grad():
        expected = model(tokens).logits
        ordinary = ordinary_attention(family.config())
        reloaded = AutoModelForCausalLM.from_pretrained(merged, attn_implementation=ordinary).eval()
        assert_close(reloaded(tokens).logits, expected, f"seed {seed}")
        with pytest.raises(AssertionError, match="differs by"):
            assert_close(make(family, seed).eval()(tokens).logits, expected)
