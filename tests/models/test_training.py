"""A model under "s2" trains with S²-Attn as defined, whatever the batch."""

import copy

import pytest
import torch
from tests.models.small_models import (
    BATCHES,
    PACKED_LENGTHS,
    SIZES,
    TOLERANCE,
    assert_close,
    assert_same_training,
    logits_and_gradients,
    padding,
    random_tokens,
    summed,
    tiny_model,
    with_attention,
)
from torch._dynamo.testing import CompileCounter
from transformers import GraniteConfig

from longlora.models.registration import set_group_size


@pytest.mark.parametrize("sink_tokens", [0, 1, 5])
@pytest.mark.parametrize("group_size", [1, 3, 4, 8, 100])
def test_training_is_s2_by_definition(model, batch, group_size, sink_tokens, reference_attention, seed):
    set_group_size(model, group_size, sink_tokens=sink_tokens)
    actual = logits_and_gradients(model.train(), **batch)
    expected = logits_and_gradients(with_attention(model, reference_attention).train(), **batch)
    assert_same_training(actual, expected, f"seed {seed}")


def test_training_is_not_full_attention(model, batch):
    set_group_size(model, 3)
    s2_logits, _ = logits_and_gradients(model.train(), **batch)
    full_logits, _ = logits_and_gradients(with_attention(model, "sdpa").train(), **batch)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(s2_logits, full_logits)


@pytest.mark.parametrize("which", ["logits", "gradient"])
def test_an_error_of_ten_times_the_tolerance_would_be_noticed(model, which, seed):
    expected = logits_and_gradients(model.train(), input_ids=random_tokens(seed))
    logits, gradients = expected[0].clone(), {name: gradient.clone() for name, gradient in expected[1].items()}
    assert_same_training((logits, gradients), expected)
    tensor = logits if which == "logits" else gradients["model.layers.1.self_attn.q_proj.weight"]
    tensor[3, 5] += 10 * TOLERANCE * max(1.0, tensor.abs().max().item())
    with pytest.raises(AssertionError, match=which):
        assert_same_training((logits, gradients), expected)


def test_without_a_group_size_training_is_full_attention(model, batch, seed):
    set_group_size(model, None)
    actual = logits_and_gradients(model.train(), **batch)
    expected = logits_and_gradients(with_attention(model, "sdpa").train(), **batch)
    assert_same_training(actual, expected, f"seed {seed}")


def test_a_packed_row_trains_as_its_documents_alone(model, seed):
    tokens = random_tokens(seed, batch_size=1)
    set_group_size(model, 3)
    model.train()
    positions = BATCHES["packed"]["position_ids"]
    packed = logits_and_gradients(model, input_ids=tokens, position_ids=positions, use_cache=False)
    alone = [
        logits_and_gradients(model, input_ids=document, use_cache=False)
        for document in tokens.split(PACKED_LENGTHS, dim=1)
    ]
    assert_same_training(packed, summed(alone), f"seed {seed}")


def test_cumulative_lengths_pack_as_positions_do(model, seed):
    """As data collators for variable-length attention hand them over."""
    set_group_size(model, 3)
    batch = {"input_ids": random_tokens(seed, batch_size=1), "use_cache": False}
    by_positions = logits_and_gradients(model.train(), **batch, position_ids=BATCHES["packed"]["position_ids"])
    boundaries = torch.tensor([0, *torch.tensor(PACKED_LENGTHS).cumsum(0)], dtype=torch.int32)
    by_lengths = logits_and_gradients(model, **batch, cu_seq_lens_q=boundaries, cu_seq_lens_k=boundaries)
    assert_same_training(by_lengths, by_positions, f"seed {seed}")


def test_training_scales_scores_as_the_model_asks(seed, reference_attention):
    model = tiny_model(seed, GraniteConfig(**SIZES, attention_multiplier=0.7)).train()
    set_group_size(model, 3)
    actual = logits_and_gradients(model, input_ids=random_tokens(seed))
    expected = logits_and_gradients(with_attention(model, reference_attention), input_ids=random_tokens(seed))
    assert_same_training(actual, expected, f"seed {seed}")


@pytest.mark.parametrize("stretch", [(5, 12), (0, 7)], ids=["left", "right"])
def test_a_padded_row_trains_as_its_tokens_alone(model, stretch, seed):
    """Positions count on from the padding; RoPE sees only their differences."""
    set_group_size(model, 3)
    tokens = random_tokens(seed, batch_size=1)
    padded = logits_and_gradients(model.train(), input_ids=tokens, attention_mask=padding(stretch))
    alone = logits_and_gradients(model, input_ids=tokens[:, slice(*stretch)])
    assert_same_training(padded, alone, f"seed {seed}")


def test_rows_of_a_batch_train_as_each_alone(model, seed):
    set_group_size(model, 3)
    tokens = random_tokens(seed, batch_size=3)
    together = logits_and_gradients(model.train(), input_ids=tokens)
    alone = [logits_and_gradients(model, input_ids=row) for row in tokens.split(1)]
    assert_same_training(together, summed(alone), f"seed {seed}")


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(model, batch, use_reentrant):
    set_group_size(model, 3)
    logits, gradients = logits_and_gradients(model.train(), **batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    again_logits, again_gradients = logits_and_gradients(model, **batch)
    assert torch.equal(again_logits, logits)
    assert all(torch.equal(again_gradients[name], gradient) for name, gradient in gradients.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_model_trains_alike_and_compiles_nothing_anew_for_another_packing(model, seed):
    set_group_size(model, 3)
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = copy.deepcopy(model.train())
    compiled.compile(backend=counter)
    num_compilations = []
    for name in ("packed", "packed differently", "packed"):
        batch = {"input_ids": random_tokens(seed), "use_cache": False}
        batch["position_ids"] = BATCHES[name]["position_ids"].expand(2, -1).contiguous()
        assert_same_training(logits_and_gradients(compiled, **batch), logits_and_gradients(model, **batch), name)
        num_compilations.append(counter.frame_count)
    assert num_compilations[0] > 0 and len(set(num_compilations)) == 1
