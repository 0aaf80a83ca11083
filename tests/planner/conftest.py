from collections.abc import Callable
from typing import Any

import pytest

from longlora.planner.architecture import Architecture, find_architecture
from longlora.planner.job import PlannedRun


@pytest.fixture(scope="session")
def llama_7b() -> Architecture:
    return find_architecture("meta-llama/Llama-2-7b-hf")


@pytest.fixture
def original(llama_7b: Architecture) -> Callable[..., PlannedRun]:
    """The setting of the paper's tables 12: 8 GPUs, ZeRO-2 as in the original's stage2.json, transformers 4.34.

    DeepSpeed casts the model to bfloat16; logits are whole and in float32; torch's AdamW is the one of torch 2.0;
    buckets are of 1e9 elements; embeddings and norms are trained in place; each layer has its rotary table; layers are
    computed again to their end.
    """

    def build(context_length: int, tuning: Any, **changes: Any) -> PlannedRun:
        setting: dict[str, Any] = {
            "strategy": "zero2",
            "num_gpus": 8,
            "attention": "s2" if tuning == "lora+" else "full",
            "chunked_loss": False,
            "optimizer": "adamw_foreach",
            "reduce_bucket_elements": 1_000_000_000,
            "trained_in_place": True,
            "rotary_cache_per_layer": True,
            "reentrant_checkpointing": True,
        }
        return PlannedRun(architecture=llama_7b, context_length=context_length, tuning=tuning, **{**setting, **changes})

    return build
