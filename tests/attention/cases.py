"""What the tests of attention share: random cases, comparison with the definition, and how far apart is too far."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import example
from hypothesis import strategies as st
from torch import Tensor

from longlora.attention import s2_attention, s2_attention_reference

# How far a result may be from the float64 definition on the same numbers, in roundings of its largest number. The
# gradients of query and key are differences of larger products; those of bfloat16 and float16 are summed in float32.
ROUNDINGS = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 8, torch.float16: 8}
HEADS = [(1, 1), (2, 2), (3, 3), (7, 7), (4, 2), (8, 2), (4, 1), (5, 1), (6, 3), (9, 3), (6, 2), (2, 1)]  # (H, H_kv)
LAYOUTS = ["contiguous", "projection", "strided", "transposed"]
RESULTS = ("output", "d query", "d key", "d value", "d sinks")


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
    boundaries: tuple[int, ...] | None = None  # of documents, in the flattened batch
    stretches: tuple[tuple[int, int], ...] | None = None  # of real tokens, one for each row
    scale: float | None = None
    softcap: float | None = None
    has_sinks: bool = False
    sink_tokens: int = 0
    shift: bool = True
    seed: int = 0

    @property
    def settings(self) -> dict:
        total = self.batch_size * self.num_tokens
        time = torch.arange(self.num_tokens)
        return {
            "group_size": self.group_size,
            "shift": self.shift,
            "sink_tokens": self.sink_tokens,
            "scale": self.scale,
            "softcap": self.softcap,
            "cu_seqlens": None if self.boundaries is None else torch.tensor([0, *self.boundaries, total]),
            "padding_mask": None
            if self.stretches is None
            else torch.stack([(time >= first) & (time < last) for first, last in self.stretches]),  # (B, T)
        }


@st.composite
def cases(draw, *, softcap: bool = False, sinks: bool = False, sink_tokens: bool = False) -> Case:
    batch_size, num_tokens = draw(st.integers(1, 3)), draw(st.integers(1, 30))
    num_heads, num_kv_heads = draw(st.sampled_from(HEADS))
    tokens = st.integers(0, num_tokens)
    boundaries = st.lists(st.integers(0, batch_size * num_tokens), max_size=5).map(
        lambda boundaries: tuple(sorted(boundaries))
    )
    stretch = st.tuples(tokens, tokens).map(lambda ends: tuple(sorted(ends)))
    return Case(
        num_tokens=num_tokens,
        group_size=draw(st.integers(1, 40)),
        batch_size=batch_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([1, 3, 8, 16])),
        layout=draw(st.sampled_from(LAYOUTS)),
        boundaries=draw(st.none() | boundaries),
        stretches=draw(st.none() | st.tuples(*[stretch] * batch_size)),
        scale=draw(st.none() | st.floats(0.1, 0.3)),  # the default lies between 0.25 and 1
        softcap=draw(st.none() | st.floats(0.5, 50)) if softcap else None,
        has_sinks=draw(st.booleans()) if sinks else False,
        sink_tokens=draw(st.integers(0, 8)) if sink_tokens else 0,
        shift=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def leaf(shape: tuple[int, int, int, int], layout: str, generator: torch.Generator) -> Tensor:
    """Make random numbers in memory as the layout says, and return the (B, H, T, D) tensor that attention sees."""
    batch_size, num_heads, num_tokens, head_dim = shape
    in_memory, view = {
        "contiguous": (shape, lambda base: base),
        # as a linear layer leaves it
        "projection": ((batch_size, num_tokens, num_heads, head_dim), lambda base: base.transpose(1, 2)),
        "strided": ((batch_size, num_heads, 2 * num_tokens, head_dim), lambda base: base[:, :, ::2]),
        "transposed": ((batch_size, num_heads, head_dim, num_tokens), lambda base: base.transpose(2, 3)),
    }[layout]
    return view(torch.randn(in_memory, dtype=torch.float64, generator=generator))


def random_tensors(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    """Query, key, value, the sinks if there are any, and the gradient of the output."""
    generator = torch.Generator().manual_seed(case.seed)
    tensors = []
    for num_heads in (case.num_heads, case.num_kv_heads, case.num_kv_heads, case.num_heads):
        shape = (case.batch_size, num_heads, case.num_tokens, case.head_dim)
        tensors.append(leaf(shape, case.layout, generator).to(device, dtype))
    if case.has_sinks:
        sinks = torch.randn(case.num_heads, dtype=torch.float64, generator=generator)
        tensors.insert(3, sinks.to(device, dtype))
    return tensors


def with_gradients(attention: Callable, tensors: list[Tensor], **settings) -> list[Tensor]:
    """Return the output and the gradients of query, key, value and, if there are any, sinks."""
    *inputs, upstream = tensors
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    if len(inputs) == 4:
        settings["sinks"] = inputs[3]
    output = attention(*inputs[:3], **settings)
    return [output, *torch.autograd.grad(output, inputs, upstream)]


def tolerance(expected: Tensor, dtype: torch.dtype) -> float:
    return ROUNDINGS[dtype] * torch.finfo(dtype).eps * max(1.0, expected.abs().max().item())


def assert_close(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype, message: object = "") -> None:
    for name, got, wanted in zip(RESULTS[: len(expected)], actual, expected, strict=True):
        assert got.shape == wanted.shape and got.isfinite().all(), (name, message)
        error = (got.double() - wanted).abs().max().item()
        allowed = tolerance(wanted, dtype)
        assert error <= allowed, f"{name} differs by {error:.2e}, {allowed:.2e} allowed: {message}"


def assert_parity(case: Case, dtype: torch.dtype, device: str = "cpu", backend: str = "auto") -> None:
    """Compare output and gradients with the definition in float64 on the same numbers."""
    tensors = random_tensors(case, dtype, device)
    actual = with_gradients(s2_attention, tensors, backend=backend, **case.settings)
    assert all(tensor.dtype == dtype for tensor in actual)
    expected = with_gradients(s2_attention_reference, [tensor.cpu().double() for tensor in tensors], **case.settings)
    assert_close([tensor.cpu() for tensor in actual], expected, dtype, (backend, case))


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
        Case(num_tokens=12, group_size=4, batch_size=2, boundaries=(3, 15, 15), stretches=((2, 12), (0, 9))),
        Case(num_tokens=6, group_size=2, batch_size=2, stretches=((0, 0), (6, 6))),
    ):
        test = example(case=case)(test)
    return test
