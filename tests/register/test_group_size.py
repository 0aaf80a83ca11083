"""The group size of a model: set, forgotten, never saved."""

import pytest
import torch
from tests.register.models import random_tokens
from transformers import AutoModelForCausalLM

from longlora.errors import ConfigError
from longlora.register import forget_group_size, set_group_size


@pytest.mark.parametrize("group_size", [0, -4])
def test_refuses_a_group_without_tokens(model, group_size):
    with pytest.raises(ConfigError, match=f"at least 1 token, got {group_size}"):
        set_group_size(model, group_size)


def test_a_forgotten_group_size_is_not_saved(model, tmp_path, seed):
    untouched = model.config.to_dict()
    tokens = random_tokens(seed)
    default = model.train()(tokens).logits
    set_group_size(model, 5)
    forget_group_size(model)
    forget_group_size(model)  # nothing left to forget
    assert model.config.to_dict() == untouched
    assert torch.equal(model(tokens).logits, default)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="s2").train()
    assert torch.equal(loaded(tokens).logits, default)
