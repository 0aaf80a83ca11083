"""A model under "s2" evaluates and generates with its ordinary attention."""

import pytest
import torch
from tests.models.small_models import NUM_TOKENS, padding, random_tokens, with_attention

from longlora.models.registration import set_group_size


@torch.no_grad()
def test_evaluation_is_sdpa_bit_for_bit(model, batch):
    set_group_size(model, 3)
    model.train()(**batch)  # training in between leaves nothing behind
    expected = with_attention(model, "sdpa").eval()(**batch).logits
    assert torch.equal(model.eval()(**batch).logits, expected)


@torch.no_grad()
def test_evaluation_takes_a_mask_of_queries_by_keys_as_sdpa_does(model, seed):
    batch = {
        "input_ids": random_tokens(seed),
        "attention_mask": torch.rand(2, 1, NUM_TOKENS, NUM_TOKENS).lt(0.5) | torch.eye(NUM_TOKENS).bool(),
    }
    expected = with_attention(model, "sdpa").eval()(**batch).logits
    assert torch.equal(model.eval()(**batch).logits, expected)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generation_is_sdpa_bit_for_bit(model, cache, seed):
    prompt = {"input_ids": random_tokens(seed), "attention_mask": padding((4, 12), (0, 12))}
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    expected, actual = (
        with_attention(model, attention)
        .eval()
        .generate(**prompt, **settings, output_logits=True, return_dict_in_generate=True)
        for attention in ("sdpa", "s2")
    )
    assert torch.equal(actual.sequences, expected.sequences)
    assert torch.equal(torch.stack(actual.logits), torch.stack(expected.logits))
