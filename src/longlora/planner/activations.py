"""What one GPU holds for the backward pass, tensor by tensor as transformers' code makes them.

All results are bytes per token unless a name says otherwise. `b` is the size of a number in compute, which is that of
the hidden states between layers too (`memory.keep_hidden_states_in`); h is the hidden size, q and kv the width of
queries and of keys, f of the feed-forward. `tests/planner/test_activations.py` compares the sums with what a model on
the CPU really holds.
"""

import math
from dataclasses import dataclass

from longlora.planner.job import PlannedRun

LOGIT_BYTES = 12
"""Three float32 tensors over the vocabulary at once: the log-probabilities, and in the backward pass of cross-entropy
the gradients of these and of the logits."""

LOSS_TILE = (4096, 32768)
"""Tokens and vocabulary of one tile of TRL's chunked cross-entropy (trl 1.16, `kernels/chunked_logprob.py`)."""


NORM_GRADIENT_BYTES = 20
"""Five float32 tensors of the norm's width at once, in the backward pass of the mean square: autograd's, and three
steps of the power's. With a tiled feed-forward this is a layer's worst moment."""


@dataclass(frozen=True, kw_only=True)
class LayerActivations:
    """Bytes per token that one layer holds while its gradient is computed."""

    attention: int
    """Kept for the gradient of attention, its norm included."""

    attention_gradients: int
    """In flight while attention's gradient is computed; what the feed-forward kept is gone by then."""

    query_norm: int
    """Of attention's part, what is still kept while the gradient of the queries' norm is computed; 0 without one."""

    query_norm_gradients: int
    """In flight while the gradient of the queries' norm is computed."""

    mlp: int
    """Kept for the gradient of the feed-forward, its norm included."""

    mlp_gradients: int
    """In flight while the feed-forward's gradient is computed."""

    norm: int
    """Still kept while the gradient of a norm beside the feed-forward is computed; attention's part is kept as well."""

    norm_gradients: int
    """In flight while the gradient of a norm is computed."""

    @property
    def kept(self) -> int:
        """Kept by one layer that is not checkpointed, its input not counted."""
        return self.attention + self.mlp

    @property
    def moments(self) -> dict[str, tuple[int, int]]:
        """What is kept and what is in flight while the gradient of each part of the layer is computed."""
        return {
            "the feed-forward": (self.attention + self.mlp, self.mlp_gradients),
            "a norm": (self.attention + self.norm, self.norm_gradients),
            "attention": (self.attention, self.attention_gradients),
            "the queries' norm": (self.query_norm, self.query_norm_gradients),
        }

    @property
    def peak(self) -> int:
        """The most that is held at once while one layer's gradient is computed."""
        return max(kept + in_flight for kept, in_flight in self.moments.values())


def layer_activations(run: PlannedRun) -> LayerActivations:
    """Add up what a layer keeps, and what is in flight in its backward pass."""
    shape, b = run.architecture, run.compute_bytes
    hidden, query, kv = shape.hidden_size, shape.query_size, shape.kv_size
    attention, mlp = _kept_by_attention(run), _kept_by_mlp(run)
    has_query_norm = shape.qk_norm != "none"
    return LayerActivations(
        attention=attention,
        # Of its output, query, key and value; FlashAttention adds up the query's in float32.
        # Those of copies that sink tokens take come one half of the heads at a time.
        attention_gradients=b * (hidden + 2 * query + 2 * kv + run.sees_sinks * (query // 2 + kv)) + 4 * query,
        query_norm=attention - _kept_by_kernel(run) if has_query_norm else 0,
        query_norm_gradients=NORM_GRADIENT_BYTES * query + b * (hidden + query) if has_query_norm else 0,
        mlp=mlp,
        mlp_gradients=_mlp_gradients(run),
        # The first to be met backward: a norm behind the feed-forward where there is one, else that before it.
        norm=mlp if shape.norms_per_layer == 4 else 4 * hidden + 4,
        # The second is the gradient that goes around the feed-forward, or into it.
        norm_gradients=NORM_GRADIENT_BYTES * hidden + b * hidden,
    )


def layer_input(run: PlannedRun) -> int:
    """The hidden state that a layer starts from, which is all that checkpointing keeps of it."""
    return run.compute_bytes * run.architecture.hidden_size


def kept_layers(run: PlannedRun) -> int:
    """What all layers keep from forward to backward."""
    if run.gradient_checkpointing:
        return run.architecture.num_layers * layer_input(run)
    # Without a float32 copy in its norm, a layer's input itself is what the norm keeps.
    own_input = layer_input(run) if run.compute_bytes == 4 else 0
    return run.architecture.num_layers * (layer_activations(run).kept + own_input)


def shared_by_layers(run: PlannedRun) -> int:
    """Token numbers, positions and labels (int64), and the table of rotary positions."""
    table = 2 * run.architecture.head_dim
    if run.rotary_cache_per_layer:
        return 24 + run.architecture.num_layers * table * run.compute_bytes
    return 24 + table * run.compute_bytes


def loss_per_token(run: PlannedRun) -> int:
    """The final norm, and the logits or what replaces them."""
    shape = run.architecture
    final = 4 * shape.hidden_size + _scaled(run, shape.hidden_size, run.compute_bytes) + 4
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
    return max(1, math.ceil(run.tokens / run.tiled_mlp)) if run.tiled_mlp else 1


def _kept_by_attention(run: PlannedRun) -> int:
    shape, b = run.architecture, run.compute_bytes
    hidden, query, kv = shape.hidden_size, shape.query_size, shape.kv_size
    is_lora = run.tuning != "full"
    # The norm scales a float32 copy; where the hidden state is float32 already, that is the layer's input itself.
    kept = (0 if run.compute_bytes == 4 else 4 * hidden) + _scaled(run, hidden, run.compute_bytes) + 4
    # Autocast casts the input once for every projection whose gradient needs it.
    kept += b * hidden * (len(shape.attention_linears()) - 1 if run.mixed else 1)
    if shape.qk_norm != "none":
        kept += 4 * (query + kv) + _scaled(run, query + kv, b)
    kept += _kept_by_kernel(run)
    if shape.fused:  # the projection's whole result, of which the value is a part
        kept += b * (query + kv)
    if is_lora:
        kept += b * query if run.mixed else 0  # autocast's copy of the output projection's input
        kept += b * run.lora_rank * len(shape.attention_linears())
    if shape.norms_per_layer == 4:
        kept += 4 * hidden + _scaled(run, hidden, b)
    return kept


def _kept_by_kernel(run: PlannedRun) -> int:
    """FlashAttention's inputs, output and log-sum-exps."""
    shape = run.architecture
    kept = run.compute_bytes * 2 * (shape.query_size + shape.kv_size) + 4 * shape.num_heads
    return kept + _kept_for_sinks(run)


def _kept_for_sinks(run: PlannedRun) -> int:
    """What sink tokens add where SDPA runs: queries and outputs twice, and the rows of the sinks before each group.

    Copies of keys and values stand in the place of the projected ones, which nothing holds any more.
    """
    if not run.sees_sinks:
        return 0
    shape, b = run.architecture, run.compute_bytes
    # Under autocast a second output is counted already, as its copy for the output projection.
    copies = 1 if run.mixed and run.tuning != "full" else 2
    rows = 2 * b * (shape.query_size + shape.kv_size) * run.sink_tokens
    return b * copies * shape.query_size + math.ceil(rows / run.group_tokens)


def _kept_by_mlp(run: PlannedRun) -> int:
    shape, b = run.architecture, run.compute_bytes
    kept = 4 * shape.hidden_size + _scaled(run, shape.hidden_size, run.compute_bytes) + 4
    if shape.norms_per_layer == 4:
        kept += 4 * shape.hidden_size + _scaled(run, shape.hidden_size, b)
    if run.tiled_mlp:
        return kept + layer_input(run) + _kept_inside_mlp(run) // num_mlp_tiles(run)
    return kept + _kept_inside_mlp(run)


def _kept_inside_mlp(run: PlannedRun) -> int:
    shape, b = run.architecture, run.compute_bytes
    hidden, inner = shape.hidden_size, shape.active_intermediate_size
    kept = 3 * b * inner  # gate, its activation, up
    if run.trains_mlp:
        copies = max(1, len(shape.mlp_linears()) - 1) if run.mixed else 1
        kept += b * (copies * hidden + inner)
        if run.tuning != "full":
            kept += b * run.lora_rank * len(shape.mlp_linears())
    if shape.num_experts:
        # Tokens sorted by expert, each expert's output, and the router's float32 logits and probabilities.
        kept += 2 * b * hidden * shape.experts_per_token + 8 * shape.num_experts
    return kept


def _mlp_gradients(run: PlannedRun) -> int:
    hidden, inner = run.architecture.hidden_size, run.architecture.active_intermediate_size
    # Of the product, and of its two factors; where the product itself is kept, it is gone by then.
    inside = (2 if run.trains_mlp else 3) * run.compute_bytes * inner
    if run.tiled_mlp:
        return 2 * run.compute_bytes * hidden + inside // num_mlp_tiles(run)
    return run.compute_bytes * hidden + inside


def _scaled(run: PlannedRun, width: int, size: int) -> int:
    """The normalised vector, which the gradient of a norm's scale needs."""
    if not run.trains_norms:
        return 0
    return width * (4 if run.architecture.wide_norms else size)
