"""The kernels of CUDA against the definition, where there is CUDA."""

from dataclasses import replace

import pytest
import torch
from tests.attention.cases import Case, assert_parity, random_tensors
from torch import Tensor

from longlora.attention import s2_attention, varlen
from longlora.attention.varlen import flash_function

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

CASES = [
    Case(num_tokens=512, group_size=128, batch_size=2, num_heads=8, num_kv_heads=8, head_dim=64),
    Case(
        num_tokens=300,
        group_size=77,
        batch_size=2,
        num_heads=16,
        num_kv_heads=2,
        head_dim=128,
        boundaries=(1, 130, 400),
    ),
    Case(num_tokens=257, group_size=64, num_heads=9, num_kv_heads=3, head_dim=32, stretches=((5, 250),)),
    Case(num_tokens=65, group_size=100, num_heads=8, num_kv_heads=1, head_dim=64),
    Case(num_tokens=512, group_size=128, batch_size=2, num_heads=8, num_kv_heads=8, head_dim=64, sink_tokens=1),
    Case(
        num_tokens=700,
        group_size=77,
        num_heads=16,
        num_kv_heads=2,
        head_dim=128,
        boundaries=(1, 130, 400),
        stretches=((5, 690),),
        sink_tokens=4,
    ),
    # A long document among short ones: regular segments, and what is left over.
    Case(num_tokens=1500, group_size=200, num_heads=8, num_kv_heads=2, head_dim=128, boundaries=(40, 1300, 1310, 1400)),
    Case(
        num_tokens=1500, group_size=200, num_heads=9, num_kv_heads=3, head_dim=64, boundaries=(40, 1300), sink_tokens=1
    ),
]
NAMES = ["plain", "packed", "padded", "one group", "sink", "packed with sinks", "mixed", "mixed with a sink"]
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def more_variants_than_a_model_has():
    """All cases run in one process, each a shape of its own to the compiler."""
    with torch._dynamo.config.patch(recompile_limit=1000):  # undone by monkeypatch, the setting would be gone
        yield


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("backend", ["varlen", "by_length", "sdpa", "flex", "explicit"])
def test_equals_the_definition(backend, case, dtype, seed):
    assert_parity(replace(case, seed=seed), dtype, device="cuda", backend=backend)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_flash_attn_equals_the_definition(case, dtype, seed):
    if flash_function() is None:
        pytest.skip("flash-attn is not installed")
    assert_parity(replace(case, seed=seed), dtype, device="cuda", backend="flash")


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("backend", ["flex", "explicit"])
def test_softcap_and_sinks_equal_the_definition(backend, case, has_sinks, softcap, dtype, seed):
    case = replace(case, softcap=softcap, has_sinks=has_sinks, seed=seed)
    assert_parity(case, dtype, device="cuda", backend=backend)


def test_under_autocast_takes_the_fast_path(monkeypatch, seed):
    """As when float32 weights train: rotated query and key are float32, the value is not."""
    dtypes = []
    fast_path = varlen.attend_segments

    def watched(query: Tensor, *others, **named) -> Tensor:
        dtypes.append(query.dtype)
        return fast_path(query, *others, **named)

    monkeypatch.setattr(varlen, "attend_segments", watched)
    case = Case(num_tokens=64, group_size=16, head_dim=32, seed=seed)
    query, key, value, _ = random_tensors(case, torch.float32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        s2_attention(query, key, value.bfloat16(), group_size=16)
    assert dtypes and set(dtypes) == {torch.bfloat16}
