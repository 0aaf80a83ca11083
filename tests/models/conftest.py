"""A tiny model, every kind of batch, and the definition of S²-Attn under a name of its own."""

import pytest
import torch
from tests.models.small_models import BATCHES, random_tokens, tiny_model
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from longlora.attention import s2_attention_reference


@pytest.fixture
def model(seed: int) -> PreTrainedModel:
    return tiny_model(seed)


@pytest.fixture(params=BATCHES.values(), ids=BATCHES.keys())
def batch(request: pytest.FixtureRequest, seed: int) -> dict[str, Tensor]:
    return {"input_ids": random_tokens(seed), "use_cache": False, **request.param}


@pytest.fixture(scope="module")
def reference_attention() -> str:
    """Give transformers the definition of S²-Attn under a name of its own."""

    def attend(module, query, key, value, attention_mask, scaling=None, position_ids=None, **_):
        batch_size, num_tokens = query.shape[0], query.shape[2]
        cu_seqlens = None
        if attention_mask is None:
            starts = (position_ids.expand(batch_size, -1) == 0).flatten().nonzero().flatten()
            cu_seqlens = torch.tensor([*starts.tolist(), batch_size * num_tokens])
        output = s2_attention_reference(
            query,
            key,
            value,
            group_size=module.s2_grouping.group_size,
            sink_tokens=module.s2_grouping.sink_tokens,
            scale=scaling,
            cu_seqlens=cu_seqlens,
            padding_mask=attention_mask,
        )
        return output.transpose(1, 2), None

    AttentionInterface.register("s2 by definition", attend)
    AttentionMaskInterface.register("s2 by definition", lambda **arguments: arguments["attention_mask"])
    return "s2 by definition"
