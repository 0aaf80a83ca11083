"""Which kernel runs, what is refused, and what the kernels of CUDA are handed, with those kernels replaced."""

import inspect
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from tests.attention.cases import HEADS, Case, assert_parity, random_tensors
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen
from torch.nn.functional import scaled_dot_product_attention

from longlora.attention import backends, s2, s2_attention, varlen
from longlora.attention.backends import Wish, choose_backend, refusal
from longlora.errors import ConfigError

FULL = Case(
    num_tokens=13, group_size=5, batch_size=2, borders=(4, 15), stretches=((1, 13), (0, 10)), scale=0.3
)  # every cause of a cut


def wish(device: str = "cpu", dtype: torch.dtype = torch.float32, head_dim: int = 64, **others) -> Wish:
    return Wish(device=device, dtype=dtype, head_dim=head_dim, **{"value_dim": head_dim} | others)


@pytest.fixture
def triton(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())


BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (wish(), "cpu"),
        (wish(dtype=torch.float64, head_dim=3), "cpu"),
        (wish(dtype=BF16, has_sinks=True), "cpu"),
        (wish(value_dim=32), "sdpa"),
        (wish(value_dim=32, has_sinks=True), "explicit"),
        (wish(has_softcap=True), "explicit"),
        (wish(device="mps"), "sdpa"),
        (wish(device="mps", has_sinks=True), "explicit"),
        (wish(device="meta", has_softcap=True), "explicit"),
        (wish(device="cuda", dtype=BF16), "varlen"),
        (wish(device="cuda", dtype=torch.float16, head_dim=256), "varlen"),
        (wish(device="cuda"), "sdpa"),
        (wish(device="cuda", dtype=BF16, head_dim=100), "sdpa"),
        (wish(device="cuda", dtype=BF16, head_dim=264), "sdpa"),
        (wish(device="cuda", dtype=BF16, has_sinks=True), "flex"),
        (wish(device="cuda", has_softcap=True), "flex"),
        (wish(device="cuda", has_softcap=True, dtype=torch.float64), "explicit"),
        (wish(device="cuda", has_softcap=True, head_dim=8), "explicit"),
    ],
)
def test_auto_takes_the_first_that_can(asked, chosen, triton):
    assert choose_backend("auto", asked) == chosen


def test_auto_does_without_flex_where_nothing_compiles_it(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert choose_backend("auto", wish(device="cuda", has_softcap=True)) == "explicit"


@pytest.mark.parametrize(
    ("backend", "asked", "reason"),
    [
        ("cpu", wish(has_softcap=True), "knows no softcap"),
        ("cpu", wish(device="mps"), "runs on the CPU only, not on mps"),
        ("cpu", wish(value_dim=32), "needs values of the keys' head dimension, got 32 and 64"),
        ("sdpa", wish(has_softcap=True), "knows no softcap"),
        ("sdpa", wish(has_sinks=True), "knows no sinks"),
        ("varlen", wish(), "runs on CUDA only, not on cpu"),
        ("varlen", wish(device="cuda", dtype=BF16, has_sinks=True), "knows no sinks"),
        ("varlen", wish(device="cuda", dtype=BF16, has_softcap=True), "knows no softcap"),
        ("varlen", wish(device="cuda"), "runs in bfloat16 or float16, not in torch.float32"),
        ("varlen", wish(device="cuda", dtype=BF16, head_dim=12), ".* a multiple of 8 up to 256, got 12 and 12"),
        ("flash", wish(), "runs on CUDA only, not on cpu"),
        ("flash", wish(device="cuda", dtype=BF16), r"needs the package flash-attn \(2 or 3\)"),
        ("flash", wish(device="cuda", dtype=BF16, has_sinks=True), "knows no sinks"),
        ("flex", wish(needs_gradients=True), "has no backward pass on the CPU"),
        ("flex", wish(device="mps"), "runs on CUDA, and for checking on the CPU, not on mps"),
        ("flex", wish(device="cuda", head_dim=8), "needs head dimensions from 16"),
    ],
)
def test_a_backend_that_cannot_is_refused_with_its_reason(backend, asked, reason, triton):
    with pytest.raises(ConfigError, match=f"the attention backend '{backend}' {reason}"):
        choose_backend(backend, asked)


def test_flex_without_triton_is_refused(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert refusal("flex", wish(device="cuda")) == "is compiled by triton, which is not installed"


def test_a_name_that_is_no_backend_is_refused():
    attend = getattr(choose_backend, "__wrapped__", choose_backend)  # past the check of types in tests
    with pytest.raises(ConfigError, match=r"no attention backend 'triton'; there are auto, cpu, varlen"):
        attend("triton", wish())


def test_a_refusal_reaches_whoever_asks():
    with pytest.raises(ConfigError, match="'varlen' runs on CUDA only, not on cpu"):
        s2_attention(*torch.zeros(3, 1, 4, 8, 8), group_size=4, backend="varlen")


def in_segments(query, key, value, borders: Tensor, *, scale: float | None, softcap: float = 0.0) -> Tensor:
    """Do what the kernels for variable lengths do, one segment after another."""
    outputs = []
    for first, last in pairwise(borders.tolist()):
        q, k, v = (tensor[first:last].transpose(0, 1) for tensor in (query, key, value))  # (h, length, D)
        if softcap == 0:
            output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        else:
            repeats = q.shape[0] // k.shape[0]
            k, v = k.repeat_interleave(repeats, dim=0), v.repeat_interleave(repeats, dim=0)
            scores = softcap * ((q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale) / softcap).tanh()
            output = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1) @ v
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
        return in_segments(given["query"], given["key"], given["value"], given["cu_seq_q"], scale=given["scale"])


@pytest.fixture(params=[True, False], ids=["torch 2.13", "torch before 2.12"])
def varlen_in_python(monkeypatch, request) -> VarlenInPython:
    """Send s2_attention down the path of CUDA, with the kernel replaced."""
    kernel = VarlenInPython(grouped=request.param)
    monkeypatch.setattr(torch_varlen, "varlen_attn", kernel)
    monkeypatch.setattr(s2, "choose_backend", lambda *_: "varlen")
    return kernel


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_varlen_equals_the_definition(varlen_in_python, num_heads, num_kv_heads, seed):
    assert_parity(
        Case(**vars(FULL) | {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "seed": seed}), torch.float64
    )


def test_varlen_is_handed_what_the_kernel_asks_for(varlen_in_python):
    case = Case(num_tokens=10, group_size=4, batch_size=2, borders=(3,), scale=0.3)
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
    assert causal and cu_seqlens_q is cu_seqlens_k and cu_seqlens_q.dtype == torch.int32
    assert max_seqlen_q == max_seqlen_k == cu_seqlens_q.diff().max()
    return in_segments(q, k, v, cu_seqlens_q, scale=softmax_scale, softcap=softcap)


def flash_attention_3(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
    softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
    attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
):  # fmt: skip
    """Take what flash-attn 3 takes, and return what its first versions returned."""
    assert causal and cu_seqlens_q is cu_seqlens_k
    return in_segments(q, k, v, cu_seqlens_q, scale=softmax_scale, softcap=softcap), None


@pytest.fixture
def installed(monkeypatch):
    """Install modules by their names."""

    def install(**functions) -> None:
        for name in ("flash_attn", "flash_attn_interface"):
            module = SimpleNamespace(flash_attn_varlen_func=functions[name]) if name in functions else None
            monkeypatch.setitem(varlen.importlib.sys.modules, name, module)
        varlen.flash_function.cache_clear()

    yield install
    varlen.flash_function.cache_clear()


@pytest.mark.parametrize(
    "packages", [{"flash_attn": flash_attention_2}, {"flash_attn_interface": flash_attention_3}], ids=["2", "3"]
)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_flash_attn_equals_the_definition(packages, softcap, installed, monkeypatch, seed):
    installed(**packages)
    monkeypatch.setattr(s2, "choose_backend", lambda *_: "flash")
    assert_parity(Case(**vars(FULL) | {"softcap": softcap, "num_kv_heads": 1, "seed": seed}), torch.float64)


def test_flash_attn_3_comes_before_2(installed):
    installed(flash_attn=flash_attention_2)
    assert varlen.flash_function() is flash_attention_2
    installed(flash_attn=flash_attention_2, flash_attn_interface=flash_attention_3)
    assert varlen.flash_function() is flash_attention_3
    assert refusal("flash", wish(device="cuda", dtype=BF16)) is None
    assert choose_backend("flash", wish(device="cuda", dtype=BF16)) == "flash"
