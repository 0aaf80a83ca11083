"""The attentions that `attention.py` compares, as functions of query, key, value and group size; and parity checks.

q (B, H, T, D), k and v (B, H_kv, T, D), g group size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longlora.attention import Backend, s2_attention, s2_attention_reference
from longlora.attention.backends import AttentionRequest, refusal

FULL, ROLL, ROLL_UNFUSED = "full causal, SDPA", "roll, SDPA", "roll, unfused"
OURS = "S², {backend}"

# Allowed difference from the float64 definition on the same numbers, in units of eps times the largest number.
_ROUNDINGS = {torch.float32: 64, torch.bfloat16: 16}

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Shape:
    """One row of T tokens, laid out in memory as by projections: (1, T, H, D)."""

    num_tokens: int
    num_heads: int = 8
    num_kv_heads: int = 8
    head_dim: int = 64

    @property
    def group_size(self) -> int:
        """A quarter of the row, as in the paper."""
        return max(1, self.num_tokens // 4)

    def tensors(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """Return random query, key, value, and the gradient of the output."""
        generator = torch.Generator(device).manual_seed(seed)

        def random(num_heads: int) -> Tensor:
            shape = 1, self.num_tokens, num_heads, self.head_dim
            return torch.randn(shape, generator=generator, dtype=dtype, device=device).transpose(1, 2)

        return [random(heads) for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads, self.num_heads)]

    def bytes_with_gradients(self, dtype: torch.dtype) -> int:
        """Return the bytes of query, key, value, output and the gradients of all four."""
        return 4 * (self.num_heads + self.num_kv_heads) * self.num_tokens * self.head_dim * dtype.itemsize


def attentions(device: torch.device, dtype: torch.dtype, *, head_dim: int, backward: bool) -> dict[str, Attention]:
    """Return the attentions that run on the device, by name: full attention, ours by backend, the paper's."""
    request = AttentionRequest(
        device=device.type, dtype=dtype, head_dim=head_dim, value_dim=head_dim, needs_gradients=backward
    )
    able = [name for name in get_args(Backend) if name != "auto" and refusal(name, request) is None]
    ours: dict[str, Attention] = {OURS.format(backend=name): partial(shifted_sparse, backend=name) for name in able}
    if device.type == "cpu":  # all N² scores if uncompiled; for varying lengths torch 2.13 generates invalid C++
        ours.pop(OURS.format(backend="flex"), None)
    return {FULL: full_causal, **ours, ROLL: rolled, ROLL_UNFUSED: rolled_unfused}


def make_run(name: str, shape: Shape, device: torch.device, dtype: torch.dtype, backward: bool) -> Callable[[], None]:
    """Make inputs for an attention, run it once on a few tokens to load its kernels, and return a run of it."""
    attention = attentions(device, dtype, head_dim=shape.head_dim, backward=backward)[name]
    few_tokens = replace(shape, num_tokens=min(64, shape.num_tokens))
    _run(attention, few_tokens.tensors(device, dtype), few_tokens.group_size, backward)
    tensors = shape.tensors(device, dtype)
    return lambda: _run(attention, tensors, shape.group_size, backward)


def _run(attention: Attention, tensors: list[Tensor], group_size: int, backward: bool) -> None:
    *inputs, upstream = tensors
    if backward:
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        attention(*inputs, group_size).backward(upstream)
    else:
        with torch.no_grad():
            attention(*inputs, group_size)


def full_causal(query: Tensor, key: Tensor, value: Tensor, _: int) -> Tensor:
    """Attend to all earlier tokens."""
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])


def shifted_sparse(query: Tensor, key: Tensor, value: Tensor, group_size: int, *, backend: Backend) -> Tensor:
    """Attend by this package's S²-Attn."""
    return s2_attention(query, key, value, group_size=group_size, backend=backend)


def rolled(query: Tensor, key: Tensor, value: Tensor, group_size: int) -> Tensor:
    """Attend by algorithm 1 of the paper, with torch's fused kernel."""
    return _by_rolling(partial(scaled_dot_product_attention, is_causal=True), query, key, value, group_size)


def rolled_unfused(query: Tensor, key: Tensor, value: Tensor, group_size: int) -> Tensor:
    """Attend by algorithm 1 of the paper, with scores, mask and softmax as separate operations."""
    return _by_rolling(_unfused, query, key, value, group_size)


def _by_rolling(attend: Callable, query: Tensor, key: Tensor, value: Tensor, group_size: int) -> Tensor:
    """Roll half of the heads by half a group, attend within groups, roll back (algorithm 1, line by line)."""
    num_heads, num_tokens = query.shape[1:3]
    half = num_heads // 2
    # First repeat grouped keys for each query head, as half of the query heads are rolled.
    key, value = (tensor.repeat_interleave(num_heads // tensor.shape[1], dim=1) for tensor in (key, value))

    def roll(tensor: Tensor, by: int) -> Tensor:
        return torch.cat([tensor[:, :half], tensor[:, half:].roll(by, dims=2)], dim=1)

    def group(tensor: Tensor) -> Tensor:
        tensor = roll(tensor, -(group_size // 2)).unflatten(2, (num_tokens // group_size, group_size))
        return tensor.transpose(1, 2).flatten(0, 1)  # (B · T/g, H, g, D)

    output = attend(group(query), group(key), group(value))  # (B · T/g, H, g, D)
    output = output.unflatten(0, (-1, num_tokens // group_size)).transpose(1, 2).flatten(2, 3)  # (B, H, T, D)
    return roll(output, group_size // 2)


def _unfused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    length = query.shape[2]
    hidden = torch.full((length, length), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + hidden
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value


def unfused_bytes(shape: Shape) -> int:
    """Return the peak bytes of the unfused form's scores: about four tensors, counted as float32."""
    return 4 * 4 * shape.num_heads * shape.num_tokens * shape.group_size


def disagreements(device: torch.device, dtype: torch.dtype, shapes: list[Shape]) -> list[str]:
    """Compare outputs and gradients of all attentions with their definitions; describe those beyond the tolerance."""
    found = []
    for shape in shapes:
        tensors = shape.tensors(device, dtype, seed=1)
        exact = [tensor.double() for tensor in tensors]
        ours, full = (_results(_definition(group_size), exact, group_size) for group_size in (shape.group_size, None))
        for name, attention in attentions(device, dtype, head_dim=shape.head_dim, backward=True).items():
            rolls = attention in (rolled, rolled_unfused)
            if rolls and shape.num_tokens % shape.group_size:
                continue
            # The roll has its own definition: different keys for the shifted heads in the first half group.
            expected = _results(rolled_unfused, exact, shape.group_size) if rolls else full if name == FULL else ours
            actual = _results(attention, tensors, shape.group_size)
            found += _differences(f"{name} at {shape}", actual, expected, dtype)
            if rolls:
                found += _differences(f"{name} at {shape} before it wraps", *_unwrapped(shape, actual, ours), dtype)
    return found


def _definition(group_size: int | None) -> Attention:
    def attend(query: Tensor, key: Tensor, value: Tensor, _: int | None) -> Tensor:
        # A group of twice the row's length cuts nothing, not even in the shifted half.
        return s2_attention_reference(query, key, value, group_size=group_size or 2 * query.shape[2])

    return attend


def _results(attention: Callable, tensors: list[Tensor], group_size: int | None) -> list[Tensor]:
    *inputs, upstream = tensors
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attention(*inputs, group_size)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]


def _unwrapped(shape: Shape, actual: list[Tensor], expected: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Keep the outputs of the heads and tokens for which rolling and cutting are equivalent."""
    half, first = shape.num_heads // 2, shape.group_size // 2

    def keep(output: Tensor) -> list[Tensor]:
        return [output[:, :half], output[:, half:, first:]]

    return keep(actual[0]), keep(expected[0])


def _differences(what: str, actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> list[str]:
    found = []
    for position, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        error = (got.double() - wanted).abs().max().item()
        allowed = _ROUNDINGS[dtype] * torch.finfo(dtype).eps * max(1.0, wanted.abs().max().item())
        if not error <= allowed:
            found.append(f"{what}, result {position}: differs by {error:.2e}, {allowed:.2e} allowed")
    return found
