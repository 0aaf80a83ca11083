"""Which kernel runs, what is refused, and what the kernels of CUDA are handed, with those kernels replaced."""

import inspect
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from tests.attention.cases import HEADS, Case, assert_parity, cases, random_tensors
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen

from longlora.attention import backends, by_length, cut_points, s2, s2_attention, sdpa, varlen
from longlora.attention.backends import AttentionRequest, choose_backend, refusal
from longlora.errors import ConfigError

FULL = Case(
    num_tokens=13, group_size=5, batch_size=2, boundaries=(4, 15), stretches=((1, 13), (0, 10)), scale=0.3
)  # every cause of a cut


def request(device: str = "cpu", dtype: torch.dtype = torch.float32, head_dim: int = 64, **others) -> AttentionRequest:
    return AttentionRequest(device=device, dtype=dtype, head_dim=head_dim, **{"value_dim": head_dim} | others)


@pytest.fixture
def triton(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())


BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (request(), "sdpa"),
        (request(dtype=torch.float64, head_dim=3), "sdpa"),
        (request(has_sinks=True), "explicit"),
        (request(dtype=BF16, has_sinks=True), "explicit"),
        (request(value_dim=32), "sdpa"),
        (request(value_dim=32, has_sinks=True), "explicit"),
        (request(has_softcap=True), "explicit"),
        (request(device="mps"), "sdpa"),
        (request(device="mps", has_sinks=True), "explicit"),
        (request(device="meta", has_softcap=True), "explicit"),
        (request(device="cuda", dtype=BF16), "varlen"),
        (request(device="cuda", dtype=torch.float16, head_dim=256), "varlen"),
        (request(device="cuda"), "sdpa"),
        (request(device="cuda", dtype=BF16, head_dim=100), "sdpa"),
        (request(device="cuda", dtype=BF16, head_dim=264), "sdpa"),
        (request(device="cuda", dtype=BF16, has_sinks=True), "flex"),
        (request(device="cuda", has_softcap=True), "flex"),
        (request(device="cuda", has_softcap=True, dtype=torch.float64), "explicit"),
        (request(device="cuda", has_softcap=True, head_dim=8), "explicit"),
    ],
)
def test_auto_takes_the_first_that_can(asked, chosen, triton):
    assert choose_backend("auto", asked) == chosen


ON_CUDA = {"device": "cuda", "dtype": BF16}


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [
        ((8, 0), "varlen"),
        ((8, 9), "varlen"),
        ((9, 0), "by_length"),
        ((10, 0), "by_length"),
        ((12, 0), "varlen"),
        ((17, 3), "varlen"),  # of which nothing is known
    ],
)
def test_auto_goes_by_the_card(capability, chosen, triton, installed):
    installed()
    on_card = {**ON_CUDA, "capability": capability}
    assert choose_backend("auto", request(**on_card)) == chosen
    assert choose_backend("auto", request(**on_card | {"dtype": torch.float32})) == "sdpa"
    assert choose_backend("auto", request(**on_card, has_window=True)) == "varlen"
    assert choose_backend("auto", request(**on_card, has_sinks=True)) == "flex"
    installed(flash_attn=flash_attention_2)
    assert choose_backend("auto", request(**on_card)) == chosen
    installed(flash_attn_interface=flash_attention_3)
    assert choose_backend("auto", request(**on_card)) == ("flash" if chosen == "by_length" else "varlen")


def test_auto_takes_varlen_where_torch_runs_a_newer_flash_attention_under_it(installed, monkeypatch):
    installed()
    monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: "FA4", raising=False)
    assert choose_backend("auto", request(**ON_CUDA, capability=(9, 0))) == "varlen"
    monkeypatch.delattr(torch.nn.attention, "current_flash_attention_impl")  # as before torch 2.12
    assert choose_backend("auto", request(**ON_CUDA, capability=(9, 0))) == "by_length"


def test_auto_does_without_flex_where_nothing_compiles_it(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert choose_backend("auto", request(device="cuda", has_softcap=True)) == "explicit"


@pytest.mark.parametrize(
    ("backend", "asked", "reason"),
    [
        ("by_length", request(**ON_CUDA, has_window=True), "does not support a window"),
        ("by_length", request(), "runs on CUDA only, not on cpu"),
        ("sdpa", request(has_softcap=True), "does not support softcap"),
        ("sdpa", request(has_sinks=True), "does not support sinks"),
        ("varlen", request(), "runs on CUDA only, not on cpu"),
        ("varlen", request(device="cuda", dtype=BF16, has_sinks=True), "does not support sinks"),
        ("varlen", request(device="cuda", dtype=BF16, has_softcap=True), "does not support softcap"),
        ("varlen", request(device="cuda"), "runs in bfloat16 or float16, not in torch.float32"),
        ("varlen", request(device="cuda", dtype=BF16, head_dim=12), ".* a multiple of 8 up to 256, got 12 and 12"),
        ("flash", request(), "runs on CUDA only, not on cpu"),
        ("flash", request(device="cuda", dtype=BF16), r"needs the package flash-attn \(2 or 3\)"),
        ("flash", request(device="cuda", dtype=BF16, has_sinks=True), "does not support sinks"),
        ("flex", request(needs_gradients=True), "has no backward pass on the CPU"),
        ("flex", request(device="mps"), "runs on CUDA, or for testing on the CPU, not on mps"),
        ("flex", request(device="cuda", head_dim=8), "needs head dimensions of at least 16"),
    ],
)
def test_a_backend_that_cannot_is_refused_with_its_reason(backend, asked, reason, triton):
    with pytest.raises(ConfigError, match=f"the attention backend '{backend}' {reason}"):
        choose_backend(backend, asked)


def test_flex_without_triton_is_refused(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert refusal("flex", request(device="cuda")) == "is compiled by triton, which is not installed"


def test_a_name_that_is_no_backend_is_refused():
    attend = getattr(choose_backend, "__wrapped__", choose_backend)  # past the check of types in tests
    with pytest.raises(ConfigError, match=r"no attention backend 'triton'; choose one of auto, varlen"):
        attend("triton", request())


def test_a_refusal_reaches_whoever_asks():
    with pytest.raises(ConfigError, match="'varlen' runs on CUDA only, not on cpu"):
        s2_attention(*torch.zeros(3, 1, 4, 8, 8), group_size=4, backend="varlen")


def in_segments(
    query, key, value, boundaries: Tensor, key_boundaries: Tensor, *, scale: float | None, softcap: float = 0.0
) -> Tensor:
    """Do what the kernels for variable lengths do, one segment after another, the causal mask aligned at the end."""
    outputs = []
    for (first, last), (first_key, last_key) in zip(
        pairwise(boundaries.tolist()), pairwise(key_boundaries.tolist()), strict=True
    ):
        q = query[first:last].transpose(0, 1)  # (h, length, D)
        k, v = (tensor[first_key:last_key].transpose(0, 1) for tensor in (key, value))  # (h_kv, keys, D)
        repeats = q.shape[0] // k.shape[0]
        k, v = k.repeat_interleave(repeats, dim=0), v.repeat_interleave(repeats, dim=0)
        scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if softcap != 0:
            scores = softcap * (scores / softcap).tanh()
        hidden = torch.ones_like(scores).triu(1 + k.shape[1] - q.shape[1]).bool()
        output = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs)


class VarlenInPython:
    """Does what `varlen_attn` does and keeps what it was given."""

    def __init__(self, *, grouped: bool) -> None:
        signature = inspect.signature(torch_varlen.varlen_attn)
        if not grouped:  # as before torch 2.12
            parameters = [value for name, value in signature.parameters.items() if name != "enable_gqa"]
            signature = signature.replace(parameters=parameters)
        self.__signature__ = signature
        self.calls: list[dict] = []

    def __call__(self, *arguments, **named) -> Tensor:
        given = self.__signature__.bind(*arguments, **named).arguments
        self.calls.append(given)
        return in_segments(*arguments[:5], scale=given["scale"])


@pytest.fixture(params=[True, False], ids=["torch 2.13", "torch before 2.12"])
def varlen_in_python(monkeypatch, request) -> VarlenInPython:
    """Send s2_attention down the path of CUDA, with the kernel replaced."""
    kernel = VarlenInPython(grouped=request.param)
    monkeypatch.setattr(torch_varlen, "varlen_attn", kernel)
    monkeypatch.setattr(s2, "choose_backend", lambda *_: "varlen")
    return kernel


@pytest.mark.parametrize("sink_tokens", [0, 3])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_varlen_equals_the_definition(varlen_in_python, num_heads, num_kv_heads, sink_tokens, seed):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
    assert_parity(Case(**vars(FULL) | heads | {"sink_tokens": sink_tokens, "seed": seed}), torch.float64)


@pytest.mark.parametrize("shortest", [1, 3, 5, 6, 100])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(sink_tokens=True))
def test_by_length_equals_the_definition_wherever_the_line_is_drawn(varlen_in_python, shortest, case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s2, "choose_backend", lambda *_: "by_length")
        patch.setattr(s2, "shortest_for_sdpa", lambda _: shortest)
        assert_parity(case, torch.float64)


def test_by_length_hands_regular_segments_to_sdpa_and_the_rest_to_varlen(varlen_in_python, monkeypatch):
    """A long document among short ones: groups of 4, documents of 3, 15, 1 and 6 tokens."""
    by_sdpa = []
    attend_run = sdpa.attend_run
    monkeypatch.setattr(
        sdpa, "attend_run", lambda q, k, v, run, **named: by_sdpa.append(run) or attend_run(q, k, v, run, **named)
    )
    cuts = cut_points(1, 25, group_size=4, cu_seqlens=torch.tensor([0, 3, 18, 19, 25]))
    query = torch.zeros(25, 2, 8)
    by_length.attend(query, query, query, cuts, shortest=4)
    assert by_sdpa == [(4, 3, 0), (4, 1, 0), (4, 3, 0), (4, 1, 0)]
    segments = [call["cu_seq_q"].diff().tolist() for call in varlen_in_python.calls]
    assert segments == [[3], [3, 1], [2], [2, 1, 2], [1, 1, 2]]


def test_a_row_that_is_one_document_is_one_call_as_the_model_makes_it(varlen_in_python):
    query = torch.zeros(25, 2, 8)
    by_length.attend(query, query, query, cut_points(1, 25, group_size=None), shortest=16)
    assert not varlen_in_python.calls


def test_varlen_is_handed_what_the_kernel_asks_for(varlen_in_python):
    case = Case(num_tokens=10, group_size=4, batch_size=2, boundaries=(3,), scale=0.3)
    s2_attention(*random_tensors(case)[:3], **case.settings)
    unshifted, shifted = varlen_in_python.calls
    assert unshifted["cu_seq_q"].tolist() == [0, 3, 7, 10, 14, 18, 20]
    assert shifted["cu_seq_q"].tolist() == [0, 2, 3, 5, 9, 10, 12, 16, 20]
    for call in (unshifted, shifted):
        assert call["cu_seq_q"].dtype == torch.int32 and torch.equal(call["cu_seq_q"], call["cu_seq_k"])
        assert call["max_q"] == call["max_k"] == 4
        assert call["window_size"] == (-1, 0)  # causal
        assert call["scale"] == 0.3
        if "enable_gqa" in varlen_in_python.__signature__.parameters:
            assert call["enable_gqa"] is True
        assert call["query"].shape == (20, 2, 8) and call["key"].shape == call["value"].shape == (20, 1, 8)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (8, 2), (4, 1), (5, 5), (9, 3), (6, 3)])
def test_varlen_copies_no_input(varlen_in_python, num_heads, num_kv_heads):
    case = Case(num_tokens=10, group_size=4, batch_size=2, num_heads=num_heads, num_kv_heads=num_kv_heads)
    *inputs, _ = random_tensors(case)
    s2_attention(*inputs, group_size=4)
    for call in varlen_in_python.calls:
        for name, tensor in zip(("query", "key", "value"), inputs, strict=True):
            assert call[name].untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def flash_attention_2(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    """Take what flash-attn 2.8 takes."""
    assert causal and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q == cu_seqlens_q.diff().max() and max_seqlen_k == cu_seqlens_k.diff().max()
    return in_segments(q, k, v, cu_seqlens_q, cu_seqlens_k, scale=softmax_scale, softcap=softcap)


def flash_attention_3(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
    softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
    attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
):  # fmt: skip
    """Take what flash-attn 3 takes, and return what its first versions returned."""
    assert causal
    return in_segments(q, k, v, cu_seqlens_q, cu_seqlens_k, scale=softmax_scale, softcap=softcap), None


@pytest.fixture
def installed(monkeypatch):
    """Install modules by their names."""

    def install(**functions) -> None:
        for name in ("flash_attn", "flash_attn_interface"):
            module = SimpleNamespace(flash_attn_varlen_func=functions[name]) if name in functions else None
            monkeypatch.setitem(varlen.importlib.sys.modules, name, module)
        varlen._function_of.cache_clear()

    yield install
    varlen._function_of.cache_clear()


@pytest.mark.parametrize(
    "packages", [{"flash_attn": flash_attention_2}, {"flash_attn_interface": flash_attention_3}], ids=["2", "3"]
)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sink_tokens", [0, 2])
def test_flash_attn_equals_the_definition(packages, softcap, sink_tokens, installed, monkeypatch, seed):
    installed(**packages)
    monkeypatch.setattr(s2, "choose_backend", lambda *_: "flash")
    others = {"softcap": softcap, "num_kv_heads": 1, "sink_tokens": sink_tokens, "seed": seed}
    assert_parity(Case(**vars(FULL) | others), torch.float64)


def test_flash_attn_3_comes_before_2(installed):
    installed(flash_attn=flash_attention_2)
    assert varlen.flash_function() is flash_attention_2
    installed(flash_attn=flash_attention_2, flash_attn_interface=flash_attention_3)
    assert varlen.flash_function() is flash_attention_3
    assert refusal("flash", request(device="cuda", dtype=BF16)) is None
    assert choose_backend("flash", request(device="cuda", dtype=BF16)) == "flash"
