"""The fast paths against the definition, and the promises of the design: causal, documents and rows independent."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from longlora.attention import s2, s2_attention, s2_attention_reference

# How far a result may be from the float64 definition on the same numbers, in roundings of its largest number. The
# gradients of query and key are differences of larger products; those of bfloat16 and float16 are summed in float32.
ROUNDINGS = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 8, torch.float16: 8}
HEADS = [(1, 1), (2, 2), (3, 3), (7, 7), (4, 2), (8, 2), (4, 1), (5, 1), (6, 3), (9, 3), (6, 2), (2, 1)]  # (H, H_kv)
LAYOUTS = ["contiguous", "projection", "strided"]


@dataclass(frozen=True)
class Case:
    """Everything that decides a comparison."""

    num_tokens: int
    group_size: int
    batch_size: int = 1
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 8
    layout: str = "projection"
    borders: tuple[int, ...] | None = None  # of documents, in the flattened batch
    stretches: tuple[tuple[int, int], ...] | None = None  # of real tokens, one for each row
    scale: float | None = None
    seed: int = 0

    @property
    def settings(self) -> dict:
        total = self.batch_size * self.num_tokens
        time = torch.arange(self.num_tokens)
        return {
            "group_size": self.group_size,
            "scale": self.scale,
            "cu_seqlens": None if self.borders is None else torch.tensor([0, *self.borders, total]),
            "padding_mask": None
            if self.stretches is None
            else torch.stack([(time >= first) & (time < last) for first, last in self.stretches]),  # (B, T)
        }


@st.composite
def cases(draw) -> Case:
    batch_size, num_tokens = draw(st.integers(1, 3)), draw(st.integers(1, 30))
    num_heads, num_kv_heads = draw(st.sampled_from(HEADS))
    tokens = st.integers(0, num_tokens)
    borders = st.lists(st.integers(0, batch_size * num_tokens), max_size=5).map(lambda borders: tuple(sorted(borders)))
    stretch = st.tuples(tokens, tokens).map(lambda ends: tuple(sorted(ends)))
    return Case(
        num_tokens=num_tokens,
        group_size=draw(st.integers(1, 40)),
        batch_size=batch_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([1, 3, 8, 16])),
        layout=draw(st.sampled_from(LAYOUTS)),
        borders=draw(st.none() | borders),
        stretches=draw(st.none() | st.tuples(*[stretch] * batch_size)),
        scale=draw(st.none() | st.floats(0.1, 0.3)),  # the default lies between 0.25 and 1
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def leaf(shape: tuple[int, int, int, int], layout: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make random numbers in memory, and the (B, H, T, D) tensor that attention gets to see of them."""
    batch_size, num_heads, num_tokens, head_dim = shape
    if layout == "projection":  # as a linear layer leaves it
        base = torch.randn(batch_size, num_tokens, num_heads, head_dim, dtype=torch.float64, generator=generator)
        return base, base.transpose(1, 2)
    if layout == "strided":
        base = torch.randn(batch_size, num_heads, 2 * num_tokens, head_dim, dtype=torch.float64, generator=generator)
        return base, base[:, :, ::2]
    base = torch.randn(shape, dtype=torch.float64, generator=generator)
    return base, base


def random_tensors(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    """Query, key, value and the gradient of the output, the first three in the layout of the case."""
    generator = torch.Generator().manual_seed(case.seed)
    tensors = []
    for num_heads in (case.num_heads, case.num_kv_heads, case.num_kv_heads, case.num_heads):
        shape = (case.batch_size, num_heads, case.num_tokens, case.head_dim)
        tensors.append(leaf(shape, case.layout, generator)[1].to(device, dtype))
    return tensors


def with_gradients(attention: Callable, tensors: list[Tensor], **settings) -> list[Tensor]:
    """Return the output and the gradients of query, key and value."""
    *inputs, upstream = tensors
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attention(*inputs, **settings)
    return [output, *torch.autograd.grad(output, inputs, upstream)]


def tolerance(expected: Tensor, dtype: torch.dtype) -> float:
    return ROUNDINGS[dtype] * torch.finfo(dtype).eps * max(1.0, expected.abs().max().item())


def assert_close(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype, message: object = "") -> None:
    for name, got, wanted in zip(("output", "d query", "d key", "d value"), actual, expected, strict=True):
        assert got.shape == wanted.shape and got.isfinite().all(), (name, message)
        error = (got.double() - wanted).abs().max().item()
        allowed = tolerance(wanted, dtype)
        assert error <= allowed, f"{name} differs by {error:.2e}, {allowed:.2e} allowed: {message}"


def assert_parity(case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    tensors = random_tensors(case, dtype, device)
    actual = with_gradients(s2_attention, tensors, **case.settings)
    assert all(tensor.dtype == dtype for tensor in actual)
    expected = with_gradients(s2_attention_reference, [tensor.cpu().double() for tensor in tensors], **case.settings)
    assert_close([tensor.cpu() for tensor in actual], expected, dtype, case)


def edge_cases(test: Callable) -> Callable:
    for case in (
        Case(num_tokens=1, group_size=1),
        Case(num_tokens=1, group_size=7, batch_size=3, num_heads=1, num_kv_heads=1),
        Case(num_tokens=13, group_size=1),
        Case(num_tokens=5, group_size=8),
        Case(num_tokens=8, group_size=8),
        Case(num_tokens=37, group_size=7, num_heads=3, num_kv_heads=3),
        Case(num_tokens=32, group_size=8, num_heads=5, num_kv_heads=1, layout="strided"),
        Case(num_tokens=24, group_size=6, num_heads=6, num_kv_heads=3, batch_size=2, layout="contiguous"),
        Case(num_tokens=12, group_size=4, batch_size=2, borders=(3, 15, 15), stretches=((2, 12), (0, 9))),
        Case(num_tokens=6, group_size=2, batch_size=2, stretches=((0, 0), (6, 6))),
    ):
        test = example(case)(test)
    return test


@edge_cases
@given(cases())
def test_equals_the_definition_with_gradients(case):
    assert_parity(case, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@edge_cases
@settings(max_examples=20)
@given(case=cases())
def test_equals_the_definition_as_closely_as_the_dtype_allows(dtype, case):
    assert_parity(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("position", range(4))
def test_an_error_of_ten_times_the_tolerance_would_be_noticed(dtype, position, seed):
    """One element of the output or of one gradient is enough."""
    case = Case(num_tokens=11, group_size=4, seed=seed)
    expected = with_gradients(s2_attention_reference, random_tensors(case), **case.settings)
    actual = [tensor.clone() for tensor in expected]
    assert_close(actual, expected, dtype)
    actual[position].view(-1)[3] += 10 * tolerance(expected[position], dtype)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(actual, expected, dtype)


def test_under_autocast_float32_is_computed_in_the_dtype_of_autocast(seed):
    case = Case(num_tokens=11, group_size=4, seed=seed)
    query, key, value, _ = random_tensors(case, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = s2_attention(query, key, value.bfloat16(), group_size=4)
    expected = s2_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), group_size=4)
    assert torch.equal(actual, expected)


@given(cases())
@settings(max_examples=20)
def test_no_output_depends_on_a_later_token(case):
    """The Jacobian is exactly zero above the diagonal, for query, key and value."""
    case = replace(case, num_tokens=min(case.num_tokens, 12), batch_size=1, borders=None, stretches=None)
    for derivative in token_jacobians(s2_attention, case):
        assert not derivative.triu(1).any(), case


def test_the_rolled_form_of_the_paper_would_be_caught_depending_on_later_tokens(seed):
    case = Case(num_tokens=12, group_size=4, num_kv_heads=4, seed=seed)
    by_query, by_key, by_value = token_jacobians(rolled_attention, case)
    assert not by_query.triu(1).any()
    assert by_key.triu(1).any() and by_value.triu(1).any()


def test_equals_the_rolled_form_of_the_paper_where_that_does_not_wrap(seed):
    case = Case(num_tokens=12, group_size=4, num_kv_heads=4, batch_size=2, seed=seed)
    query, key, value, _ = random_tensors(case)
    expected = rolled_attention(query, key, value, group_size=4)
    actual = s2_attention(query, key, value, group_size=4)
    torch.testing.assert_close(actual[:, :2], expected[:, :2], msg=f"seed {seed}")
    torch.testing.assert_close(actual[:, 2:, 2:], expected[:, 2:, 2:], msg=f"seed {seed}")


def token_jacobians(attention: Callable, case: Case) -> list[Tensor]:
    """How much the output at one token (first axis) moves with query, key or value at another (second axis)."""
    *inputs, weights = random_tensors(case)

    def number_by_token(*inputs: Tensor) -> Tensor:
        return (attention(*inputs, group_size=case.group_size) * weights).sum(dim=(0, 1, 3))  # (T,)

    derivatives = jacobian(number_by_token, tuple(inputs))  # (T, B, H, T, D) each
    return [derivative.abs().sum(dim=(1, 2, 4)) for derivative in derivatives]  # (T, T) each


def rolled_attention(query: Tensor, key: Tensor, value: Tensor, *, group_size: int) -> Tensor:
    """Algorithm 1 of the paper: roll half of the heads by half a group, attend in groups, roll back."""
    num_heads, num_tokens = query.shape[1:3]

    def roll(tensor: Tensor, by: int) -> Tensor:
        return torch.cat([tensor[:, : num_heads // 2], tensor[:, num_heads // 2 :].roll(by, dims=2)], dim=1)

    grouped = [
        roll(tensor, -(group_size // 2)).unflatten(2, (num_tokens // group_size, group_size))  # (B, H, T/g, g, D)
        for tensor in (query, key, value)
    ]
    return roll(scaled_dot_product_attention(*grouped, is_causal=True).flatten(2, 3), group_size // 2)


@pytest.mark.parametrize("group_size", [1, 4, 5, 100])
def test_packed_documents_equal_documents_alone(group_size, seed):
    case = Case(num_tokens=20, group_size=group_size, borders=(7, 8), seed=seed)
    tensors = random_tensors(case)
    packed = with_gradients(s2_attention, tensors, **case.settings)
    alone = [
        with_gradients(s2_attention, [tensor[:, :, first:last] for tensor in tensors], group_size=group_size)
        for first, last in ((0, 7), (7, 8), (8, 20))
    ]
    joined = [torch.cat(parts, dim=2) for parts in zip(*alone, strict=True)]
    assert_close(packed, joined, torch.float64, f"seed {seed}")


@pytest.mark.parametrize("stretch", [(3, 13), (0, 10), (2, 12)], ids=["left", "right", "both sides"])
def test_padding_changes_nothing_for_real_tokens(stretch, seed):
    case = Case(num_tokens=13, group_size=4, stretches=(stretch,), seed=seed)
    real = slice(*stretch)
    tensors = random_tensors(case)
    tensors[-1] = tensors[-1] * case.settings["padding_mask"][:, None, :, None]  # no loss looks at padding
    padded = with_gradients(s2_attention, tensors, **case.settings)
    alone = with_gradients(s2_attention, [tensor[:, :, real] for tensor in tensors], group_size=4)
    assert_close([tensor[:, :, real] for tensor in padded], alone, torch.float64, f"seed {seed}")

    changed = [tensor.masked_fill(~case.settings["padding_mask"][:, None, :, None], 1e3) for tensor in tensors[:3]]
    again = with_gradients(s2_attention, [*changed, tensors[-1]], **case.settings)
    for before, after in zip(padded, again, strict=True):
        assert torch.equal(before[:, :, real], after[:, :, real]), f"seed {seed}"


def test_rows_of_a_batch_are_independent(seed):
    case = Case(num_tokens=11, group_size=4, batch_size=3, seed=seed)
    tensors = random_tensors(case)
    together = with_gradients(s2_attention, tensors, group_size=4)
    alone = [with_gradients(s2_attention, [tensor[[row]] for tensor in tensors], group_size=4) for row in range(3)]
    joined = [torch.cat(rows) for rows in zip(*alone, strict=True)]
    assert_close(together, joined, torch.float64, f"seed {seed}")


@pytest.mark.parametrize("group_size", [9, 10, 1000])
def test_one_group_is_full_causal_attention_in_the_unshifted_half(group_size, seed):
    case = Case(num_tokens=9, group_size=group_size, num_kv_heads=4, seed=seed)
    *inputs, _ = random_tensors(case)
    actual = s2_attention(*inputs, group_size=group_size)
    full = scaled_dot_product_attention(*inputs, is_causal=True)
    torch.testing.assert_close(actual[:, :2], full[:, :2], msg=f"seed {seed}")
    shift = group_size // 2
    torch.testing.assert_close(actual[:, 2:, :shift], full[:, 2:, :shift], msg=f"seed {seed}")


@pytest.mark.parametrize(
    "wrong",
    [
        {"group_size": 0},
        {"group_size": 4, "cu_seqlens": torch.tensor([0, 7])},
        {"group_size": 4, "padding_mask": torch.tensor([[True, False, True, True, True, True, True, True]])},
    ],
    ids=["group", "documents", "padding"],
)
def test_refuses_what_cut_points_refuses(wrong):
    with pytest.raises(ValueError):
        s2_attention(*torch.zeros(3, 1, 2, 8, 4), **wrong)


class VarlenInPython:
    """Does what `varlen_attn` does, one segment after another, and keeps what it was given."""

    def __init__(self) -> None:
        self.signature = inspect.signature(varlen.varlen_attn)
        self.calls: list[dict] = []

    def __call__(self, *arguments, **named) -> Tensor:
        given = self.signature.bind(*arguments, **named).arguments
        self.calls.append(given)
        outputs = []
        for first, last in pairwise(given["cu_seq_q"].tolist()):
            q, k, v = (given[name][first:last].transpose(0, 1) for name in ("query", "key", "value"))  # (h, length, D)
            outputs.append(
                scaled_dot_product_attention(
                    q, k, v, is_causal=True, scale=given["scale"], enable_gqa=given["enable_gqa"]
                ).transpose(0, 1)
            )
        return torch.cat(outputs)


@pytest.fixture
def varlen_in_python(monkeypatch) -> VarlenInPython:
    """Send s2_attention down the path of CUDA, with the kernel replaced."""
    kernel = VarlenInPython()
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(s2, "_attend", s2._attend_varlen)
    return kernel


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_the_path_of_cuda_equals_the_definition(varlen_in_python, num_heads, num_kv_heads, seed):
    case = Case(
        num_tokens=13,
        group_size=5,
        batch_size=2,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        borders=(4, 15),
        stretches=((1, 13), (0, 10)),
        scale=0.3,
        seed=seed,
    )
    assert_parity(case, torch.float64)
    assert len(varlen_in_python.calls) == (1 if num_heads == 1 else 2)


def test_the_path_of_cuda_hands_over_what_the_kernel_asks_for(varlen_in_python):
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
        assert call["enable_gqa"] is True
        assert call["query"].shape == (20, 2, 8) and call["key"].shape == call["value"].shape == (20, 1, 8)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (8, 2), (4, 1), (5, 5)])
def test_the_path_of_cuda_copies_no_input(varlen_in_python, num_heads, num_kv_heads):
    case = Case(num_tokens=10, group_size=4, batch_size=2, num_heads=num_heads, num_kv_heads=num_kv_heads)
    *inputs, _ = random_tensors(case)
    s2_attention(*inputs, group_size=4)
    for call in varlen_in_python.calls:
        for name, tensor in zip(("query", "key", "value"), inputs, strict=True):
            assert call[name].untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


GPU_CASES = [
    Case(num_tokens=512, group_size=128, batch_size=2, num_heads=8, num_kv_heads=8, head_dim=64),
    Case(
        num_tokens=300, group_size=77, batch_size=2, num_heads=16, num_kv_heads=2, head_dim=128, borders=(1, 130, 400)
    ),
    Case(num_tokens=257, group_size=64, num_heads=9, num_kv_heads=3, head_dim=32, stretches=((5, 250),)),
    Case(num_tokens=65, group_size=100, num_heads=8, num_kv_heads=1, head_dim=64),
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", GPU_CASES, ids=["plain", "packed", "padded", "one group"])
def test_equals_the_definition_on_cuda(case, dtype, seed):
    assert_parity(replace(case, seed=seed), dtype, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_under_autocast_cuda_takes_the_fast_path(monkeypatch, seed):
    """As when float32 weights train: rotated query and key are float32, the value is not."""
    dtypes = []
    fast_path = s2._attend_varlen

    def watched(query: Tensor, *others) -> Tensor:
        dtypes.append(query.dtype)
        return fast_path(query, *others)

    monkeypatch.setattr(s2, "_attend_varlen", watched)
    case = Case(num_tokens=64, group_size=16, head_dim=32, seed=seed)
    query, key, value, _ = random_tensors(case, torch.float32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        s2_attention(query, key, value.bfloat16(), group_size=16)
    assert dtypes == [torch.bfloat16] * 2
