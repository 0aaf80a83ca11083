"""Segments by torch's own FlashAttention kernel for the CPU, written straight into the result.

`scaled_dot_product_attention` on the CPU is this kernel too. Called through it, segment by segment, autograd keeps the
output of every segment beside the joined output, and joins three gradients once for each half of the heads and once
for all. Here one function keeps query, key, value, the output and a log-sum-exp for each query, and both passes write
each segment where it belongs (`docs/decisions/0004`, with the measurements).

The two operators are private to torch; nothing else in this package names them. They are as below in torch 2.13, and
serve grouped queries without repeating keys since torch 2.9 (pytorch/pytorch#157893). Where they are missing,
`is_available` says so and S²-Attn runs on the public function.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension, h and h_kv those of one range of heads.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from longlora.attention.cuts import CutPoints, head_ranges

_forward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_backward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)

# Results of the kernel are copied into place, so a call covers this part of the batch at most (or one segment): in the
# backward pass the kernel has four tensors of it beside the gradients.
_LARGEST_PART = 1 / 8
_FEWEST_TOKENS = 1024  # of a call, unless the segments are over: a call costs as much as a few hundred tokens


# Query heads, the key-value heads that they read, tokens that are whole segments, and the length of each of these.
Part = tuple[slice, slice, slice, int]


def is_available() -> bool:
    """Whether this build of torch has the kernel."""
    return _forward is not None and _backward is not None


def attend(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H_kv D"],
    value: Float[Tensor, "N H_kv D"],
    cuts: CutPoints,
    *,
    scale: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
) -> Float[Tensor, "N H D"]:
    """Run causal attention inside every segment.

    Memory beside the inputs, the output and their gradients: N·H log-sum-exps, and what the kernel returns for the
    largest part of the batch, N/8 tokens or a segment. Differentiable once: torch knows no derivative of the kernel's
    backward pass, and no forward-mode one, and says so (`explicit.py` has the first).
    """
    # The kernel reads rows of D neighbouring numbers.
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    parts = tuple(_parts(query, key, cuts))
    return _SegmentedAttention.apply(query, key, value, sinks, parts, scale)[0]


class _SegmentedAttention(torch.autograd.Function):
    """The output and the log-sum-exp of the scores of each query, the sink among them."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, parts: tuple[Part, ...], scale: float | None
    ) -> tuple[Tensor, Tensor]:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)  # (N, H, D)
        sums_dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        log_sums = query.new_empty(query.shape[:2], dtype=sums_dtype)  # (N, H)
        for h, h_kv, tokens, length in parts:
            q = _segments(query[tokens, h], length)  # (count, h, length, D)
            k, v = (_segments(tensor[tokens, h_kv], length) for tensor in (key, value))  # (count, h_kv, length, D)
            part, part_log_sums = _forward(q, k, v, 0.0, True, scale=scale)  # … and (count, h, length)
            if sinks is not None:
                without_sink = part_log_sums
                part_log_sums = torch.logaddexp(without_sink, sinks[h, None].to(sums_dtype))
                part = part * (without_sink - part_log_sums).exp().unsqueeze(-1)
            _segments(output[tokens, h], length).copy_(part)
            _segments(log_sums[tokens, h], length).copy_(part_log_sums)
            del part  # before the next one is made
        return output, log_sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        query, key, value, sinks, ctx.parts, ctx.scale = inputs
        ctx.save_for_backward(query, key, value, sinks, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, d_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate by the kernel: with P = exp(s - log-sum-exp), dS = P ∘ (dO Vᵀ - rowsum(dO ∘ O)).

        A sink is in the log-sum-exp and in the output, so P, dQ, dK and dV come out right as they are. The sink itself
        has the probability exp(a - log-sum-exp) and the value 0, hence da = -Σ_queries exp(a - …) rowsum(dO ∘ O).
        """
        query, key, value, sinks, output, log_sums = ctx.saved_tensors
        d_output = d_output if d_output.stride(-1) == 1 else d_output.contiguous()
        d_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        d_key, d_value = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (key, value))
        for h, h_kv, tokens, length in ctx.parts:
            d_o, q, o, sums = (_segments(t[tokens, h], length) for t in (d_output, query, output, log_sums))
            k, v = (_segments(t[tokens, h_kv], length) for t in (key, value))
            of_part = _backward(d_o, q, k, v, o, sums, 0.0, True, scale=ctx.scale)
            _segments(d_query[tokens, h], length).copy_(of_part[0])
            # A key-value head may serve two ranges of query heads.
            _segments(d_key[tokens, h_kv], length).add_(of_part[1])
            _segments(d_value[tokens, h_kv], length).add_(of_part[2])
            del of_part  # before the next part's are made
        d_sinks = None
        if sinks is not None and ctx.needs_input_grad[3]:
            towards_output = torch.einsum("nhd,nhd->nh", d_output.to(log_sums.dtype), output.to(log_sums.dtype))
            d_sinks = -((sinks - log_sums).exp() * towards_output).sum(dim=0).to(sinks.dtype)  # (H,)
        return d_query, d_key, d_value, d_sinks, None, None


def _parts(query: Tensor, key: Tensor, cuts: CutPoints) -> Iterator[Part]:
    """Go through the ranges of heads and, in each, through the segments."""
    num_tokens, num_heads = query.shape[:2]
    most_tokens = max(int(num_tokens * _LARGEST_PART), _FEWEST_TOKENS)
    for heads in head_ranges(num_heads, key.shape[1], cuts):
        # The kernel's backward pass shares out segments and key-value heads among the threads, and nothing smaller.
        fewest_segments = -(-_num_threads() // (heads.key_value.stop - heads.key_value.start))
        first = 0
        for length, count, _ in cuts.runs(shifted=heads.shifted):
            tokens_of_a_part = max(most_tokens // length, fewest_segments) * length
            end = first + length * count
            for start in range(first, end, tokens_of_a_part):
                yield heads.query, heads.key_value, slice(start, min(start + tokens_of_a_part, end)), length
            first = end


@torch.compiler.assume_constant_result  # the compiler cannot trace the question
def _num_threads() -> int:
    return torch.get_num_threads()


def _segments(tensor: Tensor, length: int) -> Tensor:
    """View (tokens, h, …) as (segments, h, length, …)."""
    return tensor.unflatten(0, (-1, length)).transpose(1, 2)
