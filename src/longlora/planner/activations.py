"""Activations kept on one GPU for the backward pass, tensor by tensor as in transformers' code.

All results are bytes per token unless noted. `b` is the bytes of a number in compute, and also of the hidden states
between layers (`models/memory_optimizations.py`). `tests/planner/test_activations.py` compares the sums with the
tensors of a model on the CPU.
"""

import math
from typing import NamedTuple

from longlora.planner.job import PlannedRun

LOGIT_BYTES = 12
"""Three float32 tensors over the vocabulary at once: the log-probabilities, and in the backward pass of cross-entropy
their gradients and those of the logits."""

LOSS_TILE = (4096, 32768)
"""Tokens and vocabulary of one tile of TRL's chunked cross-entropy (trl 1.16, `kernels/chunked_logprob.py`)."""

NORM_GRADIENT_BYTES = 20
"""Five float32 tensors of the norm's width at once, in the backward pass of the mean square: autograd's, and three
intermediate results of the power. With a tiled feed-forward this is a layer's peak."""


class Moment(NamedTuple):
    """A layer's memory while the gradient of one of its parts is computed."""

    kept: int  # from the forward pass
    in_flight: int  # gradients, and temporaries for computing them


def layer_moments(run: PlannedRun) -> dict[str, Moment]:
    """Return the memory at each part of a layer's backward pass, which begins with all that the layer keeps."""
    shape, b = run.architecture, run.compute_bytes
    hidden, query, kv = shape.hidden_size, shape.query_size, shape.kv_size
    attention, mlp = _kept_by_attention(run), _kept_by_mlp(run)
    # Gradients of the product and of its two factors; the product itself, if kept, is already freed.
    inside_mlp = (2 if run.trains_mlp else 3) * b * shape.active_intermediate_size // num_mlp_tiles(run)
    moments = {
        "the feed-forward": Moment(attention + mlp, b * hidden * (2 if run.tiled_mlp else 1) + inside_mlp),
        # The first norm in the backward pass: the one after the feed-forward if there is one, else the one before it.
        # The gradient that bypasses the feed-forward, or enters it, is in flight too.
        "a norm": Moment(
            attention + (mlp if shape.family.norms_per_layer == 4 else 4 * hidden + 4),
            (NORM_GRADIENT_BYTES + b) * hidden,
        ),
        # Gradients of output, query, key and value; FlashAttention accumulates the query's in float32. Those of the
        # copies for sink tokens are computed for half of the heads at a time.
        "attention": Moment(
            attention,
            b * (hidden + 2 * query + 2 * kv + run.sees_sinks * (query // 2 + kv)) + 4 * query + _exchanged(run),
        ),
    }
    if shape.family.qk_norm != "none":
        in_flight = NORM_GRADIENT_BYTES * query + b * (hidden + query)
        moments["the queries' norm"] = Moment(attention - _kept_by_kernel(run), in_flight)
    return moments


def layer_input(run: PlannedRun) -> int:
    """Return the size of a layer's input, the only tensor that checkpointing keeps."""
    return run.compute_bytes * run.architecture.hidden_size


def kept_layers(run: PlannedRun) -> int:
    """Return what all layers keep from forward to backward."""
    if run.gradient_checkpointing:
        return run.architecture.num_layers * layer_input(run)
    # In float32, the norm makes no copy but keeps the layer's input itself.
    own_input = layer_input(run) if run.compute_bytes == 4 else 0
    return run.architecture.num_layers * (_kept_by_attention(run) + _kept_by_mlp(run) + own_input)


def shared_by_layers(run: PlannedRun) -> int:
    """Return the size of token ids, positions and labels (int64), and of the table of rotary positions."""
    tables = run.architecture.num_layers if run.rotary_cache_per_layer else 1
    return 24 + tables * 2 * run.architecture.head_dim * run.compute_bytes


def loss_bytes(run: PlannedRun) -> int:
    """Return the bytes, of all tokens, of the final norm and of the logits, or of the chunked loss instead of these."""
    shape, b = run.architecture, run.compute_bytes
    per_token = _norm(run, shape.hidden_size) + 4
    if not run.chunked_loss:
        return run.tokens * (per_token + run.trains_head * b * shape.hidden_size + LOGIT_BYTES * shape.vocab_size)
    per_token += shape.hidden_size * (2 * b + 4)  # the hidden state, its gradient, and that in float32
    tile = min(run.tokens, LOSS_TILE[0]) * min(shape.vocab_size, LOSS_TILE[1]) * b
    head_gradient = run.trains_head * 4 * shape.vocab_size * shape.hidden_size
    return run.tokens * per_token + tile + head_gradient


def num_mlp_tiles(run: PlannedRun) -> int:
    """Return the number of tiles of the feed-forward, `run.tiled_mlp` tokens each (ALST)."""
    return math.ceil(run.tokens / run.tiled_mlp) if run.tiled_mlp else 1


def _norm(run: PlannedRun, width: int) -> int:
    """Return the size of a norm's float32 copy, and of the normalized vector if the scale's gradient needs it."""
    return width * (4 + run.trains_norms * (4 if run.architecture.family.wide_norms else run.compute_bytes))


def _kept_by_attention(run: PlannedRun) -> int:
    shape, b = run.architecture, run.compute_bytes
    hidden, query, kv = shape.hidden_size, shape.query_size, shape.kv_size
    num_linears = len(shape.attention_linears())
    # If the hidden state is already float32, the norm's copy is the layer's input itself.
    kept = _norm(run, hidden) + 4 - (4 * hidden if b == 4 else 0)
    # Autocast casts the input separately for every projection whose gradient needs it.
    kept += b * hidden * (num_linears - 1 if run.mixed else 1)
    if shape.family.qk_norm != "none":
        kept += _norm(run, query + kv)
    kept += _kept_by_kernel(run)
    if shape.family.fused:  # the projection's whole result, of which the value is a view
        kept += b * (query + kv)
    if run.tuning != "full":
        kept += b * run.lora_rank * num_linears
        kept += b * query if run.mixed else 0  # autocast's copy of the output projection's input
    if shape.family.norms_per_layer == 4:
        kept += _norm(run, hidden)
    return kept


def _exchanged(run: PlannedRun) -> int:
    """Return the size of the copies of query, key and value gradients sent to the GPUs that own the tokens."""
    shape = run.architecture
    return run.compute_bytes * (shape.query_size + 2 * run.kernel_kv_size) if run.sequence_parallel_size > 1 else 0


def _kept_by_kernel(run: PlannedRun) -> int:
    """Return the size of FlashAttention's inputs, output and log-sum-exps.

    With SDPA, sink tokens add second queries and outputs, and rows for the sinks before each group. The copies of keys
    and values replace the projected ones, which are freed.
    """
    shape, b, kv_size = run.architecture, run.compute_bytes, run.kernel_kv_size
    kept = b * 2 * (shape.query_size + kv_size) + 4 * shape.num_heads
    kept += b * shape.query_size if run.sequence_parallel_size > 1 else 0  # outputs by heads, and by tokens
    if not run.sees_sinks:
        return kept
    # Under autocast the second output is already counted, as the copy for the output projection.
    copies = 1 if run.mixed and run.tuning != "full" else 2
    rows = 2 * b * (shape.query_size + kv_size) * run.sink_tokens
    return kept + b * copies * shape.query_size + math.ceil(rows / run.group_tokens)


def _kept_by_mlp(run: PlannedRun) -> int:
    shape, b = run.architecture, run.compute_bytes
    hidden, inner = shape.hidden_size, shape.active_intermediate_size
    norms = _norm(run, hidden) * (shape.family.norms_per_layer // 2) + 4
    inside = 3 * b * inner  # gate, its activation, up
    if run.trains_mlp:
        copies = max(1, len(shape.mlp_linears()) - 1) if run.mixed else 1
        inside += b * (copies * hidden + inner)
        if run.tuning != "full":
            inside += b * run.lora_rank * len(shape.mlp_linears())
    if shape.num_experts:
        # Tokens sorted by expert, each expert's output, and the router's float32 logits and probabilities.
        inside += 2 * b * hidden * shape.experts_per_token + 8 * shape.num_experts
    return norms + (layer_input(run) if run.tiled_mlp else 0) + inside // num_mlp_tiles(run)
