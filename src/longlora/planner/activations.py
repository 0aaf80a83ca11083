"""What one GPU holds for the backward pass, tensor by tensor as transformers' code makes them.

All results are bytes per token unless a name says otherwise. `b` is the size of a number in compute, which is that of
the hidden states between layers too (`models/memory_optimizations.py`). `tests/planner/test_activations.py` compares
the sums with what a model on the CPU really holds.
"""

import math
from typing import NamedTuple

from longlora.planner.job import PlannedRun

LOGIT_BYTES = 12
"""Three float32 tensors over the vocabulary at once: the log-probabilities, and in the backward pass of cross-entropy
the gradients of these and of the logits."""

LOSS_TILE = (4096, 32768)
"""Tokens and vocabulary of one tile of TRL's chunked cross-entropy (trl 1.16, `kernels/chunked_logprob.py`)."""

NORM_GRADIENT_BYTES = 20
"""Five float32 tensors of the norm's width at once, in the backward pass of the mean square: autograd's, and three
steps of the power's. With a tiled feed-forward this is a layer's worst moment."""


class Moment(NamedTuple):
    """What a layer holds while the gradient of one of its parts is computed."""

    kept: int  # from the forward pass
    in_flight: int  # gradients, and what they need for themselves


def layer_moments(run: PlannedRun) -> dict[str, Moment]:
    """What is held at each part of a layer's backward pass, which begins with all that the layer keeps."""
    shape, b = run.architecture, run.compute_bytes
    hidden, query, kv = shape.hidden_size, shape.query_size, shape.kv_size
    attention, mlp = _kept_by_attention(run), _kept_by_mlp(run)
    # Of the product, and of its two factors; where the product itself is kept, it is gone by then.
    inside_mlp = (2 if run.trains_mlp else 3) * b * shape.active_intermediate_size // num_mlp_tiles(run)
    moments = {
        "the feed-forward": Moment(attention + mlp, b * hidden * (2 if run.tiled_mlp else 1) + inside_mlp),
        # The first to be met backward: a norm behind the feed-forward where there is one, else that before it. In
        # flight is also the gradient that goes around the feed-forward, or into it.
        "a norm": Moment(
            attention + (mlp if shape.norms_per_layer == 4 else 4 * hidden + 4), (NORM_GRADIENT_BYTES + b) * hidden
        ),
        # Gradients of output, query, key and value; FlashAttention adds up the query's in float32. Those of the copies
        # that sink tokens take come one half of the heads at a time.
        "attention": Moment(
            attention,
            b * (hidden + 2 * query + 2 * kv + run.sees_sinks * (query // 2 + kv)) + 4 * query + _exchanged(run),
        ),
    }
    if shape.qk_norm != "none":
        in_flight = NORM_GRADIENT_BYTES * query + b * (hidden + query)
        moments["the queries' norm"] = Moment(attention - _kept_by_kernel(run), in_flight)
    return moments


def layer_input(run: PlannedRun) -> int:
    """The hidden state that a layer starts from, which is all that checkpointing keeps of it."""
    return run.compute_bytes * run.architecture.hidden_size


def kept_layers(run: PlannedRun) -> int:
    """What all layers keep from forward to backward."""
    if run.gradient_checkpointing:
        return run.architecture.num_layers * layer_input(run)
    # Without a float32 copy in its norm, a layer's input itself is what the norm keeps.
    own_input = layer_input(run) if run.compute_bytes == 4 else 0
    return run.architecture.num_layers * (_kept_by_attention(run) + _kept_by_mlp(run) + own_input)


def shared_by_layers(run: PlannedRun) -> int:
    """Token numbers, positions and labels (int64), and the table of rotary positions."""
    tables = run.architecture.num_layers if run.rotary_cache_per_layer else 1
    return 24 + tables * 2 * run.architecture.head_dim * run.compute_bytes


def loss_per_token(run: PlannedRun) -> int:
    """The final norm, and the logits or what replaces them."""
    shape = run.architecture
    final = _norm(run, shape.hidden_size) + 4
    if not run.chunked_loss:
        return final + run.trains_head * run.compute_bytes * shape.hidden_size + LOGIT_BYTES * shape.vocab_size
    # The hidden state, its gradient in float32, and that in the type of compute.
    return final + shape.hidden_size * (2 * run.compute_bytes + 4)


def loss_fixed(run: PlannedRun) -> int:
    """Bytes of the chunked cross-entropy that do not grow with the row (in all, not per token)."""
    if not run.chunked_loss:
        return 0
    shape = run.architecture
    tile = min(run.tokens, LOSS_TILE[0]) * min(shape.vocab_size, LOSS_TILE[1]) * run.compute_bytes
    head_gradient = 4 * shape.vocab_size * shape.hidden_size if run.trains_head else 0
    return tile + head_gradient


def num_mlp_tiles(run: PlannedRun) -> int:
    """Tiles of the feed-forward: as many tokens each as the hidden state is wide (ALST)."""
    return math.ceil(run.tokens / run.tiled_mlp) if run.tiled_mlp else 1


def _norm(run: PlannedRun, width: int) -> int:
    """A norm's float32 copy, and the normalised vector where the gradient of its scale needs it."""
    return width * (4 + run.trains_norms * (4 if run.architecture.wide_norms else run.compute_bytes))


def _kept_by_attention(run: PlannedRun) -> int:
    shape, b = run.architecture, run.compute_bytes
    hidden, query, kv = shape.hidden_size, shape.query_size, shape.kv_size
    num_linears = len(shape.attention_linears())
    # Where the hidden state is float32 already, the norm's copy is the layer's input itself.
    kept = _norm(run, hidden) + 4 - (4 * hidden if b == 4 else 0)
    # Autocast casts the input once for every projection whose gradient needs it.
    kept += b * hidden * (num_linears - 1 if run.mixed else 1)
    if shape.qk_norm != "none":
        kept += _norm(run, query + kv)
    kept += _kept_by_kernel(run)
    if shape.fused:  # the projection's whole result, of which the value is a part
        kept += b * (query + kv)
    if run.tuning != "full":
        kept += b * run.lora_rank * num_linears
        kept += b * query if run.mixed else 0  # autocast's copy of the output projection's input
    if shape.norms_per_layer == 4:
        kept += _norm(run, hidden)
    return kept


def _exchanged(run: PlannedRun) -> int:
    """Gradients of query, key and value once more, on their way to the GPUs that have the tokens."""
    shape = run.architecture
    return run.compute_bytes * (shape.query_size + 2 * _kv_size(run)) if run.sequence_parallel_size > 1 else 0


def _kv_size(run: PlannedRun) -> int:
    """Width of the keys that the kernel sees for each token here; GPUs that share a row may need the same heads."""
    shape = run.architecture
    return shape.kv_size * max(1, run.sequence_parallel_size // shape.num_kv_heads)


def _kept_by_kernel(run: PlannedRun) -> int:
    """FlashAttention's inputs, output and log-sum-exps.

    Where SDPA runs, sink tokens add queries and outputs twice, and the rows of the sinks before each group. Copies of
    keys and values stand in the place of the projected ones, which nothing holds any more.
    """
    shape, b, kv_size = run.architecture, run.compute_bytes, _kv_size(run)
    kept = b * 2 * (shape.query_size + kv_size) + 4 * shape.num_heads
    kept += b * shape.query_size if run.sequence_parallel_size > 1 else 0  # outputs by heads, and by tokens
    if not run.sees_sinks:
        return kept
    # Under autocast a second output is counted already, as its copy for the output projection.
    copies = 1 if run.mixed and run.tuning != "full" else 2
    rows = 2 * b * (shape.query_size + kv_size) * run.sink_tokens
    return kept + b * copies * shape.query_size + math.ceil(rows / run.group_tokens)


def _kept_by_mlp(run: PlannedRun) -> int:
    shape, b = run.architecture, run.compute_bytes
    hidden, inner = shape.hidden_size, shape.active_intermediate_size
    norms = _norm(run, hidden) * (shape.norms_per_layer // 2) + 4
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
